"""The extract command with --source python, and settings that it refuses before it reads anything."""

import json
import pydoc_data.topics
import sys

import pytest

from mt.core.config import UserError
from mt.dataprep.extract import docstrings
from mt.dataprep.extract.extract import ExtractConfig, extract


def test_the_language_reference_is_complete_and_any_number_of_workers_gives_the_same_bytes(
    tmp_path, monkeypatch
):
    files, versions = docstrings.python_files(("xxhash",))
    some = [
        f for i, f in enumerate(files) if i % 8 == 0 or f[0] == "pydoc_data/topics.py"
    ]  # all files take long
    monkeypatch.setattr(docstrings, "python_files", lambda packages: (some, versions))
    monkeypatch.setattr(sys.modules["mt.dataprep.extract.extract"], "SHARD_FILES", 30)
    one = extract(ExtractConfig(output=str(tmp_path / "1"), packages=("xxhash",), workers=1))
    two = extract(ExtractConfig(output=str(tmp_path / "2"), packages=("xxhash",), workers=2))
    assert [o["xxh3"] for o in one["outputs"]] == [o["xxh3"] for o in two["outputs"]]
    documents = [
        json.loads(line) for path in sorted((tmp_path / "1").glob("*.jsonl")) for line in path.open()
    ]
    topics = {d["title"]: d["text"] for d in documents if d["id"].startswith("pydoc_data.topics/")}
    assert topics == pydoc_data.topics.topics
    assert one["counts"]["documents"] == len(documents)


def test_a_package_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(UserError, match="'no-such-package' is not installed"):
        extract(ExtractConfig(output=str(tmp_path), packages=("no-such-package",)))


def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["mt.dataprep.extract.extract"].LIBRARIES, "warc", ("no-such-library",))
    (tmp_path / "a.warc").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=(
            r"--source warc needs the package no-such-library; install it with: pip install"
            r" 'mt-lm\[extract\]'"
        ),
    ):
        extract(ExtractConfig(source="warc", input=(str(tmp_path / "a.warc"),), output=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_chars": 0}, "max_chars = 0 must be at least 1"),
        ({"shard_bytes": 1023}, "shard_bytes = 1023 must be at least 1024"),
        (
            {"extractor": "resiliparse"},
            "extractor = resiliparse needs source = warc; omit it with source = python",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    ExtractConfig(output="y", max_chars=1, shard_bytes=1024)
    with pytest.raises(UserError, match=message):
        ExtractConfig(output="y", **settings)
