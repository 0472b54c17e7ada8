"""Work files of runs that were killed, damaged or made by somebody else.

Each stage is stopped just before it seals its output, with all of its work files. Then one of them is
damaged, and the same command goes on. It ends with the bytes of a whole run, or with exit code 2 and a line;
never with a traceback, a hang or other bytes. Files whose maker has told their digests, too, can hold other
values: then it ends with exit code 0 or 2.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mt import cli
from mt.core import executor, manifest
from mt.tests.foreign_files import BAD, NESTED, npy, places, run, survive, with_value
from mt.tests.retro import small_databases

WORDS = ["river", "mountain", "violin", "engine", "planet", "garden", "letter", "bridge", "winter", "soldier"]


def _text(number: int) -> str:
    rng = np.random.default_rng(number)
    return " ".join(rng.choice(WORDS, 30)) + f" number {number}.\n" + " ".join(rng.choice(WORDS, 20)) + "."


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Documents with copies, near copies and a repeated line, evaluation texts, and URLs."""
    folder = tmp_path_factory.mktemp("files")
    line = "This line is the same in many of these documents, and it has thirty characters.\n"
    texts = [_text(n) for n in range(8)]
    texts += [
        texts[0],
        texts[1].replace("number", "NUMBER"),
        texts[2] + " More.",
        line + _text(9),
        line + _text(10),
    ]
    rows = [{"id": f"d{n}", "text": text} for n, text in enumerate(texts)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "broken\n")
    (folder / "evaluation.jsonl").write_text(json.dumps({"text": texts[3]}) + "\n")
    (folder / "urls.txt").write_text("".join(f"http://example.org/{n % 7}\n" for n in range(20)) + "bad\n")
    (folder / "words.py").write_text("import sys\nfor line in sys.stdin: print(len(line))\n")
    for seed, name in enumerate("ab"):
        small_databases.write(folder / name, small_databases.texts(40, seed, 6))
    return folder


COMMON = ["--on-error", "skip"]
# stage -> its command; IN is the folder of the inputs
STAGES = {
    "clean": [
        "data",
        "clean",
        "--input",
        "IN/in.jsonl",
        "--rules",
        "length min_chars=250",
        "--rejects",
        *COMMON,
    ],
    "dedup": ["data", "dedup", "--input", "IN/in.jsonl", "--save-signatures", "--threshold", "0.5", *COMMON],
    "dedup-exact": ["data", "dedup", "--input", "IN/in.jsonl", "--method", "exact", *COMMON],
    "dedup-lines": ["data", "dedup-lines", "--input", "IN/in.jsonl", *COMMON],
    "dedup-substrings": ["data", "dedup-substrings", "--input", "IN/in.jsonl", "--min-tokens", "6", *COMMON],
    "decontaminate": [
        *("data", "decontaminate", "--input", "IN/in.jsonl", "--evaluation", "IN/evaluation.jsonl"),
        *("--min-piece-chars", "5", "--remove-chars-each-side", "5", "--key-threshold", "0", *COMMON),
    ],
    "holdout": [
        *("data", "holdout", "--input", "IN/in.jsonl", "--fraction", "0.4", "--min-chars", "10", *COMMON)
    ],
    "classify": [
        *("data", "classify", "--input", "IN/in.jsonl", "--command", "python3 IN/words.py"),
        *("--keep", "high", "--keep-fraction", "0.5", *COMMON),
    ],
    "stats": ["data", "stats", "--input", "IN/in.jsonl", *COMMON],
    "urls": ["data", "urls", "--input", "IN/urls.txt"],
    "tokenize": [
        *("data", "tokenize", "--input", "IN/in.jsonl", "--tokenizer-type", "ByteLevelTokenizer"),
        *("--append-eod", *COMMON),
    ],
    "build-db": [
        *("retro", "build-db", "--data-path", "IN/a", "IN/b", "--tokenizer-type", "ByteLevelTokenizer"),
        *("--chunk-length", "16", "--num-neighbors", "2", "--index", "IVF4,Flat"),
    ],
}
MEMORY = 8 << 30  # of address space: build-db loads a BERT
QUICK = ("clean", "dedup-lines", "urls", "tokenize")


