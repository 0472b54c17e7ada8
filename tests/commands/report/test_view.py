"""What the page shows: facts, commands, differences of runs, samples."""

import json

import pytest

from mt.commands.report.stages import find_run
from mt.commands.report.view import differences, facts, run_names, view
from mt.core import provenance
from mt.tests.commands.report.small_runs import fake_stage, fake_training, small_run


@pytest.fixture(scope="module")
def one(run_folder):
    return view([find_run(run_folder)])


@pytest.fixture(scope="module")
def two(run_folder, tmp_path_factory):
    other = small_run(tmp_path_factory.mktemp("other") / "small", scale=0.5, min_chars=5, lr=0.01)
    return view([find_run(run_folder), find_run(other)])


def test_facts_are_on_top(one):
    found = {fact["label"]: fact["values"][0] for fact in one["facts"]}
    assert found["Parameters"] == "123,456"
    assert found["Tokens trained on"] == "32,000"
    assert found["Validation loss"] == "3.6250 nats per token"
    assert found["Documents"].startswith("26 → ")
    assert f"{provenance.machine()['processors']} processors" in found["Machine"]
    assert {"Finished", "mt version", "Total time"} <= found.keys()


def test_each_stage_has_its_command_and_its_settings(one, run_folder):
    stages = {stage["name"]: stage for stage in one["stages"]}
    assert stages["clean"]["command"].startswith(f"mt data clean --input {run_folder}/raw.jsonl --output ")
    assert "--rules whitespace javascript 'length min_chars=20'" in stages["clean"]["command"]
    assert json.loads(stages["clean"]["settings"])["rules"][0] == "whitespace"


def test_a_manifest_of_an_earlier_version_has_a_command_without_settings(tmp_path):
    fake_stage(tmp_path / "a", "eval lambada", scores={"accuracy": 1.0})
    path = tmp_path / "a" / "manifest.json"
    made = json.loads(path.read_text())
    for name in ("command", "directory", "machine"):
        del made[name]
    path.write_text(json.dumps(made))
    shown = view([find_run(tmp_path)])
    assert shown["stages"][0]["command"] == "mt eval lambada …"
    assert {f["label"]: f["values"] for f in shown["facts"]}["Machine"] == ["not recorded"]


def test_two_runs_have_their_differences_listed_and_their_curves_in_one_chart(two):
    assert two["runs"] == ["reports0/small", "other0/small"]
    found = {(d["stage"], d["setting"]): d["values"] for d in two["differences"]}
    assert found["model", "lr"] == ["0.001", "0.01"]
    assert '"length min_chars=5"' in found["clean", "rules"][1]
    assert set(found) == {("model", "lr"), ("clean", "rules")}
    (training,) = two["trainings"]
    loss = training["charts"][0]
    assert [s["run"] for s in loss["series"]] == [0, 0, 1, 1]
    (lambada,) = two["scores"]
    assert [v["shown"] for v in lambada["rows"][0]["values"]] == ["0.25", "0.5"]
    (texts,) = two["samples"]
    assert texts["samples"] == [{"prompt": "x <i>", "texts": [" y & </script> z"] * 2}]
    assert {fact["label"]: fact["differs"] for fact in two["facts"]}["Validation loss"]


def test_the_only_trainings_of_two_runs_are_compared_whatever_their_names(tmp_path):
    fake_training(tmp_path / "a" / "small")
    fake_training(tmp_path / "b" / "large", lr=0.01)
    fake_stage(tmp_path / "b" / "extra", "eval lambada", scores={"accuracy": 1.0})
    runs = [find_run(tmp_path / "a"), find_run(tmp_path / "b")]
    found = {(d["stage"], d["setting"]): d["values"] for d in differences(runs)}
    assert found == {
        ("large / small", "lr"): ["0.001", "0.01"],
        ("extra", ""): ["no such stage", "yes"],
    }
    (training,) = view(runs)["trainings"]
    assert training["runs"] == ["a", "b"]


def test_names_of_runs_differ(tmp_path):
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    for folder in folders:
        fake_training(folder / "model")
    assert run_names([find_run(f) for f in folders]) == ["x/run", "y/run"]
    deep = tmp_path / "z" / "y" / "run"
    fake_training(deep / "model")
    assert len(set(run_names([find_run(f) for f in (folders[1], deep)]))) == 2


def test_a_sample_with_echo_has_its_prompt_once(tmp_path):
    samples = [{"prompt": "ab", "text": "abcd"}, {"prompt": "ab", "text": "abxy"}]
    fake_stage(tmp_path / "s", "generate", settings={"echo": True}, samples=samples)
    (group,) = view([find_run(tmp_path)])["samples"]
    assert [s["texts"] for s in group["samples"]] == [["cd"], ["xy"]]


def test_an_unfinished_training_is_told_and_has_curves(tmp_path):
    fake_training(tmp_path / "model")
    path = tmp_path / "model" / "manifest.json"
    claim = {k: v for k, v in json.loads(path.read_text()).items() if k in ("verb", "settings", "command")}
    path.unlink()
    (tmp_path / "model" / "run.json").write_text(json.dumps(claim))
    run = find_run(tmp_path)
    assert facts(run, [])["Not finished"] == "model"
    shown = view([run])
    assert shown["trainings"][0]["charts"][0]["title"] == "Loss"
    assert shown["stages"][0]["result"] == "not finished"
