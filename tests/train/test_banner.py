"""The first lines of a run say what is trained, compared with numbers worked by hand and with a real run."""

import json
import re

import numpy as np
import pytest
import torch

from mt.core.config import build
from mt.indexed.format import IndexedWriter
from mt.indexed.gpt_dataset import build_datasets, token_share
from mt.train.banner import banner, memory_of_a_process, uneven_split
from mt.train.config import TrainConfig, load_datasets, training_schedule
from mt.train.loop import train
from mt.train.model.config import resolve
from mt.train.model.family import count_parameters
from mt.train.parallel.mesh import Axis, Mesh

pytestmark = pytest.mark.usefixtures("one_thread")
ALONE = Mesh(0, 1, torch.device("cpu"))


def text_of(settings, tmp_path, mesh=ALONE, **changes):
    config = settings(tmp_path / "out", **changes)
    shape = resolve(config.model, vocab_size=60, seq_length=config.data.seq_length)
    schedule = training_schedule(config, mesh)

    class Tokenizer:
        eod, vocab_size = 59, 60

    data, valid = load_datasets(config, schedule, Tokenizer(), ALONE)
    return banner(config, shape, schedule, mesh, data, valid), config, shape


def test_a_row_tells_model_data_steps_devices_memory_and_output(settings, tmp_path):
    text, config, shape = text_of(settings, tmp_path)
    rows = dict(line.split(maxsplit=1) for line in text.splitlines()[1:])
    assert list(rows) == ["model", "data", "split", "steps", "devices", "memory", "output"]
    assert re.fullmatch(r"[\d,]+: training [\d.]+%(, validation [\d.]+%)? of the tokens", rows["split"])
    assert f"{count_parameters(shape):,} parameters: {shape.num_layers} layers" in rows["model"]
    samples = config.train.train_iters * config.train.global_batch_size
    tokens = samples * config.data.seq_length
    assert rows["data"].startswith(f"{tokens:,} tokens, ")
    assert rows["steps"].startswith(f"{config.train.train_iters} of {config.train.global_batch_size} samples")
    assert rows["devices"] == "one process with 1 thread on processors, float32"
    assert str(tmp_path / "out") in rows["output"]


def test_a_split_whose_last_documents_are_long_is_told_with_its_remedy(tmp_path):
    writer = IndexedWriter(tmp_path / "p", np.uint16, tmp_path / "work")
    lengths = [10] * 97 + [1000] * 3
    writer.add(np.zeros(sum(lengths)), lengths, [1] * 100)
    writer.finish()
    tree = {
        "model": {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 1},
        "train": {"train_iters": 1},
        "checkpoint": {"save": "x"},
        "data": {"data_path": [str(tmp_path / "p")], "seq_length": 8, "split": "97,3,0"},
    }
    config = build(TrainConfig, ("test", tree))
    datasets = build_datasets(config.data, (1, 1, 0))[:2]
    assert [round(token_share(data), 3) for data in datasets] == [0.244, 0.756]
    assert "validation has 75.6% of the tokens, not 3.0%; a few documents" in uneven_split(config, *datasets)
    assert "--max-chars 1000`" in uneven_split(config, *datasets)
    assert "the last ones are longer" in uneven_split(config, *datasets)
    writer = IndexedWriter(tmp_path / "q", np.uint16, tmp_path / "more")
    lengths = [10] * 970 + [30] * 30
    writer.add(np.zeros(sum(lengths)), lengths, [1] * 1000)
    writer.finish()
    many = build(TrainConfig, ("test", tree), ("more", {"data": {"data_path": [str(tmp_path / "q")]}}))
    told = uneven_split(many, *build_datasets(many.data, (1, 1, 0))[:2])
    assert "validation has 8.5% of the tokens, not 3.0%; write the data again with" in told
    writer = IndexedWriter(tmp_path / "r", np.uint16, tmp_path / "pieces")  # cut at 20,000 characters before
    lengths = [500] * 300 + [5000] * 60
    writer.add(np.zeros(sum(lengths)), lengths, [1] * 360)
    writer.finish()
    pieces = build(TrainConfig, ("test", tree), ("more", {"data": {"data_path": [str(tmp_path / "r")]}}))
    assert "--max-chars 10000`" in uneven_split(pieces, *build_datasets(pieces.data, (1, 1, 0))[:2])
    even = build(TrainConfig, ("test", tree), ("more", {"data": {"split": "1,1"}}))
    assert not uneven_split(even, *build_datasets(even.data, (1, 1, 0))[:2])


def test_the_memory_of_a_rank_is_its_share():
    def mesh(tp, pp, dp):
        axes = {name: Axis(size, 0, None) for name, size in {"tp": tp, "pp": pp, "dp": dp}.items()}
        return Mesh(0, tp * pp * dp, torch.device("cpu"), **axes)

    tree = {
        "model": {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4},
        "train": {"train_iters": 1},
        "checkpoint": {"save": "x"},
        "data": {"data_path": ["x"], "seq_length": 64},
    }
    one, full = (
        build(TrainConfig, ("test", {**tree, "parallel": {"data_parallel_sharding": sharding}}))
        for sharding in ("optimizer", "full")
    )
    shape = resolve(one.model, vocab_size=128, seq_length=64)
    alone = memory_of_a_process(one, shape, 1_000_000, ALONE)
    assert alone[:3] == (4_000_000, 4_000_000, 8_000_000)
    cut = memory_of_a_process(one, shape, 1_000_000, mesh(2, 2, 5))
    assert cut[:3] == (1_000_000, 1_000_000, 400_000)
    assert cut.activations == alone.activations // 2
    assert memory_of_a_process(full, shape, 1_000_000, mesh(2, 2, 5))[:3] == (200_000, 200_000, 400_000)


def test_a_run_says_what_it_starts_from_and_how_long_it_takes(settings, tmp_path, capsys):
    config = lambda **changes: settings(tmp_path / "run", **changes)
    train(config(train_iters=8, exit_interval=4, log_interval=1))
    first = capsys.readouterr().err
    assert first.startswith("mt train\n  model")
    assert "  start    new weights\n" in first
    steps = [line for line in first.splitlines() if line.startswith("step ") and "loss" in line]
    assert all("elapsed" in line for line in steps if "  lr " in line)
    assert re.search(r"^step 2/8 .* left \d+ s$", first, re.MULTILINE)
    assert "MFU" not in first
    train(config(train_iters=8, exit_interval=4, log_interval=1))
    again = capsys.readouterr().err
    assert re.search(r"^  start    resumes from .*step_00000004$", again, re.MULTILINE)
    assert not re.search(r"^step 8/8 .* left ", again, re.MULTILINE)
    assert json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["step"] == 8