def stages(some: int, more: int) -> pytest.MarkDecorator:
    """Parametrizes (stage, number): `some` for few stages in quick tests, `more` for all in slow ones."""
    return pytest.mark.parametrize(
        ("stage", "number"),
        [(stage, some) for stage in QUICK]
        + [pytest.param(stage, more, marks=pytest.mark.slow) for stage in STAGES],
    )


@pytest.fixture
def outputs(files, tmp_path, monkeypatch, capsys):
    """stage -> (its command, its folder, a whole output, an output that is not sealed)."""

    def make(stage: str) -> tuple[Callable[[], int], Path, Path, Path]:
        output = tmp_path / "out"
        flag = ["--output-prefix", output / "p"] if stage == "tokenize" else ["--output", output]
        words = [word.replace("IN", str(files)) for word in STAGES[stage]]
        command = lambda: run(*words, *flag, "--workers", 1)
        assert command() in (0, 3), capsys.readouterr().err
        output.rename(tmp_path / "whole")
        with monkeypatch.context() as patch:
            patch.setattr(manifest.Run, "finish", lambda self, *_, **__: _stop(self))
            with pytest.raises(KeyboardInterrupt):
                cli.command([*map(str, [*words, *flag, "--workers", 1])])
        output.rename(tmp_path / "unfinished")
        return command, output, tmp_path / "whole", tmp_path / "unfinished"

    return make


def _stop(self: manifest.Run) -> None:
    self.lock.close()
    raise KeyboardInterrupt


def work_files(unfinished: Path) -> list[str]:
    found = sorted(str(p.relative_to(unfinished)) for p in unfinished.rglob("*") if p.is_file())
    return [name for name in found if not name.endswith("run.json")]


def bytes_in(folder: Path) -> dict[str, bytes]:
    """All files of a finished output but those that tell its time."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith("manifest.json")
    }


def header(shape: str, kind: str = "<i8") -> bytes:
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def replace_by(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.unlink()
        make(path)

    return change


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = len(data) * 2 // 3
    data[place : place + 1] = bytes([data[place] ^ 0x55]) if data else b"?"
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped byte": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a named pipe": replace_by(os.mkfifo),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"0"),
    "another array": lambda path: path.write_bytes(npy(np.full((3, 3), 1e30))),
    "a folder": replace_by(Path.mkdir),
    "empty": lambda path: path.write_bytes(b""),
    "a huge shape": lambda path: path.write_bytes(header("(2, 10**18)") + bytes(64)),
    "a device": replace_by(lambda path: path.symlink_to("/dev/zero")),
    "objects": lambda path: path.write_bytes(npy(np.array([None, 1], object))),
    "another file": lambda path: path.write_bytes(b"\0" * 5000),
    "away": Path.unlink,
}
TEXTS: dict[str, Callable[[Path], None]] = {
    name: (lambda path, text=text: path.write_bytes(text)) for name, text in (BAD | NESTED).items()
}


def damaged(output: Path, unfinished: Path, kinds: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, a function that puts a damaged copy there) for each work file, with `kinds` of them in turn."""
    turns = {True: itertools.cycle([*DAMAGE, *TEXTS]), False: itertools.cycle(DAMAGE)}
    for name in work_files(unfinished):
        is_json = name.endswith(".json")
        number = min(kinds, len(DAMAGE) + len(TEXTS) * is_json)
        for kind in itertools.islice(turns[is_json], number):

            def put(name: str = name, kind: str = kind) -> None:
                shutil.rmtree(output, ignore_errors=True)
                shutil.copytree(unfinished, output)
                (DAMAGE | TEXTS)[kind](output / name)

            yield f"{name}: {kind}", put


