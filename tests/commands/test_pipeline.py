"""Pipelines of stages: what runs, what is skipped, refused files, and pipelines that were killed."""

import html
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from mt.commands import pipeline
from mt.commands.report.report import ReportConfig, report
from mt.core.config import UserError
from mt.core.manifest import file_digest
from mt.tests import forked

TEXTS = [
    " ".join(
        random.Random(i).choices(
            [
                "the",
                "quick",
                "brown",
                "fox",
                "jumps",
                "over",
                "a",
                "lazy",
                "dog",
                "and",
                "then",
                "rests",
                "near",
                "some",
                "old",
                "river",
            ],
            k=80,
        )
    )
    for i in range(300)
]


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(TEXTS + TEXTS[:20]))
    )
    return path


def write(tmp_path, stages, **top):
    path = tmp_path / "p.yaml"
    path.write_text(
        yaml.safe_dump({"run_dir": str(tmp_path / "run"), **top, "stages": stages}, sort_keys=False)
    )
    return str(path)


def two_stages(documents, **clean):
    return {
        "clean": {
            "run": "data clean",
            "input": str(documents),
            "preset": "prose",
            "shard_bytes": 65536,
            **clean,
        },
        "dedup": {"run": "data dedup", "input": "${clean}"},
        "report": {"run": "report", "run_dir": "${run_dir}"},
    }


def finished(tmp_path):
    """Stage -> modification time of its manifest."""
    return {p.parent.name: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*/manifest.json")}


def test_a_second_run_does_nothing_and_a_changed_setting_reruns_its_stage_and_the_later_ones(
    tmp_path, documents
):
    pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, two_stages(documents))))
    first = finished(tmp_path)
    assert set(first) == {"clean", "dedup", "report"}
    pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, two_stages(documents))))
    assert finished(tmp_path) == first
    stages = two_stages(documents)
    stages["dedup"]["threshold"] = 0.8
    pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, stages)))
    second = finished(tmp_path)
    assert [s for s in first if second[s] != first[s]] == [s for s in first if s != "clean"]
    stages["clean"]["workers"] = 1  # a runtime setting
    pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, stages)))
    assert finished(tmp_path) == second
    documents.write_text(
        documents.read_text() + json.dumps({"text": "A new document of the corpus, " * 20}) + "\n"
    )
    pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, stages)))
    assert all(finished(tmp_path)[s] != second[s] for s in second)


def test_the_summary_has_the_table_and_the_report(tmp_path, documents):
    summary = pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, two_stages(documents))))
    rows = {r["stage"]: r for r in summary["stages"]}
    assert rows["clean"]["documents"] == 320
    assert rows["dedup"]["documents"] == 300
    assert "removed 20 (exact 20)" in summary["text"]
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert summary["report"] in summary["text"]
    assert "<h1><span>run</span></h1>" in page
    assert "exact" in page
    assert "default-src 'none'" in html.unescape(page), "it loads nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["clean"].update(threshhold=1), "stage clean: unknown setting threshhold"),
        (
            lambda s: s["dedup"].update(input="${claen}"),
            r"\$\{claen\} does not name an earlier stage; did you mean clean\?",
        ),
        (lambda s: s["dedup"].update(run="data dedupe"), "is not a command of mt; did you mean data dedup"),
        (lambda s: s["dedup"].pop("run"), "needs `run:`"),
        (lambda s: s.update({"a b": {"run": "report"}}), "letters, digits"),
        (lambda s: s["clean"].update(run="doctor"), "writes no output: it cannot be a stage"),
    ],
)
def test_mistakes_in_the_file_are_reported_before_anything_runs(tmp_path, documents, change, message):
    stages = two_stages(documents)
    change(stages)
    with pytest.raises(UserError, match=message):
        pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, stages)))
    assert not (tmp_path / "run").exists()


def test_unknown_keys_and_stages_are_named(tmp_path, documents):
    with pytest.raises(UserError, match="unknown key 'stagse'"):
        pipeline.load(write(tmp_path, {}, stagse=1))
    with pytest.raises(UserError, match="until = 'dedupe' is not a stage"):
        pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, two_stages(documents)), until="dedupe"))
    assert (
        pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, two_stages(documents)), dry_run=True))[
            "text"
        ].count("mt data")
        == 2
    )


