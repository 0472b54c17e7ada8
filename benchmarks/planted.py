"""Retro beside the GPT that it contains, on a corpus in which every passage stands twice, in documents far apart.

    python benchmarks/planted.py [--steps 600] [--folder DIR]

Passages are words drawn by chance, so that nothing but their other copy tells what comes next. A database of all
documents is built with the vectors of a small BERT that has learned nothing (of two texts with the same words they are
alike), neighbours are found for every sample (never in the sample's own documents), and both models are trained on the same batches from the same first values. Printed: how often the copy is among a chunk's neighbours, the
validation perplexity of both, what looking up neighbours takes of a step.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mt import config
from mt.indexed.build import TokenizeConfig, tokenize
from mt.indexed.neighbors import SampleNeighbors
from mt.retro.build import BuildDbConfig, build_db
from mt.retro.samples import NeighborsConfig, neighbors
from mt.tokenizer import TokenizerConfig, load
from mt.train.batches import SampleConfig, build_samples
from mt.train.course import TrainConfig
from mt.train.loop import train
from mt.train.model.layers import ModelConfig

WORDS, PASSAGE, DOCUMENTS, PASSAGES = 100, 32, 300, 3  # words known, words of a passage, documents, passages of a document
CHUNK, LENGTH, BATCH, VALID = 16, 64, 16, 8  # tokens of a chunk and of a sample, samples of a batch, batches of a validation
RETRO = {"retro_add_retriever": True, "retro_chunk_length": CHUNK, "retro_encoder_hidden_dropout": 0.0, "retro_encoder_attention_dropout": 0.0}


def make_corpus(folder: Path) -> None:
    """Documents of passages, each of which stands in two of them; a tokenizer with a token a word; a BERT that knows these words."""
    import tokenizers
    import transformers

    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(WORDS)]
    passages = random.integers(WORDS, size=(DOCUMENTS * PASSAGES // 2, PASSAGE))
    places = np.concatenate([random.permutation(len(passages)) for _ in range(2)])  # the second copies stand in the second half
    order = random.permutation(DOCUMENTS)
    with open(folder / "corpus.jsonl", "w") as file:
        for document in order:
            text = " ".join(words[w] for p in places[document * PASSAGES : (document + 1) * PASSAGES] for w in passages[p])
            file.write(json.dumps({"text": text}) + "\n")
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate([*words, "<|endoftext|>"])}, unk_token="<|endoftext|>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir(exist_ok=True)
    model.add_special_tokens(["<|endoftext|>"])
    model.save(str(folder / "tokenizer" / "tokenizer.json"))
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bert = transformers.BertConfig(vocab_size=len(special) + WORDS, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("".join(f"{word}\n" for word in [*special, *words]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--folder", type=Path, help="where everything is kept, and found again (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        compare(folder, arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    if not (folder / "corpus.jsonl").exists():
        make_corpus(folder)
    words = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(folder / "tokenizer")}
    tokenize(made(TokenizeConfig, words, input=[str(folder / "corpus.jsonl")], output_prefix=str(folder / "tokens"), append_eod=True))
    data = {"data_path": [str(folder / "tokens_text_document")], "seq_length": LENGTH, "split": "90,10,0"}
    build_db(made(BuildDbConfig, words, data_path=data["data_path"], output=str(folder / "db"), chunk_length=CHUNK, num_neighbors=2, bert_model=str(folder / "bert")))
    samples = {"train_samples": arguments.steps * BATCH, "valid_samples": VALID * BATCH}
    near = str(folder / f"near_{arguments.steps}")
    neighbors(made(NeighborsConfig, data, samples, db=str(folder / "db"), output=near, num_neighbors=2))
    found = planted_share(SampleConfig(**{**data, "data_path": tuple(data["data_path"])}), near, words, tuple(samples.values()))
    print(f"chunks one of whose 2 neighbours goes on as they do: {found:.1%}", flush=True)

    run = {
        "num_layers": arguments.layers, "hidden_size": arguments.hidden, "num_attention_heads": 4, "max_position_embeddings": LENGTH,
        "lr": arguments.lr, "lr_warmup_iters": 50, "micro_batch_size": BATCH, "train_iters": arguments.steps, "eval_interval": max(1, arguments.steps // 4),
        "eval_iters": VALID, "log_interval": 20, "overwrite": True,
    }
    for name, model in {"gpt": {}, "retro": {**RETRO, "retro_project_dir": near}}.items():
        began = time.process_time()
        manifest = train(made(TrainConfig, words, data, run, model, save=str(folder / name)))
        curve = ", ".join(f"{step}: {math.exp(loss):.1f}" for step, loss in manifest["valid_curve"])
        print(f"{name}: validation perplexity {math.exp(manifest['valid_loss']):.1f} (by step {curve}), {time.process_time() - began:.0f} CPU s, {manifest['tokens_per_second']:,.0f} tokens/s", flush=True)


def made(kind, *trees: dict, **more):
    """A configuration of settings by name."""
    return config.build(kind, *(("benchmark", tree) for tree in (*trees, more)))


def planted_share(data: SampleConfig, near: str, words: dict, counts: tuple[int, int]) -> float:
    """The share of validation chunks whose next tokens stand in what one of their neighbours shows: eight in a row of the chunk that follows."""
    dataset = build_samples(ModelConfig(), data, load(config.build(TokenizerConfig, ("benchmark", words))), (*counts, 0))[1]
    found, hits, chunks = SampleNeighbors(near, dataset), 0, 0
    began = time.perf_counter()
    for index in range(len(found)):
        found.tokens(index, 2)
    print(f"a look-up of a sample's neighbours: {(time.perf_counter() - began) / len(found) * 1e3:.3f} ms", flush=True)
    for index in range(len(found)):
        sample, (tokens, _) = dataset[index], found.tokens(index, 2)
        for chunk in range(LENGTH // CHUNK - 1):
            following = sample[(chunk + 1) * CHUNK :][:8].tolist()
            chunks += 1
            hits += any(following == row[i : i + 8] for row in tokens[chunk].tolist() for i in range(2 * CHUNK - 7))
    return hits / chunks


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
