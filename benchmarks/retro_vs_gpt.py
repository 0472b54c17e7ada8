"""Compares Retro with the same GPT without retrieval, on a corpus where most passages occur twice.

    OMP_NUM_THREADS=1 python benchmarks/retro_vs_gpt.py [--steps 400] [--folder DIR]

Each word is drawn at random from the few that may follow the last one. A GPT can learn these few; only the
other copy of the passage, in another document, tells which one comes next. A database of all documents is
built with the vectors of an untrained small BERT, which maps texts with the same words to similar vectors.
Neighbours are found for every sample, never in the sample's own documents. Both models train on the same
batches from the same initial weights. Validation documents are in the database and in no batch.

Printed: how often a chunk's neighbours contain its continuation, the validation perplexity of both models for
all tokens, for tokens that a neighbour contains and for the others, and the time of lookups in a step.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from mt.core import config
from mt.indexed.build import TokenizeConfig, tokenize
from mt.indexed.neighbors import SampleNeighbors
from mt.retro.build import BuildDbConfig, build_db
from mt.retro.sample_neighbors import NeighborsConfig, neighbors
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.checkpoint.open import open_checkpoint
from mt.train.config import TrainConfig
from mt.train.loop import train
from mt.train.model.config import ModelConfig
from mt.train.model.datasets import SampleConfig
from mt.train.model.family import build_samples

# vocabulary size, words that may follow a word, share of passages that occur twice
WORDS, FOLLOWERS, TWICE = 64, 8, 0.8
PASSAGE, PASSAGES = 32, 2  # words of a passage, passages of a document
# tokens of a chunk and of a sample, samples of a batch, batches of a validation
CHUNK, LENGTH, BATCH, VALID = 8, PASSAGE * PASSAGES, 16, 16


def make_corpus(folder: Path, documents: int) -> None:
    """Writes documents of passages, a tokenizer with one token a word, and a BERT with this vocabulary."""
    import tokenizers
    import transformers

    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(WORDS)]
    may_follow = np.array([random.choice(WORDS, FOLLOWERS, replace=False) for _ in range(WORDS)])
    places = documents * PASSAGES
    twice = int(places * TWICE) // 2
    passages = np.empty((places - twice, PASSAGE), np.int64)
    passages[:, 0] = random.integers(WORDS, size=len(passages))
    for i in range(1, PASSAGE):
        passages[:, i] = may_follow[passages[:, i - 1], random.integers(FOLLOWERS, size=len(passages))]
    which = random.permutation(np.concatenate([np.arange(len(passages)), np.arange(twice)])).reshape(
        documents, PASSAGES
    )
    with open(folder / "corpus.jsonl", "w") as file:
        for own in which:
            # The end-of-document token replaces the last word, so that a document is as long as a sample.
            file.write(json.dumps({"text": " ".join(words[w] for w in passages[own].ravel()[:-1])}) + "\n")
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {w: i for i, w in enumerate([*words, "<|endoftext|>"])}, unk_token="<|endoftext|>"
        )
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    (folder / "tokenizer").mkdir(exist_ok=True)
    model.add_special_tokens(["<|endoftext|>"])
    model.save(str(folder / "tokenizer" / "tokenizer.json"))
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    bert = transformers.BertConfig(
        vocab_size=len(special) + WORDS,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    transformers.BertModel(bert).save_pretrained(folder / "bert")
    (folder / "bert" / "vocab.txt").write_text("".join(f"{word}\n" for word in [*special, *words]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--neighbors", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument(
        "--folder", type=Path, help="folder for all files, reused by later runs (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        compare(folder, arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Validation perplexities of `gpt` and `retro`: of all tokens, of those that a neighbour contains, of the
    others.
    """
    began = time.process_time()
    if not (folder / "corpus.jsonl").exists():
        make_corpus(folder, arguments.documents)
    words = {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": str(folder / "tokenizer")}
    tokenize(
        configured(
            TokenizeConfig,
            words,
            input=[str(folder / "corpus.jsonl")],
            output_prefix=str(folder / "tokens"),
            append_eod=True,
        )
    )
    data = {"data_path": [str(folder / "tokens_text_document")], "seq_length": LENGTH, "split": "90,10,0"}
    build_db(
        configured(
            BuildDbConfig,
            words,
            data_path=data["data_path"],
            output=str(folder / "db"),
            chunk_length=CHUNK,
            num_neighbors=2,
            bert_model=str(folder / "bert"),
            workers=1,
        )
    )
    samples = {"train_samples": arguments.steps * BATCH, "valid_samples": VALID * BATCH}
    near = str(folder / f"near_{arguments.steps}")
    neighbors(
        configured(
            NeighborsConfig, data, samples, db=str(folder / "db"), output=near, num_neighbors=2, workers=1
        )
    )
    dataset = build_samples(
        ModelConfig(),
        configured(SampleConfig, data),
        load(configured(TokenizerConfig, words)),
        (*samples.values(), 0),
    )[1]
    found = SampleNeighbors(near, dataset)
    for k in range(1, arguments.neighbors + 1):
        print(
            f"validation chunks that go on as one of their {k} nearest neighbours does:"
            f" {contained_in_neighbors(dataset, found, k)[0].mean():.1%}",
            flush=True,
        )
    print(f"corpus, database, neighbours: {time.process_time() - began:.0f} CPU s", flush=True)

    run = {
        "num_layers": arguments.layers,
        "hidden_size": arguments.hidden,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
        "lr": arguments.lr,
        "lr_warmup_iters": 50,
        "micro_batch_size": BATCH,
        "train_iters": arguments.steps,
        "eval_interval": max(1, arguments.steps // 4),
        "eval_iters": VALID,
        "log_interval": 20,
        "overwrite": True,
    }
    retro = {
        "retro_add_retriever": True,
        "retro_chunk_length": CHUNK,
        "retro_num_neighbors": arguments.neighbors,
        "retro_encoder_hidden_dropout": 0.0,
        "retro_encoder_attention_dropout": 0.0,
        "retro_project_dir": near,
    }
    print(
        "| model | validation perplexity | tokens in a neighbour | other tokens | CPU s | tokens/s |"
        " waited for data |\n|---|---|---|---|---|---|---|"
    )
    results = {}
    for name, model in {"gpt": {}, "retro": retro}.items():
        began = time.process_time()
        manifest = train(configured(TrainConfig, words, data, run, model, save=str(folder / name)))
        seconds = time.process_time() - began
        results[name] = (
            math.exp(manifest["valid_loss"]),
            *perplexities(folder / name, dataset, found, arguments.neighbors),
        )
        waited = statistics.mean(
            line["data_wait"]
            for line in map(json.loads, (folder / name / "log.jsonl").read_text().splitlines())
            if "data_wait" in line
        )
        print(
            f"| {name} | {' | '.join(f'{p:.2f}' for p in results[name])} | {seconds:.0f} |"
            f" {manifest['tokens_per_second']:,.0f} | {waited:.2%} |",
            flush=True,
        )
        print(
            f"{name} by step: "
            + ", ".join(f"{step}: {math.exp(loss):.2f}" for step, loss in manifest["valid_curve"]),
            flush=True,
        )
    step = BATCH * LENGTH / manifest["tokens_per_second"]
    print(
        "looking up the neighbours of a batch:"
        f" {(look_up := look_up_time(found, arguments.neighbors)) * 1e3:.2f} ms, {look_up / step:.2%} of"
        f" Retro's step of {step * 1e3:.0f} ms"
    )
    return results


def configured(kind, *trees: dict, **more):
    """A configuration from settings by name."""
    return config.build(kind, *(("benchmark", tree) for tree in (*trees, more)))


def contained_in_neighbors(dataset, found: SampleNeighbors, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Which chunks and tokens of every sample its neighbours contain: (n, l - 1) bool and (n, LENGTH) bool.

    A chunk after the first counts if a neighbour of the chunk before continues with its tokens but the last.
    """
    texts = dataset.batch(np.arange(len(found)))[:, :LENGTH].reshape(len(found), -1, 1, CHUNK)
    continued = found.tokens(np.arange(len(found)), k)[0][..., CHUNK:]
    same = continued[:, :-1] == texts[:, 1:]  # (n, l - 1, k, m)
    chunks = same[..., :-1].all(-1).any(-1)
    return chunks, np.pad((same.any(2) & chunks[..., None]).reshape(len(found), -1), ((0, 0), (CHUNK, 0)))


@torch.no_grad()
def perplexities(run: Path, dataset, found: SampleNeighbors, k: int) -> tuple[float, float]:
    """Perplexities of validation tokens that a neighbour contains, and of the others."""
    model = open_checkpoint(run).load_model()
    losses = []
    for start in range(0, len(found), BATCH):
        own = np.arange(start, start + BATCH)
        texts = torch.from_numpy(dataset.batch(own))
        read = (
            dict(zip(("neighbors", "neighbor_mask"), map(torch.from_numpy, found.tokens(own, k))))
            if model.config.retro_add_retriever
            else {}
        )
        losses.append(
            -model.log_likelihoods(model(texts[:, :-1], **read).flatten(0, 1), texts[:, 1:].flatten())[0]
            .view(BATCH, -1)
            .numpy()
        )
    losses = np.concatenate(losses)[:, :-1]  # the last label belongs to the next document
    copied = contained_in_neighbors(dataset, found, k)[1][:, 1:]
    return math.exp(losses[copied].mean()), math.exp(losses[~copied].mean())


def look_up_time(found: SampleNeighbors, k: int) -> float:
    """Seconds to look up the neighbours of a batch: the median over the validation batches."""
    seconds = []
    for start in range(0, len(found), BATCH):
        began = time.perf_counter()
        found.tokens(np.arange(start, start + BATCH), k)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
