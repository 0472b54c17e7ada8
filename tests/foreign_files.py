"""Replaces every leaf of a file by what a stranger may put there, and watches a command read it.

`survive` runs in a forked process, whose memory and processor time the kernel bounds: a crash, a hang or a
flood ends that process alone, and the test names the case.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mt import cli

DEEP = 1_000_000
# Raw JSON, and YAML. The root of a file is replaced by these, too.
BAD = {
    "null": b"null",
    "true": b"true",
    "text": b'"x"',
    "list": b"[]",
    "mapping": b"{}",
    "minus one": b"-1",
    "1e30": b"1e30",
    "2^31": b"2147483648",
    "5,000 digits": b"9" * 5000,
}
NESTED = {"nested lists": b"[" * DEEP + b"]" * DEEP, "nested mappings": b'{"a": ' * DEEP + b"1" + b"}" * DEEP}
PLACEHOLDER = "PLACEHOLDER"
MEMORY_BYTES = 1 << 30
CPU_SECONDS = 5


def places(tree: Any, place: tuple = ()) -> Iterator[tuple]:
    """The place of every value in a tree, containers and the root included."""
    yield place
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from places(value, (*place, key))


def with_value(tree: Any, place: tuple, value: Any) -> Any:
    """A tree with another value at a place. The value may be made from the present one."""
    if not place:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[place[0]] = with_value(tree[place[0]], place[1:], value)
    return copy


def sampled(tree: Any, most: int) -> list[tuple]:
    """The places of a tree, and of lists and mappings with many values of a kind only `most`."""
    found: list[tuple] = []
    counts: dict[tuple, int] = {}
    for place in places(tree):
        # values of the same shape: the same place but for numbers and the keys of large mappings
        parents = [_at(tree, place[:n]) for n in range(len(place))]
        shape = tuple("*" if isinstance(p, list) or len(p) > 40 else key for p, key in zip(parents, place))
        counts[shape] = counts.get(shape, 0) + 1
        if counts[shape] <= most:
            found.append(place)
    return found


def _at(tree: Any, place: tuple) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def as_json(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode()


def as_yaml(tree: Any) -> bytes:
    return yaml.safe_dump(tree, sort_keys=False, width=1 << 20).encode()


def cases(
    tree: Any, dump: Callable[[Any], bytes], *, exhaustive: bool = False, most: int = 2, values: int = 3
) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a file with one value replaced.

    exhaustive: each value by each of BAD. Otherwise each by `values` of them in turn,
    and of the values of large lists and mappings only `most` (see `sampled`).
    """
    found = list(places(tree)) if exhaustive else sampled(tree, most)
    names = list(BAD)
    for number, place in enumerate(found):
        raw = dump(with_value(tree, place, PLACEHOLDER)).replace(b'"' + PLACEHOLDER.encode() + b'"', b"@@")
        raw = raw.replace(PLACEHOLDER.encode(), b"@@")
        for name in (
            names
            if exhaustive or not place
            else [names[(number + 3 * n) % len(names)] for n in range(values)]
        ):
            yield f"{place} = {name}", raw.replace(b"@@", BAD[name])
        if place in (found[0], found[-1]):
            for name, bad in NESTED.items():
                yield f"{place} = {name}", raw.replace(b"@@", bad)
    yield "cut short", dump(tree)[:-3]
    yield "no UTF-8", b"\xff\xfe" + dump(tree)
    yield "empty", b""


