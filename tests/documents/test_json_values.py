"""The values of .json files, compared with json on the whole text."""

import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.documents import compression, json_values
from mt.documents.files import Refused
from mt.documents.json_values import is_one_value, values
from mt.tests.memory import peak_growth

quick = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))


def read(data: bytes, limit: int = 1 << 20, block: int = 1 << 18):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "READ_BYTES", block)
        return list(values(io.BytesIO(data), limit))


@quick
@given(
    st.lists(VALUES, max_size=6),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
    st.booleans(),
    st.integers(3, 40),
)
def test_an_array_gives_its_values_with_their_places(items, indent, ascii, mark, block):
    data = json.dumps(items, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    data = b"\xef\xbb\xbf" * mark + data + b"\n"
    found = read(data, block=block)
    assert [json.loads(raw) for _, _, raw in found] == items
    for offset, line, raw in found:
        assert data[offset:].startswith(raw)
        assert line == data.count(b"\n", 0, offset) + 1


@quick
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5), st.integers(1, 40))
def test_objects_over_several_lines_are_read_one_after_another(items, block):
    data = "\n".join(json.dumps(item, indent=2) for item in items).encode()
    assert [json.loads(raw) for _, _, raw in read(data, block=block)] == items


@quick
@given(st.binary(max_size=60), st.integers(1, 9))
def test_any_bytes_are_read_to_the_end(data, block):
    found = read(b"[" + data, block=block)
    assert len(found) <= len(data) + 1


@pytest.mark.parametrize(
    ("data", "good", "reason"),
    [
        (b'[{"a": 1}, {"b": 2}', 2, "the array does not end"),
        (b'[{"a": 1} {"b": 2}]', 1, "'{' stands where a comma or the end of the array must be"),
        (b'[{"a": 1}] x', 1, "'x' stands after the end of the array"),
        (b'[{"a": 1}, }', 1, "'}' is not the beginning of a JSON value"),
    ],
)
def test_what_is_no_json_any_more_is_one_refusal_with_the_reason(data, good, reason):
    found = [value for _, _, value in read(data)]
    assert [isinstance(value, Refused) for value in found] == [False] * good + [True]
    assert reason in found[-1].reason


@pytest.mark.parametrize("block", [3, 1 << 18])
def test_a_value_that_is_too_long_is_refused_and_the_next_is_read(block):
    long = json.dumps({"text": 'a"\\[' * 400}).encode()
    found = [value for _, _, value in read(b"[1, " + long + b', "b"]', limit=100, block=block)]
    assert (found[0], found[2]) == (b"1", b'"b"')
    assert len(found[1]) == len(long)
    assert long.startswith(found[1].beginning)


class Repeated(io.RawIOBase):
    def __init__(self, size):
        self.left = size

    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return b"[" + b'"' * (size > 1) + b"x" * (size - 2) if self.left else b'x"]'


def count(size: int) -> int:
    return sum(1 for _ in values(Repeated(size), 1 << 20))


def test_a_long_value_is_passed_over_in_little_memory():
    found, grown = peak_growth("mt.tests.documents.test_json_values", "count", (1 << 20, 256 << 20))
    assert found >= 1
    assert grown < 30 << 20


class Brackets(io.RawIOBase):
    """A file of opening brackets that does not end."""

    def read(self, size=-1):
        return b"[" * size


def test_a_value_that_is_nested_too_deep_ends_the_reading_at_once():
    ((_, _, value),) = values(Brackets(), 1 << 20)
    assert value.reason == "is nested deeper than 1024 levels; the rest is not read"
    deep = b"[" * 1000 + b"]" * 1000
    assert [found for _, _, found in values(io.BytesIO(b"[" + deep + b", 1]"), 1 << 20)] == [deep, b"1"]


@pytest.mark.parametrize(
    ("data", "one"),
    [
        (b'[\n{"text": "a"}]', True),
        (b'[{"text": "a"}]', True),
        (b' \n[{"text": "a"},\n{}]', True),
        (b'{\n "text": "a"\n}', True),
        (b'{"text": "a",\n "b": 1}', True),
        (b'{"text": "a"}\n{"text": "b"}', False),
        (b'["text"]\n{"text": "b"}', False),
        (b'{"text": "a"\n{"text": "b"}', False),
        (b"", False),
        (b"nonsense", False),
        (b"[" + b"1, " * 100_000 + b"1]", True),
    ],
)
def test_the_beginning_tells_an_array_from_json_lines(tmp_path, data, one):
    (tmp_path / "a.json").write_bytes(data)
    assert is_one_value(tmp_path / "a.json", "utf-8") == one
    assert json_values.BEGINNING < 100_000
