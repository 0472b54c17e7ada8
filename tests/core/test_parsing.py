"""Files of others: read in bounded memory, checked leaf by leaf, refused in one line."""

import json
import math
import os
import re
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import hypothesis
import pydantic
import pytest
import typing_extensions
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mt.core import parsing
from mt.core.config import UserError
from mt.core.parsing import (
    Count,
    Range,
    check_value,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_yaml,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
DEEP = 1_000_000


@given(VALUES)
def test_json_is_read_as_python_reads_it(value):
    assert parse_json(json.dumps(value).encode(), "f") == value


def refusal(read, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
    said = str(caught.value)
    assert "\n" not in said
    assert said.isprintable()
    assert len(said) < 700
    return said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * DEEP, "nested more than 64 levels deep"),
        (b"[" * DEEP + b"]" * DEEP, "nested more than 64 levels deep"),
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested more than 64 levels deep"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 levels deep"),
        (b'{"n": ' + b"9" * 5000 + b"}", "a number of more than 4,300 digits"),
        (b"[" + b"[]," * 4_000_000 + b"1]", "has 8,000,001 values"),
        (b"\n{", "f, line 2: not valid JSON"),
        (b"", "not valid JSON"),
        (b'\xef\xbb\xbf{"a": 1}', "line 1: not valid JSON"),
        (b'"\xff"', "byte 1 is not UTF-8"),
    ],
    ids=range(10),
)
def test_json_beyond_the_limits_is_refused_in_one_line(data, message):
    assert message in refusal(parse_json, data, "f")


def test_what_python_writes_beyond_json_is_read():
    value = parse_json(b'[NaN, -Infinity, "\\ud800", 123456789012345678901234567890]', "f")
    assert math.isnan(value[0])
    assert value[1:3] == [-math.inf, "\ud800"]
    assert parse_json(b"[" * 64 + b"]" * 64, "f")[0]


def test_a_file_is_opened_only_if_it_is_regular_and_read_only_if_it_is_small(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 10 << 30)
    assert "is not a regular file" in refusal(read_json, tmp_path / "pipe")
    assert "is not a regular file" in refusal(read_json, "/dev/zero")
    assert "is a directory" in refusal(read_json, tmp_path)
    assert "has 10,737,418,240 bytes; such a file has at most 134,217,728" in refusal(
        read_json, tmp_path / "huge"
    )
    assert "no such file" in refusal(read_json, tmp_path / "none")
    assert "is not a name of a file" in refusal(read_json, "a\0b")
    (tmp_path / "five").write_bytes(b"12345")
    assert read_bytes(tmp_path / "five", 5) == b"12345"
    assert "5 bytes; such a file has at most 4" in refusal(read_bytes, tmp_path / "five", 4)
    # what /proc holds is regular and has no size
    assert "more than 2 bytes" in refusal(read_bytes, "/proc/self/status", 1)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: 1\na: 2\n", "line 2: not valid YAML: 'a' is given twice"),
        (b"a: [1\n", "not valid YAML"),
        (b"- 1\n", "must hold `name: value` lines"),
        (b"a: \xff\n", "not UTF-8"),
        (b"a: \x07\n", "special characters are not allowed"),
        (b"a: " + b"[" * DEEP, "line 1: not valid YAML: nested more than 64 levels deep"),
        (b"{a: " * DEEP, "nested more than 64 levels deep"),
        (b"- " * DEEP, "nested more than 64 levels deep"),
        (LAUGHS.encode(), "line 6: not valid YAML: more than 200,000 values, each alias counted"),
        (b"a: &a [1, *a]\n", "stands inside of what it names"),
        (b"a: &a {b: {c: *a}}\n", "stands inside of what it names"),
        (b"b: *a\n", "found undefined alias"),
        (b"x: " + b"9" * 5000 + b"\n", "is no int"),
        (b"b: 2026-99-99\n", "line 1: not valid YAML: '2026-99-99' is no timestamp"),
        (b"b: !!int ''\n", "is no int"),
        (b"b: !!bool maybe\n", "is no bool"),
        (b"b: !!float x\n", "is no float"),
        (b"b: !!timestamp x\n", "is no timestamp"),
        (b'b: "\\UFFFFFFFF"\n', "not valid YAML"),
        (b"? [a]\n: b\n", "a key must be a text"),
        (b"? {a: b}\n: b\n", "a key must be a text"),
        (b"a: !!python/object/apply:os.system [true]\n", "could not determine a constructor"),
        (b"a: !!python/name:os.system\n", "could not determine a constructor"),
    ],
    ids=range(23),
)
def test_a_bad_yaml_file_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(text)
    said = refusal(read_yaml, path)
    assert message in said
    assert str(path) in said


def test_a_missing_yaml_file_is_named(tmp_path):
    assert "no such file" in refusal(read_yaml, tmp_path / "none.yaml")


