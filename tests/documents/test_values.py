"""Every type of Arrow through both readers and both writers, against pyarrow and texts parsed again."""

import base64
import decimal
import json
import math
import random
import re
import subprocess
import sys
import uuid

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import types

from mt.core.config import UserError
from mt.documents import reader, values
from mt.documents.reader import read
from mt.documents.sharding import plan
from mt.documents.writer import Writer

UNITS = ("s", "ms", "us", "ns")
LEAVES = [
    pyarrow.null(),
    pyarrow.bool_(),
    *(getattr(pyarrow, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)),
    pyarrow.float16(),
    pyarrow.float32(),
    pyarrow.float64(),
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.binary(),
    pyarrow.large_binary(),
    pyarrow.binary_view(),
    pyarrow.binary(3),
    pyarrow.decimal32(5, 2),
    pyarrow.decimal64(12, 2),
    pyarrow.decimal128(30, 5),
    pyarrow.decimal256(60, 2),
    pyarrow.date32(),
    pyarrow.date64(),
    pyarrow.time32("s"),
    pyarrow.time32("ms"),
    pyarrow.time64("us"),
    pyarrow.time64("ns"),
    *(pyarrow.timestamp(unit, zone) for unit in UNITS for zone in (None, "UTC", "Europe/Rome", "-03:30")),
    *map(pyarrow.duration, UNITS),
    pyarrow.month_day_nano_interval(),
]
union_fields = lambda inner: [pyarrow.field("a", inner), pyarrow.field("b", pyarrow.bool_())]
INNER = [
    pyarrow.int64(),
    pyarrow.float32(),
    pyarrow.string(),
    pyarrow.timestamp("ns"),
    pyarrow.duration("ns"),
]
NESTED = [
    *(
        make(inner)
        for inner in INNER
        for make in (
            pyarrow.list_,
            pyarrow.large_list,
            lambda inner: pyarrow.list_(inner, 2),
            pyarrow.list_view,
            pyarrow.large_list_view,
            lambda inner: pyarrow.struct([("a", inner), ("b", pyarrow.list_(inner))]),
            lambda inner: pyarrow.map_(pyarrow.string(), inner),
            lambda inner: pyarrow.map_(inner, pyarrow.list_(inner)),
            lambda inner: pyarrow.dictionary(pyarrow.int8(), inner),
            lambda inner: pyarrow.run_end_encoded(pyarrow.int32(), inner),
            lambda inner: pyarrow.dense_union(union_fields(inner)),
            lambda inner: pyarrow.sparse_union(union_fields(inner)),
            lambda inner: pyarrow.list_(pyarrow.list_(pyarrow.struct([("a", inner)]))),
        )
    ),
    pyarrow.dictionary(pyarrow.uint16(), pyarrow.string(), ordered=True),
    pyarrow.uuid(),
    pyarrow.json_(),
    pyarrow.bool8(),
    pyarrow.opaque(pyarrow.int8(), "a", "b"),
    pyarrow.list_(pyarrow.uuid()),
    pyarrow.struct([("a", pyarrow.opaque(pyarrow.timestamp("ns"), "a", "b"))]),
    pyarrow.fixed_shape_tensor(pyarrow.float32(), (2,)),
]
# pyarrow writes them to Parquet, but makes no arrays of them from values of Python.
REFUSED = [str(NESTED[-3]), str(NESTED[-2])]
EVERY = LEAVES + NESTED
TIMES = [
    pyarrow.time64("ns"),
    *(pyarrow.timestamp(unit, zone) for unit in UNITS for zone in (None, "Europe/Rome")),
]


def numbers(bits, chance):
    """An integer with a sign: small, round, of any size, or the largest."""
    most = 2 ** (bits - 1) - 1
    return chance.choice(
        [
            chance.randint(-5, 5),
            1_700_000_000 * chance.choice([1, 1000, 10**6, 10**9]) % most,
            chance.randint(-most - 1, most),
            chance.randint(0, 86_399) * chance.choice([1, 1000, 10**6, 10**9]) % most,
            chance.choice([most, -most - 1, 0]),
        ]
    )


