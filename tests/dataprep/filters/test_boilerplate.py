"""Edits of lines: repeated ones, boilerplate of web pages, and symbols."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.filters.rules import compile_rules


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            "A line that is long enough.\nb\nA line that is long enough.\nb\nend",
            "A line that is long enough.\nb\nb\nend",
        ),
        ("  A line that is long enough.\nA line that is long enough. \n", "  A line that is long enough.\n"),
        ("one\n\n\ntwo\none", "one\n\n\ntwo\none"),
    ],
)
def test_repeated_lines_are_removed_and_short_ones_kept(text, left):
    assert compile_rules(["unique_lines"])(text) == left


def test_short_repeated_lines_are_removed_if_configured():
    assert compile_rules(["unique_lines min_chars=1"])("one\n\n\ntwo\none") == "one\n\n\ntwo"


def test_boilerplate_lines_are_removed_and_long_paragraphs_kept():
    paragraph = "JavaScript is a programming language that every browser understands, " * 4
    text = (
        "The story.\nPlease enable JavaScript.\nThis site uses cookies.\nRead our Privacy Policy\nLorem"
        f" ipsum dolor sit amet.\n{paragraph}\nThe end."
    )
    apply = compile_rules(["boilerplate_lines"])
    assert apply(text) == f"The story.\n{paragraph}\nThe end."
    assert apply("Nothing of the kind,\nhere.") == "Nothing of the kind,\nhere."
    assert apply.edited == {"boilerplate_lines": 1}
    assert "JavaScript" not in compile_rules(["boilerplate_lines max_chars=1000"])(text)


def test_lines_of_symbols_are_removed_and_empty_lines_kept():
    assert (
        compile_rules(["symbol_lines"])("Title\n=====\n\n * * *\na - b\n~~~ 1\n…") == "Title\n\na - b\n~~~ 1"
    )


@given(
    st.lists(st.sampled_from(["***", "- -", " ", "", "a", "--- x", "“”", "•", "\x07", "é", "。"]), max_size=6)
)
def test_lines_of_symbols_are_those_of_datatrove(lines):
    formatters = pytest.importorskip(
        "datatrove.pipeline.formatters", reason="datatrove is not installed: pip install 'mt-lm[dev]'"
    )
    text = "\n".join(lines)
    assert compile_rules(["symbol_lines"])(text).rstrip("\n") == formatters.SymbolLinesFormatter().format(
        text
    ).rstrip("\n")
