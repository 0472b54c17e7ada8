"""what a stage read, did and wrote: fingerprints, settings, counts, timings; written last.

Every verb that writes an output claims it with `begin` and seals it with `Run.finish`:

    run = begin("data clean", config, inputs=paths)
    if run.finished:            # the same settings and inputs have already made this output
        return run.manifest
    ...                         # write whole files; after a kill, go on from what is there
    return run.finish(outputs=[...], counts={...})

`begin` leaves `run.json` (whose unfinished work this is), `finish` replaces it by `manifest.json`; for an
output that is a prefix rather than a directory the two are `PREFIX.run.json` and `PREFIX.manifest.json`.
Their `key` is a digest of the verb, the settings that can change the result and the identity of every input.
The identity of an input that mt wrote is the key of its manifest, so a changed setting makes every later
stage stale; that of any other file is its name, size, time of modification and a digest of samples of its
bytes, so that a terabyte is not read twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from .. import __version__
from .config import UserError, settings, to_dict

SAMPLE_BLOCKS, SAMPLE_BYTES = 16, 65536


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[Any]:
    """A file that appears under its name only when it is whole: written beside, synced, renamed.

    On an exception the partial file is removed and nothing is left under the name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """For what another run need not find out or fetch again; raises RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mt"


def sync_directory(path: Path) -> None:
    """Makes renames inside a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, value) -> None:
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | Path):
    """A JSON file that mt wrote; raises UserError when it is not whole."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not whole JSON ({error}); remove the output it belongs to and run its command again"
        ) from None


def record(path: str | Path, root: str | Path, digest: str | None = None) -> dict:
    """A whole output file as a manifest keeps it: name relative to root, bytes, mtime, xxh3-128 of its bytes."""
    path = Path(path)
    stat = path.stat()
    return {
        "name": os.path.relpath(path, root),
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "xxh3": digest or file_digest(path),
    }


def file_digest(path: str | Path) -> str:
    """xxh3-128 of all bytes of a file, in hex."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sample_digest(path: str | Path, open=open) -> str:
    """xxh3-128 of 16 blocks of 64 KiB spread evenly over a file, head and tail included: constant time at any
    size.

    open: of another file system.
    """
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size <= SAMPLE_BLOCKS * SAMPLE_BYTES:
            digest.update(file.read())
        else:
            for block in range(SAMPLE_BLOCKS):
                file.seek((size - SAMPLE_BYTES) * block // (SAMPLE_BLOCKS - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def manifest_of(path: str | Path) -> dict | None:
    """The manifest of the finished stage that wrote this file or directory, or None; another program's is
    none.
    """
    path = Path(path)
    if path.is_dir():
        own = path / "manifest.json"
        return _read_manifest(own, own.stat().st_mtime_ns)[0] if own.exists() else None
    found = _listing(path)
    return found[0] if found else None


def _listing(path: Path) -> tuple[dict, dict] | None:
    """(manifest, its entry for the file) of the stage that wrote a file."""
    # Outputs lie at most two folders below a directory's manifest, and beside that of a prefix, which their
    # names begin with: a few dozen looks a file, where listing the folder would take as many for each file as
    # it holds.
    folders = [(folder, folder / "manifest.json") for folder in list(path.parents)[:3]]
    prefixes = [
        (path.parent, path.with_name(f"{path.name[:n]}.manifest.json")) for n in range(1, len(path.name))
    ]
    for folder, candidate in folders + prefixes:
        if candidate.exists():
            manifest, outputs = _read_manifest(candidate, candidate.stat().st_mtime_ns)
            if entry := outputs.get(os.path.relpath(path, folder)):
                return manifest, entry
    return None


@functools.lru_cache(maxsize=64)
def _read_manifest(path: Path, mtime_ns: int) -> tuple[dict | None, dict[str, dict]]:
    """A manifest and its outputs by name (None and none where another program wrote it), read once for the
    many files in it.
    """
    manifest = read_json(path)
    ours = _is_ours(manifest)
    return manifest if ours else None, {o["name"]: o for o in manifest["outputs"]} if ours else {}


def _is_ours(manifest) -> bool:
    """Whether mt wrote this manifest.json: the name is a common one."""
    if (
        not isinstance(manifest, dict)
        or not {"verb", "key", "settings", "inputs", "outputs", "counts"} <= manifest.keys()
    ):
        return False
    return isinstance(manifest["outputs"], list) and all(
        isinstance(o, dict) and "name" in o for o in manifest["outputs"]
    )


def identity(path: str | Path) -> dict:
    """What an input is, for the key of the stage that reads it; raises UserError when it does not exist."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; check the path")
    if path.is_dir():
        manifest = manifest_of(path)
        if manifest is not None:
            return {"key": manifest["key"]}
        return {"name": path.name, "files": [identity(p) for p in sorted(path.rglob("*")) if p.is_file()]}
    stat = path.stat()
    found = _listing(path)
    if found and (found[1]["bytes"], found[1]["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
        return {"name": path.name, "key": found[0]["key"]}
    return {
        "name": path.name,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sample": sample_digest(path),
    }


@dataclasses.dataclass
class Run:
    """A claimed output: where it is, whether it is done, and the manifest once it is."""

    output: Path  # a directory, or a prefix
    prefix: bool
    verb: str
    key: str
    settings: dict
    inputs: list[dict]
    finished: bool
    manifest: dict | None
    started: float
    lock: Any = None

    def path(self, name: str) -> Path:
        """Where the bookkeeping file `name` of this output lies."""
        return self.output.with_name(f"{self.output.name}.{name}") if self.prefix else self.output / name

    def finish(self, outputs: Iterable[dict], counts: Mapping, **facts) -> dict:
        """Seals the output: the manifest is the last file written. Returns it.

        outputs: `record`s of every file. counts: what went in and came out. facts: anything else worth
        keeping (losses, scores), under its own name.
        """
        self.manifest = {
            "verb": self.verb,
            "key": self.key,
            "mt_version": __version__,
            "settings": self.settings,
            "inputs": self.inputs,
            "outputs": list(outputs),
            "counts": dict(counts),
            **facts,
            "seconds": round(time.time() - self.started, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(self.path("manifest.json"), self.manifest)
        self.release()
        return self.manifest

    def abandon(self) -> None:
        """Empties the output and gives the claim up: after a mistake that other settings mend, nothing is in
        their way.
        """
        _clear(self.output, self.path("manifest.json"), self.path("run.json"), self.prefix)
        self.release()

    def release(self) -> None:
        """Gives the claim up: done by finish, and by the end of the process."""
        self.path("run.json").unlink(missing_ok=True)
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def begin(
    verb: str,
    config,
    inputs: Iterable[str | Path],
    *,
    identify: Callable[[str | Path], dict] = identity,
    output: str | Path | None = None,
    facts: Mapping | None = None,
    remedy: str = "",
    resumes: bool = False,
) -> Run:
    """Claims the output that `config` names and says whether it is already finished.

    config: a dataclass made of `option` fields, one of them of role "output". inputs: every file or directory
    that is read. identify: what an input is, for the key; documents.sources.identity also knows inputs that
    are not files. facts: anything outside settings and inputs that the result depends on. remedy: what else
    to do where the output holds another run. resumes: whether the stage goes on from what is left of its
    finished output when a file of that is damaged; any other is emptied and made again. The output is a
    directory, or a prefix where its field's name ends in `prefix`. Raises UserError when the output holds
    another run (unless config.overwrite), when it holds something that mt did not write, and when another
    process is at work on it.
    """
    roles = {s.name: s.role for s in settings(type(config))}
    tree = to_dict(config)
    values = {
        s.name: functools.reduce(lambda branch, key: branch[key], s.path, tree)
        for s in settings(type(config))
    }
    name = next(n for n, role in roles.items() if role == "output")
    target = Path(output if output is not None else values[name])
    prefix = name.endswith("prefix")
    relevant = {n: values[n] for n, role in roles.items() if role == "setting"}
    inputs = [{"path": str(p), **identify(p)} for p in inputs]
    content = [{k: v for k, v in i.items() if k != "path"} for i in inputs]
    key_of = {
        "verb": verb,
        "mt": __version__,
        "settings": relevant,
        "inputs": content,
        "facts": dict(facts or {}),
    }
    key = xxhash.xxh3_128(json.dumps(key_of, sort_keys=True, default=str).encode()).hexdigest()
    overwrite = any(value for name, value in values.items() if name.split(".")[-1] == "overwrite")

    (target.parent if prefix else target).mkdir(parents=True, exist_ok=True)
    run = Run(target, prefix, verb, key, relevant, inputs, False, None, time.time())
    sealed, unfinished = run.path("manifest.json"), run.path("run.json")
    goes_on = False  # from a finished output, some of which is damaged
    if sealed.exists():
        manifest = read_json(sealed)
        if not _is_ours(manifest):
            raise UserError(
                f"{sealed}: is there already, and mt did not write it; choose another output, or move it away"
                " yourself"
            )
        if manifest["key"] == key:
            damaged = next((o["name"] for o in manifest["outputs"] if not _intact(o, sealed.parent)), None)
            if damaged is None:
                run.finished, run.manifest = True, manifest
                return run
            goes_on = resumes and not overwrite
            print(
                f"mt: {sealed.parent / damaged}: is not what was written when this run ended;"
                f" {'going on from what is whole' if goes_on else 'the output is made again'}",
                file=sys.stderr,
            )
        elif not overwrite:
            raise UserError(
                f"{target}: holds another run of `mt"
                f" {manifest['verb']}`{_difference(manifest['settings'], relevant)}; choose another output or"
                f" pass --overwrite{remedy}"
            )
    elif (
        not prefix
        and not unfinished.exists()
        and any(not p.name.endswith(".partial") for p in target.iterdir())
    ):
        raise UserError(
            f"{target}: is not empty and mt did not write it; choose another output, or empty it yourself"
        )
    run.lock = _lock(unfinished, target)
    before = unfinished.read_text(encoding="utf-8")
    try:
        earlier = json.loads(before) if before else None
    except json.JSONDecodeError:
        earlier = None  # killed while the claim itself was being written: nothing else had been
    stale = sealed.exists() or (earlier is not None and earlier["key"] != key)
    if stale:
        if (
            earlier is not None
            and earlier["key"] != key
            and not sealed.exists()
            and not overwrite
            and _holds_work(run)
        ):
            run.lock.close()
            raise UserError(
                f"{target}: holds an unfinished run of `mt"
                f" {earlier['verb']}`{_difference(earlier['settings'], relevant)}; choose another output or"
                f" pass --overwrite{remedy}"
            )
        if goes_on:
            sealed.unlink()
        else:
            _clear(target, sealed, unfinished, prefix)
    with open(unfinished, "w", encoding="utf-8") as file:
        json.dump(
            {"verb": verb, "key": key, "settings": relevant, "pid": os.getpid()}, file, indent=1, default=str
        )
    return run


def _intact(output: Mapping, root: Path) -> bool:
    path = root / output["name"]
    if not path.exists() or path.stat().st_size != output["bytes"]:
        return False
    return path.stat().st_mtime_ns == output["mtime_ns"] or file_digest(path) == output["xxh3"]


def _difference(before: Mapping, now: Mapping) -> str:
    changed = [
        f"{k} was {before.get(k)!r}, is {now.get(k)!r}"
        for k in sorted({*before, *now})
        if before.get(k) != now.get(k)
    ]
    return f" ({'; '.join(changed[:3])})" if changed else " (of other inputs)"


def _lock(path: Path, target: Path):
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the run ends
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise UserError(
                f"{target}: another mt process is writing it; wait for it, or choose another output"
            ) from None
        raise
    return file


def _holds_work(run: Run) -> bool:
    """Whether an unfinished run has left any whole file: a mistake that ended it at once leaves nothing to
    protect.
    """
    folder = run.output.with_name(f".{run.output.name}.partial") if run.prefix else run.output
    return any(
        p.is_file() and p != run.path("run.json") and not p.name.endswith(".partial")
        for p in folder.rglob("*")
    )


def _clear(target: Path, sealed: Path, unfinished: Path, prefix: bool) -> None:
    """Removes an earlier run's files, its manifest first, so that a kill in between leaves no sealed ruin."""
    if prefix:
        outputs = read_json(sealed)["outputs"] if sealed.exists() else []
        sealed.unlink(missing_ok=True)
        for output in outputs:
            (sealed.parent / output["name"]).unlink(missing_ok=True)
        # where such a stage works
        shutil.rmtree(target.with_name(f".{target.name}.partial"), ignore_errors=True)
        return
    sealed.unlink(missing_ok=True)
    for path in target.iterdir():
        if path == unfinished:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
