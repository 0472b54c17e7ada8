"""A checkpoint that mt train wrote, evaluated by the commands."""

import json
from pathlib import Path

import pytest
import torch

from mt.cli import call
from mt.core.config import UserError
from mt.eval.generation.generate import GenerateConfig, generate
from mt.eval.tasks.lambada import LambadaConfig, lambada
from mt.eval.tasks.wikitext import WikitextConfig, wikitext
from mt.train.checkpoint.open import open_checkpoint

TEXT = "the cat sat on the mat and the dog sat on the log . "


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained for 30 steps on the bytes of one sentence; its positions are twice seq_length."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "corpus.jsonl").write_text(json.dumps({"text": TEXT * 3}) + "\n")
    tokenizer = ["--tokenizer-type", "ByteLevelTokenizer"]
    call(
        ("data", "tokenize"),
        [
            "--input",
            str(folder / "corpus.jsonl"),
            "--output-prefix",
            str(folder / "corpus"),
            "--workers",
            "1",
            *tokenizer,
        ],
    )
    model = (
        "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --max-position-embeddings 64 --seq-length 32"
    )
    steps = (
        "--micro-batch-size 8 --global-batch-size 8 --train-iters 30 --eval-iters 0 --lr 1e-2"
        " --lr-warmup-iters 5 --split 100,0,0"
    )
    call(
        ("train",),
        [
            *model.split(),
            *steps.split(),
            *tokenizer,
            "--data-path",
            str(folder / "corpus_text_document"),
            "--save",
            str(folder / "save"),
        ],
    )
    return str(folder / "save")


def test_wikitext_of_a_checkpoint_is_the_models_own_loss(trained, tmp_path):
    path = tmp_path / "valid.txt"
    path.write_text(TEXT)
    summary = wikitext(WikitextConfig(load=trained, valid_data=str(path)))
    checkpoint = open_checkpoint(trained)
    model, tokenizer = checkpoint.load_model(), checkpoint.load_tokenizer()
    ids = torch.tensor([tokenizer.encode(TEXT)])
    total = 0.0
    for start in range(0, ids.shape[1] - 1, 32):
        window = ids[:, start : start + 33]
        total += float(model.loss(window[:, :-1], window[:, 1:], torch.ones(1, window.shape[1] - 1)))
    assert summary["seq_length"] == 32
    assert summary["scores"]["loss"] == pytest.approx(total / (ids.shape[1] - 1), rel=1e-5)
    assert summary["scores"]["loss"] < 2.5, "far below ln 512, so the model has learned the sentence"


def test_lambada_of_a_checkpoint_writes_a_line_for_each_passage(trained, tmp_path):
    path = tmp_path / "passages.jsonl"
    path.write_text(
        "".join(
            json.dumps({"text": t}) + "\n" for t in ("the cat sat on the mat", "and the dog sat on the log")
        )
    )
    summary = lambada(LambadaConfig(load=trained, valid_data=(str(path),), output=str(tmp_path / "out")))
    assert summary["examples"] == len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 2


@pytest.fixture
def evaluations(trained, tmp_path):
    """evaluations(directory, name=value ...) -> [(task, its configuration)].

    Each has more passages or windows than one block of a rank.
    """
    passages, text = tmp_path / "passages.jsonl", tmp_path / "valid.txt"
    passages.write_text(
        "".join(json.dumps({"text": f"{'the cat ' * (1 + n % 3)}sat on the mat"}) + "\n" for n in range(301))
    )
    text.write_text(TEXT * 15)
    return lambda name, **more: [
        (
            lambada,
            LambadaConfig(
                load=trained, valid_data=(str(passages),), output=str(tmp_path / f"lambada{name}"), **more
            ),
        ),
        (
            wikitext,
            WikitextConfig(
                load=trained,
                valid_data=str(text),
                overlapping_eval=24,
                output=str(tmp_path / f"wikitext{name}"),
                **more,
            ),
        ),
    ]


def test_two_ranks_score_every_example_once_and_bit_for_bit_as_one_does(evaluations, pool):
    for (task, alone), (_, shared) in zip(evaluations("1"), evaluations("2")):
        (one,), (two, nothing) = pool.run(task, 1, alone), pool.run(task, 2, shared)
        assert nothing is None
        for name in ("scores", "counts", "examples"):
            assert one[name] == two[name]
        assert predictions(alone).read_bytes() == predictions(shared).read_bytes()


def test_tensor_parallel_ranks_score_as_one_does(evaluations, pool):
    for (task, alone), (_, cut) in zip(evaluations("1"), evaluations("2", tensor_model_parallel_size=2)):
        (one,), (two, _) = pool.run(task, 1, alone), pool.run(task, 2, cut)
        assert one["counts"] == two["counts"]
        assert two["scores"] == approx(one["scores"])
        for mine, theirs in zip(
            *(map(json.loads, predictions(c).read_text().splitlines()) for c in (alone, cut)), strict=True
        ):
            assert mine == approx(theirs)


def predictions(config):
    return Path(config.output) / "predictions.jsonl"


def approx(tree):
    """A tree of dicts that compares equal to the given one up to the rounding of float32."""
    return (
        {name: approx(value) for name, value in tree.items()}
        if isinstance(tree, dict)
        else pytest.approx(tree, rel=1e-5)
        if isinstance(tree, float)
        else tree
    )


def test_generation_continues_beyond_the_training_length_up_to_the_models_positions(trained):
    (sample,) = generate(
        GenerateConfig(load=trained, prompts=("the cat",), tokens_to_generate=57, greedy=True)
    )["samples"]
    assert len(sample["tokens"]) == 57
    with pytest.raises(
        UserError,
        match="with tokens_to_generate = 58 that is 65, but the model has 64 positions; generate at most 57",
    ):
        generate(GenerateConfig(load=trained, prompts=("the cat",), tokens_to_generate=58))


def test_a_directory_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        generate(GenerateConfig(load=str(tmp_path), prompts=("a",)))
    with pytest.raises(UserError, match="no such"):
        generate(GenerateConfig(load=str(tmp_path / "absent"), prompts=("a",)))
