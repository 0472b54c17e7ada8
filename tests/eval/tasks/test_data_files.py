"""Files at a path, and the two policies for a bad row."""

from pathlib import Path

import pytest

from mt.core.config import UserError
from mt.documents.rejects import Reject
from mt.eval.tasks.data_files import files_in, with_error_policy


def test_files_with_a_suffix_are_found_at_any_depth_of_a_folder_in_order(tmp_path):
    for name in ("b.txt", "a/c.txt", "a/d.tsv", "e.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.txt").mkdir()
    names = lambda *suffixes: [str(p.relative_to(tmp_path)) for p in files_in(str(tmp_path), suffixes)]
    assert names(".txt") == ["a/c.txt", "b.txt"]
    assert names(".tsv", ".json") == ["a/d.tsv", "e.json"]
    assert files_in(str(tmp_path / "e.json"), (".txt",)) == [tmp_path / "e.json"], (
        "a path of a file may have any suffix"
    )


def test_a_path_without_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or directory"):
        files_in(str(tmp_path / "nowhere"), (".txt",))
    with pytest.raises(UserError, match=r"holds no files that end in \.txt or \.tsv; check the path"):
        files_in(str(tmp_path), (".txt", ".tsv"))


def test_a_bad_row_ends_reading_or_is_set_aside():
    def read(path, refuse):
        yield 1
        refuse(Reject(str(path), "line 2", "is bad", "raw"))
        yield 3

    rejected = []
    assert list(with_error_policy(read, rejected.append, "skip")(Path("f"))) == [1, 3]
    assert [reject.place for reject in rejected] == ["line 2"]
    strict = with_error_policy(read, rejected.append, "fail")(Path("f"))
    assert next(strict) == 1
    with pytest.raises(UserError, match="f, line 2: is bad; mend it, or pass --on-error skip"):
        next(strict)
    assert len(rejected) == 1
