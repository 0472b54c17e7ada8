"""Evaluation and generation with Retro, which retrieves neighbours for each finished chunk."""

import numpy as np
import pytest
import torch

from mt.core import config
from mt.core.config import UserError
from mt.eval.generation.generate import GenerateConfig, generate
from mt.eval.generation.sampling import Sampling
from mt.eval.lm import Retrieval, open_model
from mt.eval.tasks.lambada import LambadaConfig, lambada
from mt.eval.tasks.wikitext import WikitextConfig, wikitext
from mt.indexed.neighbors import Neighbors
from mt.retro.build import BuildDbConfig, build_db
from mt.retro.retriever import Retriever
from mt.retro.sample_neighbors import NeighborsConfig, neighbors
from mt.tests.retro.small_databases import texts, write
from mt.tokenizer.tokenizer import TokenizerConfig, load
from mt.train.checkpoint.open import open_checkpoint
from mt.train.config import TrainConfig
from mt.train.loop import train

M, SEQ = 16, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, their database `db`, a Retro `retro` trained on both for a few steps, and a GPT `gpt`."""
    folder = tmp_path_factory.mktemp("retro")
    write(folder / "a", texts(40, 1, 8))
    build_db(
        config.build(
            BuildDbConfig,
            (
                "test",
                {
                    "data_path": [str(folder / "a")],
                    "output": str(folder / "db"),
                    "tokenizer_type": "ByteLevelTokenizer",
                    "chunk_length": M,
                    "num_neighbors": 2,
                    "workers": 1,
                },
            ),
        )
    )
    neighbors(
        config.build(
            NeighborsConfig,
            (
                "test",
                {
                    "data_path": [str(folder / "a")],
                    "split": "100,0",
                    "seq_length": SEQ,
                    "db": str(folder / "db"),
                    "output": str(folder / "near"),
                    "train_samples": 80,
                    "num_neighbors": 2,
                    "workers": 1,
                },
            ),
        )
    )
    tree = {
        "num_layers": 6,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "data_path": [str(folder / "a")],
        "seq_length": SEQ,
        "split": "100,0",
        "tokenizer_type": "ByteLevelTokenizer",
        "lr": 1e-2,
        "lr_warmup_iters": 2,
        "micro_batch_size": 8,
        "train_iters": 10,
        "eval_iters": 0,
        "init_method_std": 0.1,
    }
    retro = {"retro_add_retriever": True, "retro_chunk_length": M, "retro_project_dir": str(folder / "near")}
    train(config.build(TrainConfig, ("test", tree | retro | {"save": str(folder / "retro")})))
    train(config.build(TrainConfig, ("test", tree | {"save": str(folder / "gpt"), "train_iters": 3})))
    (folder / "text.txt").write_text(" ".join(texts(30, 5, 8)))
    (folder / "words.jsonl").write_text(
        "".join(f'{{"text": "{text[:-1]}"}}\n' for text in texts(30, 6, 8) if 40 < len(text) < 400)
    )
    return folder


def retrieval(folder, gate=1.0):
    return Retrieval(retro_db=str(folder / "db"), retro_attention_gate=gate)


def test_the_first_neighbour_of_a_chunk_of_the_database_is_the_chunk_itself(folder):
    look_up = Retriever(
        folder / "db",
        load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer")),
        chunk_length=M,
        num_neighbors=3,
    )
    known = Neighbors(folder / "db")
    whole = np.flatnonzero(known.chunks.tokens(np.arange(len(known)))[1].all(1))[::7]
    chunks, _ = known.chunks.tokens(whole)
    tokens, mask = look_up(chunks)
    assert tokens.shape == (len(whole), 3, 2 * M)
    assert (tokens[:, 0, :M] == chunks).all()
    assert mask[:, 0, :M].all()


def test_generated_tokens_have_the_log_probabilities_of_the_whole_text_alone_and_in_a_batch(folder):
    """Greedy tokens are generated one by one with a cache, and scored in one pass over the text."""
    model = open_model(open_checkpoint(folder / "retro"), "positions", 4, retrieval(folder))
    prompts = [
        model.tokenizer.encode(text)
        for text in ("river", "the mountain sings. winter", "planet burns. horse w", "letter turns. x")
    ]
    found = model.generate(prompts, Sampling(max_new_tokens=30, greedy=True))
    alone = [model.generate([prompt], Sampling(max_new_tokens=30, greedy=True))[0] for prompt in prompts]
    plain = open_model(open_checkpoint(folder / "retro"), "positions", 4)
    differs = False
    for prompt, one, many in zip(prompts, alone, found, strict=True):
        assert one.ids == many.ids
        (scored,) = model.rolling([([*prompt, *one.ids], len(prompt))])
        np.testing.assert_allclose(one.logprobs, scored, atol=2e-5)
        (without,) = plain.rolling([([*prompt, *one.ids], len(prompt))])
        until = max(0, M - len(prompt))  # tokens before the first chunk ends
        np.testing.assert_allclose(scored[:until], without[:until], atol=2e-5)
        differs |= bool(np.abs(scored - without).max() > 1e-3)
    assert differs


def test_commands_use_the_database_or_with_gate_0_the_gpt_within(folder):
    shared = {"load": str(folder / "retro")}
    scores = {}
    for name, how in {
        "with": {"retro_db": str(folder / "db")},
        "gate": {"retro_db": str(folder / "db"), "retro_attention_gate": 0},
        "without": {"retro_attention_gate": 0},
    }.items():
        scores[name] = wikitext(
            config.build(WikitextConfig, ("test", shared | how | {"valid_data": str(folder / "text.txt")}))
        )["scores"]["loss"]
        words = lambada(
            config.build(
                LambadaConfig, ("test", shared | how | {"valid_data": [str(folder / "words.jsonl")]})
            )
        )
        assert words["examples"] > 5
        texts_ = generate(
            config.build(
                GenerateConfig,
                (
                    "test",
                    shared
                    | how
                    | {
                        "prompts": ["river sings. the mountain"],
                        "tokens_to_generate": 20,
                        "greedy": True,
                    },
                ),
            )
        )
        assert len(texts_["samples"][0]["tokens"]) == 20
    assert scores["with"] != scores["gate"] == scores["without"]


def test_without_a_database_the_logits_are_those_of_the_gpt_within(folder):
    retro = open_model(open_checkpoint(folder / "retro"), "positions", 4)
    gpt = open_model(open_checkpoint(folder / "gpt"), "positions", 4)
    gpt.model.load_state_dict(
        {name: p for name, p in retro.model.state_dict().items() if ".cross" not in name}
    )
    tokens = torch.randint(1, 200, (2, 40))
    assert torch.equal(retro.model.logits(retro.model(tokens)), gpt.model.logits(gpt.model(tokens)))


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(
        UserError,
        match=(
            r"holds a Retro model; give the database of its neighbours with --retro-db, or"
            r" --retro-attention-gate 0 for the GPT inside"
        ),
    ):
        open_model(open_checkpoint(folder / "retro"), "positions", 4, Retrieval())
    with pytest.raises(UserError, match=r"holds a model without retrieval; leave it out"):
        open_model(open_checkpoint(folder / "gpt"), "positions", 4, retrieval(folder))
    with pytest.raises(UserError, match=r"is not a finished retrieval database"):
        open_model(open_checkpoint(folder / "retro"), "positions", 4, Retrieval(retro_db=str(tmp_path)))
    with pytest.raises(UserError, match=r"has chunks of 16 tokens, and the model reads chunks of 8"):
        Retriever(
            folder / "db",
            load(TokenizerConfig(tokenizer_type="ByteLevelTokenizer")),
            chunk_length=8,
            num_neighbors=2,
        )
    other = load(TokenizerConfig(tokenizer_type="NullTokenizer", tokenizer_vocab_size=300))
    with pytest.raises(UserError, match=r"has tokens of another tokenizer than the model's"):
        Retriever(folder / "db", other, chunk_length=M, num_neighbors=2)
    with pytest.raises(UserError, match=r"have no effect with --url; pass them to `mt serve`"):
        config.build(
            GenerateConfig, ("test", {"url": "http://localhost:1", "prompts": ["x"], "retro_db": "db"})
        )