def leaf(kind, count, chance):
    if types.is_temporal(kind) and not types.is_interval(kind):
        wide = kind.bit_width
        raw = [numbers(wide, chance) for _ in range(count)]
        return pyarrow.array(raw, pyarrow.int32() if wide == 32 else pyarrow.int64()).view(kind)
    if types.is_integer(kind):
        high = 2 ** (kind.bit_width - types.is_signed_integer(kind))
        low = -high if types.is_signed_integer(kind) else 0
        return pyarrow.array([chance.choice([low, high - 1, 1]) for _ in range(count)], kind)
    if types.is_floating(kind):
        some = [0.1, -0.0, math.nan, math.inf, -math.inf, 1e-3, 3.0]
        return pyarrow.array([chance.choice(some) for _ in range(count)], pyarrow.float64()).cast(kind)
    if types.is_decimal(kind):
        most = 10**kind.precision - 1
        with decimal.localcontext(prec=80):
            digits = [decimal.Decimal(chance.randint(-most, most)).scaleb(-kind.scale) for _ in range(count)]
        return pyarrow.array(digits, kind)
    if types.is_interval(kind):
        some = lambda: pyarrow.MonthDayNano([chance.randint(-9, 9), 2, numbers(64, chance)])
        return pyarrow.array([some() for _ in range(count)], kind)
    some = {
        pyarrow.null(): [None],
        pyarrow.bool_(): [True, False],
        pyarrow.binary(3): [b"\xff\x00a", b"abc"],
    }.get(kind)
    texts = ["", "a", "é\n", "x" * 30]
    some = some or (texts if "string" in str(kind) else [text.encode() + b"\xff" for text in texts])
    return pyarrow.array([chance.choice(some) for _ in range(count)], kind)


def make(kind, count, chance, nulls=True):
    """A pyarrow.Array of `count` random values of a type."""
    array = _make(kind, count, chance)
    if nulls and not (types.is_union(kind) or types.is_run_end_encoded(kind) or "view" in str(kind)):
        array = array.take(
            pyarrow.array([chance.choice([i, i, None]) for i in range(count)], pyarrow.int32())
        )
    return array


def _make(kind, count, chance):
    cuts = np.cumsum([0, *(chance.randint(0, 3) for _ in range(count))])
    offsets = pyarrow.array(cuts, pyarrow.int32())
    if isinstance(kind, pyarrow.BaseExtensionType):
        if kind == pyarrow.bool8():
            storage = pyarrow.array([chance.randint(0, 1) for _ in range(count)], pyarrow.int8())
        elif kind == pyarrow.uuid():
            storage = pyarrow.array([chance.randbytes(16) for _ in range(count)], pyarrow.binary(16))
        else:
            storage = make(kind.storage_type, count, chance, nulls=False)
        return pyarrow.ExtensionArray.from_storage(kind, storage)
    if types.is_dictionary(kind):
        entries = make(kind.value_type, 3, chance, nulls=False).unique()
        indices = pyarrow.array([chance.randrange(len(entries)) for _ in range(count)], kind.index_type)
        return pyarrow.DictionaryArray.from_arrays(indices, entries, ordered=kind.ordered)
    if types.is_run_end_encoded(kind):
        ends = pyarrow.array(range(1, count + 1), pyarrow.int32())
        return pyarrow.RunEndEncodedArray.from_arrays(ends, make(kind.value_type, count, chance))
    if types.is_union(kind):
        tags = pyarrow.array([chance.randint(0, 1) for _ in range(count)], pyarrow.int8())
        inner = [make(kind.field(i).type, count, chance) for i in range(2)]
        if kind.mode == "sparse":
            return pyarrow.UnionArray.from_sparse(tags, inner, ["a", "b"])
        places = pyarrow.array(range(count), pyarrow.int32())
        return pyarrow.UnionArray.from_dense(tags, places, inner, ["a", "b"])
    if types.is_struct(kind):
        inner = [make(field.type, count, chance) for field in kind]
        return pyarrow.StructArray.from_arrays(inner, [field.name for field in kind])
    if types.is_map(kind):
        keys = make(kind.key_type, int(cuts[-1]), chance, nulls=False)
        return pyarrow.MapArray.from_arrays(offsets, keys, make(kind.item_type, int(cuts[-1]), chance))
    if types.is_fixed_size_list(kind):
        return pyarrow.FixedSizeListArray.from_arrays(make(kind.value_type, 2 * count, chance), 2)
    if types.is_nested(kind):
        inner, sizes = (
            make(kind.value_type, int(cuts[-1]), chance),
            pyarrow.array(np.diff(cuts), pyarrow.int32()),
        )
        if kind.id == pyarrow.lib.Type_LIST_VIEW:
            return pyarrow.ListViewArray.from_arrays(offsets[:-1], sizes, inner)
        if kind.id == pyarrow.lib.Type_LARGE_LIST_VIEW:
            wide = pyarrow.int64()
            return pyarrow.LargeListViewArray.from_arrays(offsets[:-1].cast(wide), sizes.cast(wide), inner)
        if types.is_large_list(kind):
            return pyarrow.LargeListArray.from_arrays(offsets.cast(pyarrow.int64()), inner)
        return pyarrow.ListArray.from_arrays(offsets, inner)
    return leaf(kind, count, chance)


