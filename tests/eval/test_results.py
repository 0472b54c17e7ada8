"""Results of an evaluation: its output directory, rejected records, and examples divided over ranks."""

import contextlib
import json
import types

import pytest
import torch

from mt.core.config import UserError, configuration, option
from mt.documents import sharding
from mt.documents.reader import Document
from mt.documents.rejects import Reject
from mt.eval.results import Results, map_over_ranks, read_records
from mt.tests.eval.rank_functions import squares_of_ranks
from mt.train.parallel.mesh import Mesh


@configuration()
class Config:
    input: str = option(help="data", role="input")
    output: str | None = option(None, "directory", role="output")
    size: int = option(1, "a setting")
    overwrite: bool = option(False, "replace", role="runtime")


def run(tmp_path, **settings):
    if not (tmp_path / "data").exists():
        (tmp_path / "data").write_text("x")
    config = Config(input=str(tmp_path / "data"), **settings)
    return Results("eval test", config, [config.input])


def test_without_an_output_the_summary_is_returned_and_nothing_is_written(tmp_path, capsys):
    with run(tmp_path) as results:
        with results.predictions() as write:
            write({"id": 1})
        results.reject(Reject("file", "line 3", "is bad", "raw"))
        summary = results.finish({"examples": 1}, scores={"accuracy": 1.0})
    assert summary["counts"] == {"examples": 1, "rejected": 1}
    assert summary["scores"] == {"accuracy": 1.0}
    assert summary["verb"] == "eval test"
    assert summary["settings"]["size"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert capsys.readouterr().err == "mt: file, line 3: is bad; set aside\n"


def test_the_output_has_predictions_and_rejects_and_a_repeated_command_returns_its_summary(tmp_path, capsys):
    out = tmp_path / "out"
    with run(tmp_path, output=str(out)) as results:
        assert results.finished is None
        with results.predictions() as write:
            write({"id": "ä"})
            write({"id": 2})
        results.reject(Reject("file", "line 3", "is bad", "raw"))
        summary = results.finish({"examples": 2}, scores={})
    assert (out / "predictions.jsonl").read_text() == '{"id": "ä"}\n{"id": 2}\n'
    (reject,) = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    assert (reject["place"], reject["raw"]) == ("line 3", "raw")
    assert capsys.readouterr().err == ""
    assert run(tmp_path, output=str(out)).finished == summary
    with pytest.raises(UserError, match="size"):
        run(tmp_path, output=str(out), size=2)


@pytest.mark.parametrize(("error", "empty"), [(UserError("no"), True), (KeyError("bug"), False)])
def test_only_a_users_mistake_leaves_the_output_empty(tmp_path, error, empty):
    out = tmp_path / "out"
    results = run(tmp_path, output=str(out))
    with contextlib.suppress(type(error)), results:
        (out / "partial").write_text("x")
        raise error
    assert (list(out.iterdir()) == []) == empty


def test_checkpoints_are_kept_after_a_users_mistake(tmp_path):
    out = tmp_path / "out"
    with contextlib.suppress(UserError), run(tmp_path, output=str(out)):
        (out / "step_00000001").mkdir()
        raise UserError("no")
    assert (out / "step_00000001").exists()


def test_numbers_of_records_count_unreadable_ones(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"txt": 1}\n{"text": "b"}\n')
    (shard,) = sharding.plan((str(path),), on_error="skip")
    results = run(tmp_path)
    found = [(place, document.text) for place, document in read_records(shard, results)]
    assert found == [("record 1", "a"), ("record 3", "b")]
    assert [reject["place"] for reject in results.rejects] == ["line 2"]


def test_an_unusable_record_is_an_error_or_is_set_aside(tmp_path):
    results, document = run(tmp_path), Document("1", "text")
    with pytest.raises(UserError, match="f, record 1: is short; mend it, or pass --on-error skip"):
        results.refuse(types.SimpleNamespace(path="f", on_error="fail"), "record 1", "is short", document)
    assert results.rejects == []
    results.refuse(types.SimpleNamespace(path="f", on_error="skip"), "record 1", "is short", document)
    assert [reject["raw"] for reject in results.rejects] == ["text"]


def test_one_rank_works_on_blocks_in_order():
    blocks = []
    double = lambda block: blocks.append(block) or [2 * item for item in block]
    found = list(map_over_ranks(Mesh(0, 1, torch.device("cpu")), range(7), double, 3))
    assert found == [(n, 2 * n) for n in range(7)]
    assert blocks == [[0, 1, 2], [3, 4, 5], [6]]


def test_two_ranks_divide_the_blocks_and_both_have_all_results(pool):
    one, two = pool.run(squares_of_ranks, 2, None)
    assert one[0] == two[0] == [(n, n**2) for n in range(7)]
    assert (one[1], two[1]) == ([[0, 1], [4, 5]], [[2, 3], [6]])


def test_a_users_mistake_on_one_rank_is_raised_on_both(pool):
    one, two = pool.run(squares_of_ranks, 2, 4)
    assert one[0] == two[0] == "4 is bad"
