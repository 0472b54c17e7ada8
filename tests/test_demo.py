"""The pipeline of examples/demo.yaml with smaller numbers: its results, and runs that were killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mt.commands import pipeline
from mt.core.manifest import file_digest

DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"


def small_pipeline(path, without=None):
    """Writes the demo's pipeline with smaller numbers, perhaps without a stage; returns its path."""
    tree = yaml.safe_load(DEMO.read_text())
    stages = tree["stages"]
    stages["corpus"]["packages"] = ["xxhash"]
    stages["holdout"]["fraction"] = 0.05
    stages["tokenizer"]["vocab_size"] = 1024
    stages["retro"]["max_chunks"] = 60
    stages["index"].update(train_samples=120, valid_samples=8, seq_length=64)
    stages["train"].update(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        seq_length=64,
        train_iters=30,
        micro_batch_size=4,
        global_batch_size=4,
        save_interval=8,
        eval_interval=10,
        eval_iters=2,
    )
    stages["generate"]["tokens_to_generate"] = 8
    stages.pop(without, None)
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_pipeline(tmp_path_factory.mktemp("demo") / "small.yaml")


def command(path, run_dir):
    return [sys.executable, "-m", "mt", "run", str(path), "--run-dir", str(run_dir), "--json"]


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """An undisturbed run in a process of its own: (its directory, its summary, its seconds)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    ended = subprocess.run(command(small, folder), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder, json.loads(ended.stdout), time.monotonic() - began


def numbers(summary):
    return [{k: v for k, v in row.items() if k not in ("seconds", "result")} for row in summary["stages"]]


def scores(folder):
    """Every loss, score and sample of a run."""
    found = {}
    for path in folder.glob("*/manifest.json"):
        m = json.loads(path.read_text())
        found[path.parent.name] = [
            m.get(k)
            for k in (
                "train_loss",
                "valid_loss",
                "curve",
                "valid_curve",
                "scores",
                "samples",
                "unigram_entropy",
            )
        ]
    return found


def data(folder):
    """Digests of all files except manifests, logs and the report, which contain times."""
    skip = ("manifest.json", "pipeline.json", "report.html", "log.jsonl", "run.json")
    return {
        str(p.relative_to(folder)): file_digest(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(skip) and "tfevents" not in p.name
    }


def test_the_stages_of_the_data_have_fewer_and_fewer_documents(small, tmp_path):
    folder = tmp_path / "run"
    summary = pipeline.run(pipeline.RunConfig(pipeline=str(small), run_dir=str(folder), until="tokens"))
    rows = {r["stage"]: r for r in summary["stages"]}
    funnel = [rows[s]["documents"] for s in ("corpus", "clean", "dedup", "holdout")]
    assert funnel == sorted(funnel, reverse=True)
    assert rows["tokens"]["documents"] == rows["decontaminate"]["documents"] > 100
    planned = pipeline.run(pipeline.RunConfig(pipeline=str(small), run_dir=str(folder), dry_run=True))
    assert planned["text"].count("mt ") >= len(yaml.safe_load(small.read_text())["stages"])


@pytest.mark.slow  # 20 s of a CPU: every stage of the demo
def test_every_stage_has_its_output(whole):
    folder, summary, _ = whole
    rows = {r["stage"]: r for r in summary["stages"]}
    funnel = [rows[s]["tokens"] for s in ("corpus", "clean", "dedup", "holdout", "decontaminate")]
    assert funnel == sorted(funnel, reverse=True)
    assert funnel[-1] > 10_000
    assert rows["tokens"]["tokens"] == funnel[-1] + rows["tokens"]["documents"], (
        "one end-of-document token for each document"
    )
    train = json.loads((folder / "train" / "manifest.json").read_text())
    assert train["valid_loss"] < train["curve"][0][1]
    assert "wikitext" in rows
    page = Path(summary["report"]).read_text()
    assert all(f">{stage}<" in page for stage in rows if stage != "report")


@pytest.mark.slow  # after the whole run
def test_a_second_run_does_nothing(whole, small):
    folder, _, _ = whole
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "pipeline.json"}
    assert subprocess.run(command(small, folder), capture_output=True).returncode == 0
    assert {
        p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name != "pipeline.json"
    } == before


@pytest.mark.slow  # tests/commands/test_pipeline.py kills a smaller pipeline
def test_kill_9_at_random_moments_changes_no_byte_and_no_number(whole, small):
    """The last test: it replaces the directory, because a checkpoint's config.yaml contains its path."""
    folder, summary, usual = whole
    undisturbed = numbers(summary), scores(folder), data(folder)
    shutil.rmtree(folder)
    chance = random.Random(5)
    for _ in range(5):
        process = subprocess.Popen(
            command(small, folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(chance.uniform(0.2, 0.6) * usual)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    ended = subprocess.run(command(small, folder), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (numbers(json.loads(ended.stdout)), scores(folder), data(folder)) == undisturbed
