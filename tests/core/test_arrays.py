"""Arrays in .npy files: what numpy writes is read, and nothing but the expected kind."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mt.core.arrays import beyond, open_array
from mt.core.config import UserError

ROW = np.dtype([("a", "<u4"), ("b", "<u4")])


def bytes_of(array, **how):
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def with_header(text, body=b"", version=b"\x01\x00"):
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode() + body


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from([np.dtype("<i8"), np.dtype("<f4"), np.dtype("u1"), ROW]),
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple),
)
def test_an_array_is_what_numpy_wrote(tmp_path, dtype, shape):
    array = np.frombuffer(bytes(range(256)) * 4, dtype, int(np.prod(shape))).reshape(shape)
    np.save(tmp_path / "a.npy", array)
    found = open_array(tmp_path / "a.npy", dtype, shape)
    assert found.tobytes() == array.tobytes()
    assert (found.dtype, found.shape, found.flags.writeable and found.size > 0) == (dtype, shape, False)
    assert open_array(tmp_path / "a.npy", dtype, [None] * len(shape)).shape == shape
    assert type(found) is np.ndarray


SMALL = np.arange(6, dtype="<i8").reshape(3, 2)


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a.npy", bytes_of(SMALL))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes_of(SMALL.astype("<i4")), "has values of type 'int32', not int64"),
        (bytes_of(SMALL.astype(">i8")), "has values of type '>i8', not int64"),
        (bytes_of(SMALL.astype("<f8")), "has values of type 'float64', not int64"),
        (bytes_of(SMALL.astype(object), allow_pickle=True), "holds Python objects, which are never read"),
        (bytes_of(SMALL.ravel()), r"has the shape \(6,\), not \(any, 2\)"),
        (bytes_of(SMALL.reshape(2, 3)), r"has the shape \(2, 3\), not \(any, 2\)"),
        (bytes_of(np.asfortranarray(SMALL)), "has its values in Fortran's order"),
        (bytes_of(SMALL) + b"x", "has 177 bytes where its header says 176"),
        (bytes_of(SMALL)[:-1], "has 175 bytes where its header says 176"),
        (bytes_of(SMALL)[:20], "not a .npy file"),
        (b"", "not a .npy file"),
        (b"\n" * 9, "not a .npy file"),
        (archive(), "not a .npy file"),
        (pickle.dumps(SMALL), "not a .npy file"),
        (with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (-3, 2)}\n"), r"the shape \(-3, 2\)"),
        (
            with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (%s, 2)}\n" % ("9" * 4000)),
            "has the shape",
        ),
        (
            with_header("{'descr': '<i8', 'fortran_order': False, 'shape': (4000000000, 2)}\n"),
            "where its header says 64,000,000,0",
        ),
        (with_header("{'descr': '<i8', 'fortran_order': False}\n"), "not a .npy file"),
        (with_header("{'descr': '%s', 'fortran_order': False, 'shape': ()}\n" % ("x" * 99)), "not a .npy"),
        (with_header("[" * 9000 + "]" * 900), "not a .npy file"),
        (with_header("-" * 9900 + "1"), "not a .npy file"),
        (with_header("{'descr': [('a', " + "[(" * 900 + ")]" * 900 + ")]}"), "not a .npy file"),
        (with_header("{}", version=b"\x03\x00"), "not a .npy file"),
    ],
    ids=range(23),
)
def test_another_kind_of_file_is_refused_in_one_line(tmp_path, data, message):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        open_array(tmp_path / "a.npy", "<i8", (None, 2), remedy="make it again")
    assert str(error.value).startswith(f"{tmp_path}/a.npy: ")
    assert str(error.value).endswith("; make it again")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


def test_a_file_that_is_not_there_or_not_regular_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.npy: no such file"):
        open_array(tmp_path / "a.npy", "<i8", (None,))
    (tmp_path / "a.npy").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="is a device"):
        open_array(tmp_path / "a.npy", "<i8", (None,))


def test_any_integers_are_read_where_any_will_do(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3, dtype=np.uint16))
    assert open_array(tmp_path / "a.npy", None, None).tolist() == [0, 1, 2]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.integers(0, 9), st.sampled_from([0, -1]))
def test_a_value_that_is_no_index_is_found(values, stop, first):
    found = beyond(np.array(values, np.int64), stop, first)
    wrong = [v for v in values if not first <= v < stop]
    assert found in wrong if wrong else found is None