def invalid(scalar):
    """Whether a value in a pyarrow.Scalar is none of its type."""
    kind = scalar.type
    if not scalar.is_valid:
        return False
    if types.is_time(kind):
        return not 0 <= scalar.value < 86_400 * values.PER_SECOND[kind.unit]
    if types.is_date64(kind):
        return scalar.value % 86_400_000 != 0
    if types.is_timestamp(kind):
        return scalar.value == -(2**63) and kind.unit != "ns"
    if isinstance(scalar, pyarrow.ListScalar):
        return any(map(invalid, scalar.values))
    if isinstance(scalar, pyarrow.StructScalar):
        return any(map(invalid, (scalar[i] for i in range(len(scalar)))))
    inner = isinstance(scalar, pyarrow.DictionaryScalar | pyarrow.UnionScalar | pyarrow.ExtensionScalar)
    return invalid(scalar.value) if inner or types.is_run_end_encoded(kind) else False


SHORT = re.compile(r"(.*?\d\d:\d\d:\d\d)(\.\d+)?([+-]\d\d:\d\d(?::\d\d)?)?")


def nanoseconds(text):
    """A time of day H:MM:SS.FFFFFFFFF or an offset +HH:MM in nanoseconds."""
    sign = -1 if text[0] == "-" else 1
    hours, minutes, seconds = (*text.lstrip("+-").split(":"), "0")[:3]
    whole, _, fraction = seconds.partition(".")
    return sign * (((int(hours) * 60 + int(minutes)) * 60 + int(whole)) * 10**9 + int(fraction.ljust(9, "0")))


def stored(text, kind):
    """The number that Arrow stores for a text of JSON, worked out without the code under test."""
    if types.is_date(kind):
        days = int(np.array(text, "datetime64[D]").astype(int))
        return days if types.is_date32(kind) else days * 86_400_000
    per = 10**9 // values.PER_SECOND[kind.unit]
    if types.is_time(kind):
        return nanoseconds(text) // per
    if types.is_duration(kind):
        days, time = re.fullmatch(r"(?:(-?\d+) days?, )?(.*)", text).groups("0")
        return (int(days) * 86_400 * 10**9 + nanoseconds(time)) // per
    local, fraction, offset = SHORT.fullmatch(text).groups("")
    seconds = int(np.array(local, "datetime64[s]").astype(int))
    time = seconds * 10**9 + (nanoseconds(f"0:0:0{fraction}") if fraction else 0)
    return (time - (nanoseconds(offset) if offset else 0)) // per


def same(value, scalar):
    """Whether a value that was read from JSON is that of a pyarrow.Scalar."""
    kind = scalar.type
    if not scalar.is_valid or value is None:
        return value is None and not scalar.as_py()
    if types.is_temporal(kind) and not types.is_interval(kind):
        return stored(value, kind) == scalar.value
    if types.is_floating(kind):
        if isinstance(value, str):
            return {"NaN": math.isnan, "Infinity": (1e999).__eq__, "-Infinity": (-1e999).__eq__}[value](
                scalar.as_py()
            )
        return value == scalar.as_py() and math.copysign(1, value) == math.copysign(1, scalar.as_py())
    if types.is_decimal(kind):
        return decimal.Decimal(value) == scalar.as_py()
    if types.is_interval(kind):
        return tuple(value.values()) == tuple(scalar.as_py())
    if kind == pyarrow.uuid():
        return uuid.UUID(value) == scalar.as_py()
    if isinstance(scalar, pyarrow.MapScalar):
        entries = scalar.values
        return len(value) == len(entries) and all(
            same(pair[i], entries.field(i)[n]) for n, pair in enumerate(value) for i in range(2)
        )
    if isinstance(scalar, pyarrow.ListScalar):
        return len(value) == len(scalar.values) and all(map(same, value, scalar.values))
    if isinstance(scalar, pyarrow.StructScalar):
        return list(value) == list(scalar) and all(same(value[name], scalar[name]) for name in scalar)
    if isinstance(scalar, pyarrow.DictionaryScalar | pyarrow.UnionScalar) or types.is_run_end_encoded(kind):
        return same(value, scalar.value)
    if isinstance(scalar, pyarrow.ExtensionScalar) and kind != pyarrow.bool8():
        return same(value, scalar.value)
    if isinstance(scalar.as_py(), bytes):
        return base64.b64decode(value) == scalar.as_py()
    return value == scalar.as_py() and type(value) is type(scalar.as_py())


