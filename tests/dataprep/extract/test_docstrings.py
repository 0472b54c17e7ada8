"""Docstrings of source files, compared with Python's `__doc__`; files that do not parse."""

import ast
import importlib
import inspect
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.dataprep.extract.docstrings import cleaned, docstrings, module_documents, python_files

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


def test_a_module_is_split_at_headings_and_short_docstrings_are_skipped(tmp_path):
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
def test_a_file_that_does_not_parse_gives_a_reason_and_one_without_docstrings_nothing(
    tmp_path, source, reasons
):
    (tmp_path / "m.py").write_text(source)
    assert [
        (name, removed.reason) for name, removed in module_documents("m.py", str(tmp_path / "m.py"), 1, 100)
    ] == [("m.py", r) for r in reasons]


@pytest.mark.parametrize("name", ["textwrap", "argparse", "json.decoder", "collections.abc"])
def test_docstrings_of_a_module_are_those_of_its_objects(name):
    module = importlib.import_module(name)
    found = dict(docstrings(ast.parse(inspect.getsource(module))))
    assert found.pop("", inspect.cleandoc(module.__doc__ or "")) == inspect.cleandoc(module.__doc__ or "")
    for path, text in found.items():
        value = module
        for part in path.split("."):
            value = inspect.getattr_static(value, part, None)
        if value is not None:  # some are defined in a branch for another platform, or within a function
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            assert inspect.cleandoc(function.__doc__) == text
    if hasattr(module, "TextWrapper"):
        assert "TextWrapper.wrap" in found


def test_a_module_is_split_so_that_a_document_has_at_most_so_many_characters(tmp_path):
    source = "".join(f'def f{i}():\n    """{"x" * 30}"""\n' for i in range(5))
    (tmp_path / "m.py").write_text(source)
    section = len("f0\n\n") + 30
    for max_chars, sizes in [(section + 29, [1] * 5), (section + 30, [2, 2, 1]), (2 * section + 30, [3, 2])]:
        found = [d for _, d in module_documents("m.py", str(tmp_path / "m.py"), 30, max_chars)]
        assert [d.text.count("x" * 30) for d in found] == sizes
    assert list(module_documents("m.py", str(tmp_path / "m.py"), 31, 100)) == []


def test_the_name_of_a_package_is_that_of_its_folder(tmp_path):
    (tmp_path / "m.py").write_text(f'"""{"x" * 50}"""')
    for file, name in [("a/b/__init__.py", "a.b"), ("a/b.pyi", "a.b"), ("b.py", "b")]:
        (found,) = [d for _, d in module_documents(file, str(tmp_path / "m.py"), 1, 100)]
        assert (found.id, found.meta) == (f"{name}/0", {"title": name})


def test_short_texts_in_calls_are_not_docstrings():
    calls = f'add_docstr(f, "{"x" * 100}")\nm.add_newdoc("m", "f", "{"y" * 101}")\nprint("{"z" * 200}")'
    assert list(docstrings(ast.parse(calls))) == [("", "y" * 101)]


def test_files_of_the_standard_library_and_of_packages_come_in_a_fixed_order_without_tests():
    files, versions = python_files(("xxhash",))
    names = [name for name, _ in files]
    assert {"ast.py", "json/decoder.py", "pydoc_data/topics.py", "xxhash/__init__.py"} <= set(names)
    assert not [name for name in names if "/test/" in f"/{name}" or "site-packages" in name]
    own = [name for name in names if name.startswith("xxhash")]
    assert names[-len(own) :] == own == sorted(own)
    assert names[: -len(own)] == sorted(names[: -len(own)], key=lambda name: name.split("/"))
    assert versions == {"python": sys.version.split()[0], "xxhash": importlib.metadata.version("xxhash")}
    with pytest.raises(UserError, match="packages: 'no-such-package' is not installed; install it"):
        python_files(("no-such-package",))


@given(st.text(" \t\na", max_size=30))
def test_docstrings_are_cleaned_as_in_the_standard_library(text):
    assert cleaned(text) == inspect.cleandoc(text)
