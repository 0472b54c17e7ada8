"""The prose that every Python carries."""

import ast
import json
import pydoc_data.topics
import sys

import pytest

from mt.core.config import UserError
from mt.dataprep.extract.docstrings import docstrings, module_documents
from mt.dataprep.extract.extract import ExtractConfig, extract

SOURCE = '''
"""The module's own words, long enough to keep in the corpus."""
class A:
    """A class that is documented, with a sentence of some length."""
    def f(self):
        """Short."""
    async def g(self):
        """    Indented, and therefore cleaned:

            a second paragraph.
        """
add_docstr(all, r"""
all(input) -> Tensor

Tests if all elements evaluate to True, in the way that torch documents its compiled functions for the reader.
""".format(**common))
'''


def test_docstrings_come_in_source_order_with_their_dotted_names():
    found = list(docstrings(ast.parse(SOURCE)))
    assert [name for name, _ in found] == ["", "A", "A.f", "A.g", ""]
    assert found[3][1] == "Indented, and therefore cleaned:\n\na second paragraph."
    assert found[4][1].startswith("all(input) -> Tensor\n\nTests")


def test_a_module_is_cut_at_headings_and_short_docstrings_are_left_out(tmp_path):
    (tmp_path / "m.py").write_text(SOURCE)
    whole = [d for _, d in module_documents("pkg/m.py", str(tmp_path / "m.py"), 40, 20_000)]
    assert [d.id for d in whole] == ["pkg.m/0"]
    assert "Short." not in whole[0].text
    pieces = [d for _, d in module_documents("pkg/m.py", str(tmp_path / "m.py"), 40, 100)]
    assert [d.id for d in pieces] == [f"pkg.m/{i}" for i in range(len(pieces))]
    assert "\n\n\n".join(d.text for d in pieces) == whole[0].text


@pytest.mark.parametrize(
    ("source", "reasons"), [("def (", ["not_python"]), ("x = '\0'", ["not_python"]), ("", []), ("x = 1", [])]
)
def test_a_file_that_does_not_parse_gives_its_reason_and_one_that_says_nothing_none(
    tmp_path, source, reasons
):
    (tmp_path / "m.py").write_text(source)
    assert [
        (name, removed.reason) for name, removed in module_documents("m.py", str(tmp_path / "m.py"), 1, 100)
    ] == [("m.py", r) for r in reasons]


def test_the_language_reference_is_taken_whole_and_any_number_of_workers_gives_the_same_bytes(tmp_path):
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


def test_a_library_that_is_missing_is_named_with_the_command_that_brings_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["mt.dataprep.extract.extract"].LIBRARIES, "warc", ("no-such-library",))
    (tmp_path / "a.warc").write_bytes(b"")
    with pytest.raises(
        UserError,
        match=(
            r"--source warc needs the package no-such-library; install it with: pip install 'mt\[extract\]'"
        ),
    ):
        extract(ExtractConfig(source="warc", input=(str(tmp_path / "a.warc"),), output=str(tmp_path / "out")))