def parquet(path, table):
    """Writes Parquet; returns what pyarrow reads from it, None for a type that Parquet does not have."""
    try:
        pyarrow.parquet.write_table(table, path)
    except pyarrow.ArrowException:
        return None
    return pyarrow.parquet.read_table(path)


def copy(source, target):
    """Copies documents as stages do; returns the number of each row that is not read, from 0."""
    rejects = []
    (shard,) = plan([str(source)], on_error="skip")
    with Writer(target, root=target.parent, fields=reader.fields(shard)) as writer:
        for document in read(shard, rejects.append):
            writer.write(document)
    return {int(reject.place.removeprefix("row ")) - 1 for reject in rejects}


def arrays_equal(one, other):
    """Whether two columns have the same type and values, NaN being equal to itself."""
    if one.type != other.type or len(one) != len(other):
        return False
    if types.is_dictionary(one.type):
        one, other = one.cast(one.type.value_type), other.cast(one.type.value_type)
    if one.equals(other):
        return True
    is_float = "float" in str(one.type) or "double" in str(one.type)
    return is_float and list(map(str, one.to_pylist())) == list(map(str, other.to_pylist()))


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)


def test_the_types_are_all_of_pyarrow():
    known = {number for name, number in vars(pyarrow.lib).items() if re.fullmatch("Type_[A-Z0-9_]+", name)}
    ids = {kind.id for kind in EVERY} | {pyarrow.lib.Type_INTERVAL_MONTHS, pyarrow.lib.Type_INTERVAL_DAY_TIME}
    known -= {getattr(pyarrow.lib, "Type_MAX_ID", None)}
    assert known - ids == set(), "pyarrow can make arrays of types that this file does not have"


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("kind", EVERY, ids=str)
def test_every_type_is_kept_or_refused(tmp_path, kind, seed):
    check_type(tmp_path, kind, random.Random(f"{kind}{seed}"))


def check_type(folder, kind, chance):
    count = chance.randint(1, 12)
    array = make(kind, count, chance)
    texts = pyarrow.array([f"text {i}" for i in range(count)])
    table = pyarrow.table({"text": texts, "id": texts, "x": array})
    with pyarrow.ipc.new_stream(folder / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    as_parquet = parquet(folder / "a.parquet", table)
    sources = {"a.arrow": table} | ({"a.parquet": as_parquet} if as_parquet is not None else {})
    for name, wanted in sources.items():
        wrong = {i for i in range(count) if invalid(wanted["x"][i])}
        good = [i for i in range(count) if i not in wrong]
        assert copy(folder / name, folder / "o.jsonl") == wrong
        rows = list(map(json.loads, (folder / "o.jsonl").read_text().splitlines()))
        assert [row["text"] for row in rows] == [f"text {i}" for i in good]
        for row, i in zip(rows, good):
            assert same(row["x"], wanted["x"][i]), (row["x"], wanted["x"][i])
        if not good:
            continue
        kept = table.take(good) if wrong else table
        oracle = parquet(folder / "oracle.parquet", kept)
        if oracle is None or str(kind) in REFUSED:
            with pytest.raises(
                UserError,
                match=r"pass --format jsonl\.zst",
            ):
                copy(folder / name, folder / "o.parquet")
            continue
        assert copy(folder / name, folder / "o.parquet") == wrong
        found = pyarrow.parquet.read_table(folder / "o.parquet")["x"]
        assert arrays_equal(found, oracle["x"]), (found, oracle["x"])


def test_values_are_the_same_with_pandas_and_without_it(tmp_path):
    chance = random.Random(0)
    texts = pyarrow.array([f"text {i}" for i in range(20)])
    columns = {
        "text": texts,
        **{
            str(kind): make(kind, 20, chance)
            for kind in EVERY
            if "time" not in str(kind) and kind != pyarrow.date64()
        },
    }
    columns |= {str(kind): pyarrow.array([10**9 + i for i in range(20)], kind) for kind in TIMES}
    table = pyarrow.table(columns)
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    lines = []
    for without in (False, True):
        program = f"from mt.tests.documents import test_values as t; t.print_rows({without})"
        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True, text=True
        )
        lines.append(ended.stdout)
    assert lines[0] == lines[1]
    assert len(lines[0].splitlines()) == 20


