"""Loops compiled by numba give the results of Python, and are compiled once."""

import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from mt.core import numba_loops
from mt.core.numba_loops import compile_loop, imported_files


def collatz_steps(numbers):
    """Collatz steps from every number to 1: a loop that numpy cannot vectorise."""
    steps = np.zeros(len(numbers), np.int64)
    for i in range(len(numbers)):
        n = numbers[i]
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            steps[i] += 1
    return steps


def long_sum(values, times):
    total = 0.0
    for _ in range(times):
        for i in range(len(values)):
            total += values[i]
    return total


def test_a_compiled_loop_gives_the_results_of_python():
    numbers = np.arange(1, 300)
    assert np.array_equal(compile_loop(collatz_steps)(numbers), collatz_steps(numbers))
    assert compile_loop(collatz_steps)(np.array([27])).tolist() == [111]  # published for 27


def test_a_function_is_compiled_once_for_each_set_of_flags():
    assert compile_loop(collatz_steps) is compile_loop(collatz_steps)
    loose = compile_loop(long_sum, fastmath=frozenset({"reassoc"}))
    assert loose is not compile_loop(long_sum)
    assert loose.targetoptions["fastmath"] == {"reassoc"}
    assert compile_loop(long_sum).targetoptions["fastmath"] == set()


def test_the_user_is_told_once_that_loops_are_compiled_and_not_when_they_are_loaded(tmp_path):
    """In processes of their own: the first one compiles, the second one loads."""
    (tmp_path / "loops.py").write_text(
        "from mt.core.numba_loops import compile_loop\n"
        "def double(x): return 2 * x\n"
        "def add(x): return x + 1\n"
        "assert compile_loop(double)(3) + compile_loop(add)(3) == 10\n"
    )
    told = []
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "loops.py"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        told.append(ended.stderr)
    assert told == ["mt: compiling loops (once a machine), now double ...\n", ""]


@pytest.mark.parametrize("live", [True, False])
def test_a_terminal_shows_every_compilation_at_once(tmp_path, live):
    """So that no bar that stands still shows between two loops; elsewhere that would be many lines."""
    (tmp_path / "loops.py").write_text(
        "import contextlib, sys\n"
        "from mt.core import numba_loops\n"
        "def double(x): return 2 * x\n"
        "def add(x): return x + 1\n"
        "waits = []\n"
        "numba_loops.shows_live = lambda: sys.argv[1] == 'True'\n"
        "note = lambda label, after=10: contextlib.nullcontext(waits.append((label, after)))\n"
        "numba_loops.activity = note\n"
        "numba_loops.compile_loop(double)(3), numba_loops.compile_loop(add)(3)\n"
        "print([after < 1 for label, after in waits if label.startswith('compiling')])\n"
    )
    ended = subprocess.run(
        [sys.executable, "loops.py", str(live)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ended.stdout == f"[True, {live}]\n"


def test_other_threads_run_during_a_compiled_loop():
    loop, values = compile_loop(long_sum), np.ones(1000)
    loop(values, 1)  # compiles
    ticks = []
    worker = threading.Thread(target=loop, args=(values, 300_000))  # takes a third of a second
    worker.start()
    while worker.is_alive():
        ticks.append(time.monotonic())
        time.sleep(0.01)
    assert len(ticks) > 5


def test_a_loop_is_compiled_without_a_cache_if_it_cannot_be_written(monkeypatch):
    numba = pytest.importorskip("numba")
    compile_here = numba.njit

    def njit(*arguments, cache=False, **how):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_here(*arguments, **how)

    monkeypatch.setattr(numba, "njit", njit)

    def double(x):
        return 2 * x

    assert compile_loop(double)(21) == 42


def test_a_loop_is_compiled_again_when_what_it_imports_changes(tmp_path):
    package = tmp_path / "loops"
    package.mkdir()
    (package / "__init__.py").touch()
    decorated = "from mt.core.numba_loops import compile_loop\n"
    inner = f"{decorated}from .numbers import FACTOR\n@compile_loop\ndef inner(x): return x * FACTOR\n"
    outer = (
        f"{decorated}from .inner import (\n    inner,\n)\n@compile_loop\ndef outer(x): return inner(x) + 1\n"
    )
    (package / "numbers.py").write_text("FACTOR = 2\n")
    (package / "inner.py").write_text(inner)
    (package / "outer.py").write_text(outer)
    code = "from loops.outer import outer; print(outer(10), *outer.stats.cache_hits.values())"

    def result():
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert [result(), result()] == ["21", "21 1"]
    (package / "numbers.py").write_text("FACTOR = 3\n# changed\n")
    assert result() == "31"
    (package / "inner.py").write_text(f"{decorated}@compile_loop\ndef inner(x): return x * 7\n")
    assert result() == "71"


def test_the_cache_of_a_loop_has_the_stamps_of_what_it_imports():
    from mt.dataprep.dedup import token_windows

    file = Path(token_windows.__file__)
    found = [(file.parent / name).resolve() for name, _, _ in imported_files(str(file))]
    names = {path.relative_to(file.parents[2].resolve()).as_posix() for path in found}
    assert {"dataprep/words.py", "dataprep/dedup/minhash_numba.py", "core/numba_loops.py"} <= names
    stamp = token_windows._tokens._cache._cache_file._source_stamp
    assert stamp[1] == imported_files(token_windows.__file__)


def test_the_stamps_do_not_depend_on_the_way_to_the_folder(tmp_path):
    """Else each way would have its loops compiled again, and the cache of the other one thrown away."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real/numbers.py").write_text("FACTOR = 2\n")
    (tmp_path / "real/loop.py").write_text("from .numbers import FACTOR\n")
    (tmp_path / "link").symlink_to("real")
    stamps = [imported_files(str(tmp_path / name / "loop.py")) for name in ("real", "link")]
    assert stamps[0] == stamps[1]
    assert [name for name, _, _ in stamps[0]] == ["numbers.py"]


def test_importing_the_module_does_not_import_numba():
    code = "import sys, mt.core.numba_loops; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _sum_of_hashes(values):  # a loop of its own: no other test compiles it
    total = np.uint64(7)
    for value in values:
        total = total * np.uint64(0x9E3779B97F4A7C15) + value
    return total


def test_few_inputs_are_read_by_the_loop_itself_until_it_is_worth_compiling(monkeypatch, tmp_path):
    monkeypatch.setattr(numba_loops, "_is_stored", lambda function, fastmath: False)
    monkeypatch.setattr(numba_loops, "MOST_INTERPRETED", 150)
    values = np.arange(100, dtype=np.uint64)
    with numba_loops.for_few_inputs(), warnings.catch_warnings(action="error"):
        loop = numba_loops.compile_loop(_sum_of_hashes)
        assert not hasattr(loop, "py_func")
        found = loop(values)
        assert not hasattr(numba_loops.compile_loop(_sum_of_hashes), "py_func"), "100 numbers were read"
        loop(values)
        compiled = numba_loops.compile_loop(_sum_of_hashes)
        assert hasattr(compiled, "py_func"), "200 numbers were read"
        assert compiled(values) == found
    assert hasattr(numba_loops.compile_loop(_sum_of_hashes), "py_func")
    with numba_loops.for_few_inputs():
        assert not hasattr(numba_loops.compile_loop(_sum_of_hashes), "py_func"), "counted anew"
