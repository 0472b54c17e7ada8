"""Which stages a run has: listed, run by hand, unfinished, moved."""

import json
import shutil

import pytest

from mt.commands.report.stages import find_run, with_present_inputs
from mt.core.config import UserError
from mt.dataprep.look import removed_entries
from mt.dataprep.sampling import RecordFile, draw
from mt.tests.commands.report.small_runs import document_stages, fake_stage, fake_training, log_lines


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "by hand"
    folder.mkdir()
    document_stages(folder)
    return folder


def names(run):
    return [stage.name for stage in run.stages]


def test_stages_run_by_hand_are_found_in_the_order_in_which_they_read_each_other(by_hand):
    run = find_run(by_hand)
    assert run.name == "by hand"
    assert names(run).index("clean") < names(run).index("dedup") < names(run).index("decontaminate")
    assert set(names(run)) == {"clean", "dedup", "decontaminate", "stats"}
    alone = find_run(by_hand / "clean")
    assert (alone.name, names(alone)) == ("clean", ["clean"])


def test_nested_stages_and_prefixes_have_their_path_as_name_and_reports_are_left_out(tmp_path):
    fake_stage(tmp_path / "evals" / "one", "eval lambada", scores={"accuracy": 1.0})
    fake_stage(tmp_path / "evals" / "report", "report")
    fake_stage(tmp_path / "page", "eval lambada")
    fake_stage(tmp_path / "model" / "step_00000001", "train")
    folder = tmp_path / "tokens"
    fake_stage(folder, "data tokenize")
    (folder / "manifest.json").rename(folder / "p.manifest.json")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "a web page"}')
    assert set(names(find_run(tmp_path, [tmp_path / "page"]))) == {"evals/one", "tokens/p"}


@pytest.mark.parametrize("listed", ["relative", "absolute", "of an earlier version"])
def test_the_stages_that_a_pipeline_lists_are_found_in_a_copy_before_the_original(
    by_hand, tmp_path, listed, monkeypatch
):
    place = {"relative": "", "absolute": f"{by_hand}/", "of an earlier version": f"{by_hand.name}/"}[listed]
    copy = tmp_path / "copy"
    shutil.copytree(by_hand, copy)
    listing = [{"name": "clean", "verb": "data clean", "output": f"{place}clean"}]
    (copy / "pipeline.json").write_text(json.dumps(listing))
    monkeypatch.chdir(by_hand.parent)
    run = find_run(copy)
    clean = run.stages[0]
    assert clean.name == "clean"
    assert clean.path.resolve() == copy / "clean" / "manifest.json"


def test_an_output_outside_of_the_folder_is_found_where_the_pipeline_put_it(tmp_path):
    fake_stage(tmp_path / "elsewhere", "eval lambada")
    folder = tmp_path / "run"
    folder.mkdir()
    listing = [{"name": "scores", "verb": "eval lambada", "output": str(tmp_path / "elsewhere")}]
    (folder / "pipeline.json").write_text(json.dumps(listing))
    assert find_run(folder).stages[0].path == tmp_path / "elsewhere" / "manifest.json"


def test_a_training_that_has_not_finished_is_a_stage_with_a_log(tmp_path):
    fake_training(tmp_path / "model")
    made = json.loads((tmp_path / "model" / "manifest.json").read_text())
    (tmp_path / "model" / "manifest.json").unlink()
    claim = {key: made[key] for key in ("verb", "key", "settings", "command", "directory")}
    (tmp_path / "model" / "run.json").write_text(json.dumps(claim))
    (tmp_path / "model" / "log.jsonl").write_text(json.dumps(log_lines()[0]) + "\n")
    (stage,) = find_run(tmp_path).stages
    assert (stage.name, stage.finished, stage.log) == ("model", False, tmp_path / "model" / "log.jsonl")


def test_a_folder_without_outputs_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match=r"holds no output of mt .*name the directory of a run"):
        find_run(tmp_path)
    (tmp_path / "pipeline.json").write_text(
        json.dumps([{"name": "clean", "verb": "data clean", "output": "clean"}])
    )
    with pytest.raises(UserError, match="no stage has finished yet"):
        find_run(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        find_run(tmp_path / "missing")


def test_stages_that_name_each_other_in_a_circle_are_all_found(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        fake_stage(tmp_path / name, "data clean")
        path = tmp_path / name / "manifest.json"
        made = json.loads(path.read_text())
        path.write_text(json.dumps({**made, "key": name, "inputs": [{"path": other, "key": other}]}))
    assert sorted(names(find_run(tmp_path))) == ["a", "b"]


@pytest.mark.parametrize("how", ["moved", "copied without its times", "from another directory"])
def test_the_text_of_a_removed_document_is_found_where_the_folder_is_now(tmp_path, how, monkeypatch):
    """The source of a moved run: dedup reads clean/, whose files are recorded by their old paths."""
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path / "old")
    document_stages(type(tmp_path)("."))  # with relative paths
    folder = tmp_path / "old"
    if how == "moved":
        folder = folder.rename(tmp_path / "new")
    elif how == "copied without its times":
        folder = tmp_path / "new"
        shutil.copytree(tmp_path / "old", folder, copy_function=shutil.copyfile)
        shutil.rmtree(tmp_path / "old")
    monkeypatch.chdir("/")
    run = find_run(folder)
    dedup = next(stage for stage in run.stages if stage.name == "dedup")
    stage = with_present_inputs(dedup, run)
    ((_, drawn),) = draw([RecordFile(folder / "dedup/removed/00000.jsonl", 1)], 1, 0)
    ((entry, text),) = removed_entries(stage, drawn)
    assert text is not None, entry["note"]
    if how == "from another directory":
        clean = next(stage for stage in run.stages if stage.name == "clean")
        assert with_present_inputs(clean, run).manifest["inputs"][0]["path"] == str(folder / "raw.jsonl")