class NoPandas:
    """Makes `import pandas` fail as where it is not installed."""

    @staticmethod
    def find_spec(name, *more):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError(name, name=name)


def print_rows(without_pandas):
    if without_pandas:
        sys.meta_path.insert(0, NoPandas)
    assert pyarrow.lib._pandas_api.have_pandas is not without_pandas
    for shard in plan(["a.arrow"]):
        for document in read(shard):
            print(document.id, values.json_bytes(document.meta), repr(document.meta))


INTEGERS = st.one_of(
    st.integers(),
    st.integers(2**62, 2**66),
    st.integers(-(2**66), -(2**62)),
    st.integers(0, 10**40),
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, FLOATS, st.text(), st.text("0123456789", min_size=19)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=8,
)
ROWS = st.lists(st.dictionaries(st.sampled_from("abc"), JSON_VALUES, max_size=3), min_size=1, max_size=5)


def exact(value):
    """A text that differs for 1, 1.0 and True."""
    return json.dumps(value, sort_keys=True)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, ids=st.lists(st.one_of(INTEGERS, st.text(min_size=1)), min_size=5, max_size=5))
def test_json_values_of_any_size_are_kept(tmp_path_factory, rows, ids):
    folder = tmp_path_factory.mktemp("json")
    rows = [{"id": name, "text": "t", **row} for name, row in zip(ids, rows)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    copy(folder / "a.jsonl", folder / "o.jsonl")
    found = [json.loads(line) for line in (folder / "o.jsonl").read_bytes().split(b"\n")[:-1]]
    assert [exact(row) for row in found] == [exact({**row, "id": str(row["id"])}) for row in rows]


def agrees(found, given):
    if isinstance(found, dict):
        return given is not None and all(
            agrees(item, given[key]) if key in given else item is None for key, item in found.items()
        )
    if isinstance(found, list):
        return isinstance(given, list) and len(found) == len(given) and all(map(agrees, found, given))
    if isinstance(found, float):  # integers among floating-point numbers become such
        return not isinstance(given, bool) and found == given
    return (found == given and type(found) is type(given)) or (found is None and given == {})


@settings(max_examples=150, deadline=None)
@given(rows=ROWS)
def test_json_values_in_parquet_are_the_same_numbers_or_refused(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("json")
    lines = [{"id": "i", "text": "t", **row} for row in rows]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    try:
        copy(folder / "a.jsonl", folder / "o.parquet")
    except UserError:
        return
    found = pyarrow.parquet.read_table(folder / "o.parquet").to_pylist()
    assert all(map(agrees, found, lines)), (found, lines)


@pytest.mark.parametrize("value", [[0.0, False], {"b": [True, 0.5]}, [[1.5], [False]]])
def test_booleans_among_numbers_do_not_become_numbers(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "i", "text": "t", "a": value}) + "\n")
    with pytest.raises(UserError, match="no common type"):
        copy(tmp_path / "a.jsonl", tmp_path / "o.parquet")


def test_the_depth_of_nesting_is_counted_in_levels():
    for levels in (0, 1, 7):
        value = 5
        for i in range(levels):
            value = [value] if i % 2 else {"a": value}
        assert values.depth([value]) == levels
    assert values.depth([[[]], 3]) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (10**30, "1" + "0" * 30), (1.5, "1.5"), (b"\xff", "/w=="), ([1, "b"], '[1,"b"]')],
)
def test_an_id_is_the_json_form_of_its_value(value, text):
    assert values.id_text(value) == text