def test_a_launched_stage_gives_the_same_bytes(tmp_path, documents):
    stages = two_stages(documents)
    pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, stages)))
    before = digests(tmp_path / "run")
    stages["dedup"]["launch"] = sys.executable
    pipeline.run(
        pipeline.RunConfig(pipeline=write(tmp_path, stages, run_dir=str(tmp_path / "other" / "run")))
    )
    assert digests(tmp_path / "other" / "run") == before
    stages["dedup"]["launch"] = "no-such-launcher"
    with pytest.raises(UserError, match="'no-such-launcher' is not installed"):
        pipeline.run(pipeline.RunConfig(pipeline=write(tmp_path, stages)))


def digests(folder):
    """Name -> digest of every data file; manifests and reports contain times and are left out."""
    skip = ("manifest.json", "run.json", "pipeline.json", "report.html", ".launch.yaml")
    return {
        str(p.relative_to(folder)): file_digest(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(skip)
    }


def test_records_set_aside_in_a_stage_give_exit_code_3(tmp_path, documents):
    with open(documents, "a") as file:
        file.write('{"text": null}\n')
    path = write(tmp_path, two_stages(documents, on_error="skip"))
    ended = forked.run("run", path)
    assert ended.returncode == 3, ended.stderr
    assert json.loads((tmp_path / "run" / "clean" / "rejects.jsonl").read_text())["place"] == "line 321"
    strict = write(tmp_path, two_stages(documents), run_dir=str(tmp_path / "strict"))
    ended = forked.run("run", strict)
    assert ended.returncode == 2
    assert b"line 321: 'text' is null" in ended.stderr


@pytest.mark.slow  # tests/test_fineweb.py kills another pipeline once
def test_a_pipeline_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, documents):
    path = write(tmp_path, two_stages(documents))
    pipeline.run(pipeline.RunConfig(pipeline=path))
    whole = digests(tmp_path / "run")
    other = tmp_path / "killed" / "run"
    command = [sys.executable, "-m", "mt", "run", path, "--run-dir", str(other)]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    usual = time.monotonic() - started
    import shutil

    shutil.rmtree(other)
    chance = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(chance.uniform(0.3, 1.0) * usual)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert digests(other) == whole


def test_a_report_of_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no output of mt"):
        report(ReportConfig(run_dir=(str(tmp_path),)))


def without_packages(monkeypatch, *names):
    there = pipeline.importlib.util.find_spec
    monkeypatch.setattr(
        pipeline.importlib.util, "find_spec", lambda name: None if name in names else there(name)
    )


def test_the_demo_leaves_out_the_stage_retro_without_its_packages_and_tells_it(tmp_path, monkeypatch, capsys):
    without_packages(monkeypatch, "faiss")
    with pytest.raises(UserError, match="until = 'retro' is not a stage"):
        pipeline.demo(pipeline.DemoConfig(run_dir=str(tmp_path), until="retro"))
    assert "the stage retro is left out, because it needs faiss;" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["absent", "elsewhere", "first", "another"])
def test_the_demo_ends_with_the_next_command_and_how_to_have_mt_on_the_path(tmp_path, monkeypatch, place):
    """The commands are run by a shell that has the PATH of the user."""
    monkeypatch.chdir(tmp_path)
    programs, others = tmp_path / "my env/bin", tmp_path / "others"
    for folder in (programs, others):
        folder.mkdir(parents=True)
        (folder / "mt").write_text(f"#!/bin/sh\necho {folder.name} $*\n")
        (folder / "mt").chmod(0o755)
    (programs / "activate").write_text(f"PATH='{programs}':$PATH\n")
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    if place == "absent":  # as in a copy of the repository without an install
        (programs / "mt").unlink()
    elif place == "elsewhere":  # as of conda: no script to activate it
        (programs / "activate").unlink()
    first = {"first": f"{programs}:", "another": f"{others}:"}.get(place, "")
    monkeypatch.setenv("PATH", f"{first}/usr/bin:/bin")
    monkeypatch.setattr(pipeline, "run", lambda config, leave_out=(): {"text": "table"})
    summary = pipeline.demo(pipeline.DemoConfig(run_dir="my runs"))
    table, head, *commands = summary["text"].split("\n")
    assert (table, head) == ("table", "try the model:")
    assert len(commands) == (1 if place in ("first", "absent") else 2)
    if place != "absent":
        ended = subprocess.run(["sh", "-c", "\n".join(commands).replace("source", ".")], capture_output=True)
        assert ended.stdout.decode() == "bin generate --load my runs/train --prompts Return the\n"