@hypothesis.settings(max_examples=30)
@given(st.dictionaries(st.text(), VALUES))
def test_yaml_is_read_as_pyyaml_reads_it(tree):
    hypothesis.assume(all("\0" not in key for key in tree))
    for flow in (True, False):
        assert parse_yaml(yaml.safe_dump(tree, default_flow_style=flow)) == tree


def test_an_alias_stands_for_its_value():
    assert parse_yaml("a: &x [1, {b: 2}]\nc: [*x, *x]\n")["c"] == [[1, {"b": 2}]] * 2


class Token(TypedDict):
    content: str
    id: Annotated[int, Range(0, 999)]
    special: NotRequired[bool]


class TheirToken(typing_extensions.TypedDict):
    content: str
    id: Annotated[int, pydantic.Field(ge=0, le=999)]
    special: NotRequired[bool]


KINDS: list[tuple[Any, Any]] = [
    (bool, bool),
    (int, int),
    (float, Annotated[float, pydantic.Field(allow_inf_nan=False)]),
    (str, str),
    (None, None),
    (Literal["x", "y"], Literal["x", "y"]),
    (str | None, str | None),
    (list[int], list[int]),
    (dict[str, int | list[str]], dict[str, int | list[str]]),
    (tuple[int, float], tuple[int, Annotated[float, pydantic.Field(allow_inf_nan=False)]]),
    (Token, TheirToken),
    (list[Token | str], list[TheirToken | str]),
    (Any, Any),
]
NEAR = st.sampled_from(["x", "y", 0, 1, True, None, 1.5, [], {}, [1, 2], [1, 2.5], ["x"]])
TOKENS = st.fixed_dictionaries(
    {"content": NEAR, "id": st.integers(-1, 1000)}, optional={"special": NEAR, "other": NEAR}
)


@given(
    st.sampled_from(KINDS),
    VALUES | NEAR | TOKENS | st.lists(TOKENS | NEAR) | st.dictionaries(st.text(), NEAR),
)
def test_a_value_has_a_type_where_pydantic_finds_so(kinds, value):
    ours, theirs = kinds
    try:
        pydantic.TypeAdapter(theirs).validate_json(json.dumps(value), strict=True)
        fits = True
    except pydantic.ValidationError:
        fits = False
    try:
        assert check_value(value, ours, "f") is value
        assert fits
    except UserError:
        assert not fits


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (
            {"tokens": [{"content": "a", "id": 0}, {"content": "b", "id": 2**31}]},
            dict[str, list[Token]],
            "f: tokens[1].id = 2147483648: must be from 0 to 999; fetch the file again",
        ),
        ([{"id": 0}], list[Token], "f: has no [0].content; fetch the file again"),
        (
            {"\x1b[31m": "x"},
            dict[str, int],
            r"f: ['\x1b[31m'] = 'x': must be a whole number; fetch the file again",
        ),
        (["x" * 1000], list[int], "f: [0] = 'x+...x+': must be a whole number; fetch the file again"),
        (True, int, "f: is True: must be a whole number; fetch the file again"),
        (10**400, float, "f: is 100000000000000000...0000000000000000000: must be a finite number; fetch"),
        (1 << 64, int, "must be a whole number of 64 bits"),
        (-1, Count, "f: is -1: must be from 0 to 9,223,372,036,854,775,807; fetch the file again"),
        (-1, Annotated[int, Range(0)], "f: is -1: must be at least 0; fetch the file again"),
        ("\ud800", str, r"f: is '\ud800': must be text without lone surrogates; fetch the file again"),
        ([1, 2], int | None, "f: is [1, 2]: must be a whole number or null; fetch the file again"),
        ([1], tuple[int, int], "f: is [1]: must be a list of 2; fetch the file again"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_and_the_rule(value, kind, message):
    assert re.search(
        re.escape(message).replace(r"x\+\.\.\.x\+", r"x+\.\.\.x+"), refusal(check_value, value, kind, "f")
    )


def test_the_limits_are_above_what_honest_files_hold():
    """Gemma 3's tokenizer.json: 33 MB, 262,144 tokens and 514,906 merges, each a list of two texts."""
    values = 262_144 + 3 * 514_906
    assert 2 * values < parsing.MOST_VALUES
    assert parsing.JSON_BYTES > 3 * 33_000_000


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_before_a_file_is_dropped(tmp_path, mark):
    (tmp_path / "f").write_bytes(mark + b'{"a": 1}')
    assert parsing.read_json(tmp_path / "f") == read_yaml(tmp_path / "f") == {"a": 1}
    assert parsing.read_text(tmp_path / "f") == '{"a": 1}'


@pytest.mark.parametrize("number", [":".join(["59"] * 3000), "0x" + "f" * 5000, "59:" * 3000 + "1.5"])
def test_a_yaml_number_of_too_many_digits_is_refused_before_it_is_converted(number):
    """PyYAML converts `59:59:...` to base 60 in quadratic time."""
    with pytest.raises(ValueError, match=r"is no (int|float)"):
        parsing.parse_yaml(f"a: {number}")