def run(*arguments: object) -> int:
    """The exit code of a command of mt."""
    try:
        cli.main(list(map(str, arguments)))
    except SystemExit as end:
        return int(end.code or 0)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def survive(
    found: Iterator[tuple[str, bytes | Callable[[], None]]],
    file: Path,
    command: Callable[[], int],
    *,
    allowed: tuple[int, ...] = (0, 2),
    memory: int = MEMORY_BYTES,
) -> dict[int, int]:
    """Runs a command after each change of a file; returns {exit code: how often}.

    found: (name of the case, the file's content, or a function that makes another change).

    memory: bytes of address space for the process, besides what it has.

    Raises AssertionError with the cases that ended with another exit code or a traceback, and if the process
    was killed: by a crash, or by the limits on its memory and its processor time.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryDirectory() as name:
        report, said = Path(name) / "report.jsonl", Path(name) / "said"
        report.touch()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _watch(found, file, command, allowed, memory, report, said)
                status = 0
            except BaseException:  # of the test itself
                said.write_text(traceback.format_exc())
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
        counts: dict[int, int] = {}
        wrong = []
        for line in lines:
            if "code" not in line:
                continue
            counts[line["code"]] = counts.get(line["code"], 0) + 1
            if line["wrong"]:
                wrong.append(f"{line['case']}: exit code {line['code']}: {line['wrong']}")
        if os.WIFSIGNALED(status):
            end = signal.Signals(os.WTERMSIG(status)).name
            wrong.append(f"{lines[-1]['case']}: killed by {end}: {said.read_text(errors='replace')[-2000:]}")
        assert status == 0 or wrong, said.read_text(errors="replace")[-2000:]
        assert counts, "no case was run"
        assert not wrong, f"{len(wrong)} cases of {file.name}:\n" + "\n".join(wrong[:12])
    return counts


def _watch(
    found: Iterator[tuple[str, bytes | Callable[[], None]]],
    file: Path,
    command: Callable[[], int],
    allowed: tuple[int, ...],
    memory: int,
    report: Path,
    said: Path,
) -> None:
    """The forked process: writes a line before and after every case."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # threads of the parent are not there
    handle = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    # pytest has replaced both
    sys.stdout = os.fdopen(1, "w", closefd=False, errors="backslashreplace")
    sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory,) * 2)
    with open(report, "a", buffering=1) as lines:
        for case, content in found:
            lines.write(json.dumps({"case": case}) + "\n")
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_SECONDS + 1, hard))
            os.truncate(handle, 0)
            if callable(content):
                content()
            else:
                file.write_bytes(content)
            code = command()
            sys.stdout.flush()
            sys.stderr.flush()
            text = said.read_text(errors="replace")
            wrong = text[-1500:] if code not in allowed or "Traceback" in text or "panicked" in text else ""
            lines.write(json.dumps({"case": case, "code": code, "wrong": wrong}) + "\n")


def array_cases(array: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a .npy file of integers, or of rows of integers, with another header or value."""
    names = array.dtype.names
    kinds = ["<f8", ">i8", "<i4", "<u8", "<M8[s]", "<U2", "|O", "<i8"]
    others = [np.zeros(array.shape, kind) for kind in kinds]
    others += [array.T, array[None], array[:0], array[:1], array.ravel(order="F"), np.asfortranarray(array)]
    for number, other in enumerate(others):
        yield f"another array, number {number}", npy(other)
    for place in (0, array.size // 2, array.size - 1, slice(None)):
        for name in names or [None]:
            values = array.copy()
            column = values.reshape(-1) if name is None else values[name]
            kind = np.iinfo(column.dtype)
            for value in (-2, -1, 0, 10**9, 1 << 31, kind.min, kind.max, kind.max - 1):
                if kind.min <= value <= kind.max:
                    column[place] = value
                    yield f"{name or ''}[{place}] = {value}", npy(values)
    whole = npy(array)
    shape = str(array.shape).encode()
    for wrong in (b"(-1,)", b"(1<<9,)", b"(10**9,)", b"9", b"None", b"(99999999999,)", b"()", b"(True,)"):
        yield f"shape {wrong!r}", whole.replace(shape, wrong.ljust(len(shape)), 1)
    packed = io.BytesIO()
    np.savez(packed, array)
    yield "an archive", packed.getvalue()
    yield "a pickle", pickle.dumps(array)
    yield "cut short", whole[:-1]
    yield "longer", whole + b"\0"
    yield "empty", b""
    yield "nested", b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def damaged(data: bytes, beginning: int = 400, step: int = 1) -> Iterator[tuple[str, bytes]]:
    """(name, content) of a file with other bytes in its beginning, or cut short."""
    for place in range(0, min(beginning, len(data)), step):
        for value in (b"\xff", b"\0", b"\x7f\xff\xff\xff\xff\xff\xff\x7f"):
            yield f"byte {place} = {value!r}", data[:place] + value + data[place + len(value) :]
    for size in (0, 3, len(data) // 2, len(data) - 1):
        yield f"{size} bytes", data[:size]