def same_or_refused(command: Callable[[], int], output: Path, whole: dict[str, bytes]) -> Callable[[], int]:
    """The command's exit code; 1 where it ends well with other bytes, or waits for a named pipe."""

    def compared() -> int:
        alarm = threading.Timer(60, lambda: os._exit(9))
        alarm.start()
        code = command()
        alarm.cancel()
        if code not in (0, 3):
            return code
        found = bytes_in(output)
        if found == whole:
            return 0
        different = sorted(n for n in found.keys() | whole.keys() if found.get(n) != whole.get(n))
        print("other bytes in", different)
        return 1

    return compared


@stages(1, 99)
def test_a_run_goes_on_from_damaged_work_files_to_the_same_bytes_or_refuses_them(stage, number, outputs):
    command, output, whole, unfinished = outputs(stage)
    compared = same_or_refused(command, output, bytes_in(whole))
    ended = survive(damaged(output, unfinished, number), output, compared, memory=MEMORY)
    assert ended[0] > 0


def extremes(array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, an array of the same kind with other values, or of another shape)."""
    yield "reversed", array[::-1]
    yield "shorter", array[..., : array.shape[-1] // 2]
    yield "twice", np.concatenate((array, array), axis=-1)
    for name in array.dtype.names or [None]:
        column = array if name is None else array[name]
        if column.dtype.kind not in "iuf" or not column.size:
            continue
        limits = np.finfo(column.dtype) if column.dtype.kind == "f" else np.iinfo(column.dtype)
        for value in (limits.max, limits.min, column.max() + 1, 3, np.nan):
            with np.errstate(all="ignore"):
                if np.isnan(value) and column.dtype.kind != "f":
                    continue
                for place in (slice(None), 0, -1):
                    values = array.copy()
                    flat = values.reshape(-1) if name is None else values[name].reshape(-1)
                    flat[place] = value
                    yield f"{name or ''}[{place}] = {value}", values


def seal(output: Path, path: Path) -> None:
    """Tells the digest of a changed work file where it is recorded."""
    for marker in output.rglob("*.json"):
        try:
            saved = json.loads(marker.read_text())
            names = [os.path.normpath(marker.parent / file["name"]) for file in saved["files"]]
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
        if str(path) in names:
            saved["files"][names.index(str(path))] |= {
                key: value
                for key, value in manifest.record(path, output).items()
                if key in ("bytes", "mtime_ns", "xxh3")
            }
            write_marker(marker, saved["result"], saved["files"])


def write_marker(marker: Path, result: object, files: object) -> None:
    finished = {"result": result, "files": files}
    marker.write_text(json.dumps({**finished, "xxh3": executor._digest(finished)}))


RESULTS = [None, "x", [], {}, -1, 10**18, 2.5, [10**6], 7]


def forged(output: Path, unfinished: Path, share: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """(name, a function that puts a copy there in which a work file has other values, and its digest).

    share: one of so many cases.
    """

    def put(name: str, data: bytes) -> None:
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(unfinished, output)
        (output / name).write_bytes(data)
        seal(output, output / name)

    def put_marker(name: str, result: object, files: object) -> None:
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(unfinished, output)
        write_marker(output / name, result, files)

    found: list[tuple[str, Callable[[], None]]] = []
    for name in work_files(unfinished):
        data = (unfinished / name).read_bytes()
        if name.endswith(".npy"):
            for what, array in extremes(np.load(io.BytesIO(data))):
                found.append((f"{name}: {what}", lambda n=name, a=array: put(n, npy(a))))
        elif name.endswith(".json") and "xxh3" in (saved := json.loads(data)):
            for place in places(saved["result"]):
                for value in RESULTS:
                    result = with_value(saved["result"], place, value)
                    act = lambda n=name, r=result, f=saved["files"]: put_marker(n, r, f)
                    found.append((f"{name}: {place} = {value}", act))
        else:
            found += [
                (f"{name}: {kind}", lambda n=name, d=d: put(n, d)) for kind, d in (BAD | NESTED).items()
            ]
    yield from found[::share]


@stages(37, 5)
def test_work_files_of_a_stranger_do_no_harm(stage, number, outputs):
    command, output, _, unfinished = outputs(stage)
    survive(forged(output, unfinished, number), output, command, allowed=(0, 2, 3), memory=MEMORY)
