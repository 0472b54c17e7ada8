"""Loops compiled by numba give the results of Python, and are compiled once."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mt.core.numba_loops import compile_loop


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


def test_importing_the_module_does_not_import_numba():
    code = "import sys, mt.core.numba_loops; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
