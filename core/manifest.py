"""Manifests: what a stage read, did and wrote; the key that tells whether its output is up to date.

Every command that writes an output claims it with `begin` and seals it with `Run.finish`:

    run = begin("data clean", config, inputs=paths)
    if run.finished:            # the same settings and inputs have already made this output
        return run.manifest
    ...                         # write whole files; after a kill, continue from what is there
    return run.finish(outputs=[...], counts={...})

`begin` writes `run.json`, which says whose unfinished work this is; `finish` replaces it by `manifest.json`.
For an output that is a prefix rather than a directory the two are `PREFIX.run.json` and
`PREFIX.manifest.json`.

Their `key` is a digest of the command, the settings that can change the result and the identity of every
input. The identity of an input that mt wrote is the key of its manifest, so a changed setting makes every
later stage stale. The identity of any other file is its name, size, time of modification and a digest of
samples of its bytes, so that a terabyte is not read twice.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import errno
import fcntl
import functools
import itertools
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, BinaryIO, NotRequired, TypedDict

import xxhash

from .. import __version__
from . import parsing, paths, provenance
from .config import UserError, settings, shown, to_dict
from .parsing import Count, Range

Json = dict[str, Any]  # a JSON object, such as a manifest


class FileRecord(TypedDict):
    """An output file in a manifest: see `record`."""

    name: str
    bytes: Count
    mtime_ns: int
    xxh3: str
    documents: NotRequired[bool]
    rows: NotRequired[Count]


class InputRecord(TypedDict, total=False):
    """An input in a manifest: its path, and its identity."""

    path: str
    key: str


class TokenizerFacts(TypedDict):
    """The tokenizer that wrote a .bin/.idx pair."""

    fingerprint: str
    vocab_size: Count


class Manifest(TypedDict):
    """What other stages read of a manifest.json; each stage adds facts of its own."""

    verb: str
    key: str
    settings: Json
    inputs: list[InputRecord]
    outputs: list[FileRecord]
    counts: Json
    seconds: NotRequired[Annotated[float, Range(0)]]
    finished: NotRequired[str]
    tokenizer: NotRequired[TokenizerFacts]
    command: NotRequired[list[str]]
    directory: NotRequired[str]


class Claim(TypedDict):
    """A run.json."""

    verb: str
    key: str
    settings: Json


SAMPLE_BLOCKS, SAMPLE_BYTES = 16, 65536  # of sample_digest
OF_PREFIX = ".manifest.json"  # ends the name of the manifest of a prefix
MOST_INPUTS = 500_000  # of a run: a larger manifest would be refused where it is read (core/parsing.py)
LONG_LIST = 100  # entries, as of the inputs of a run, above which each is written on one line
# the remedy for a manifest with a name that mt does not write
FOREIGN = "if you linked it, put the file itself there; else do not use what this manifest came with"


# {absolute path: record, once it is known} of the files that atomic_write wrote, where noting_files is in use
_noted: contextvars.ContextVar[dict[str, Json | None] | None] = contextvars.ContextVar("_noted", default=None)


@contextlib.contextmanager
def noting_files() -> Iterator[Callable[[], dict[str, Json]]]:
    """Gives a function that returns {path: record} of the files that this thread wrote in the block.

    They are those of atomic_write that are still there.
    """
    noted: dict[str, Json | None] = {}
    token = _noted.set(noted)

    def written() -> dict[str, Json]:
        return {
            path: known or record(path, os.path.dirname(path))
            for path, known in noted.items()
            if os.path.exists(path)
        }

    try:
        yield written
    finally:
        _noted.reset(token)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[Any]:
    """Opens a file that appears under its name only when it is whole: written beside, synced, renamed.

    On an exception the partial file is removed, and what was under the name before stays. Links under both
    names are replaced, not followed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with paths.create(partial, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_directory(path.parent)
        if (noted := _noted.get()) is not None:
            noted[os.path.abspath(path)] = None
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """The directory for results that later runs can reuse; raises RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mt"


def keep_compiled_code_private() -> None:
    """Tells torch.compile to keep its code in the user's cache; call it before the first compilation.

    torch's own place is a folder of a predictable name in the shared folder for temporary files, from which
    it loads code: another user could make that folder first, with code in it.
    """
    with contextlib.suppress(RuntimeError):  # there is no home
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "inductor"))


def sync_directory(path: Path) -> None:
    """Syncs a directory, so that renames in it survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file that is indented for people; a long list in an object has one entry per line."""
    with atomic_write(path, "w") as file:
        file.writelines(_json_text(value))
        file.write("\n")


def _json_text(value: Any) -> Iterator[str]:
    """The pieces of an indented JSON text. Python's encoder for it takes 50 us for an input of a manifest."""
    if not isinstance(value, dict) or not any(map(_is_long, value.values())):
        yield json.dumps(value, indent=1, ensure_ascii=False)
        return
    encode = json.JSONEncoder(ensure_ascii=False).encode
    for number, (key, item) in enumerate(value.items()):
        yield f"{',' if number else '{'}\n {encode(key)}: "
        if _is_long(item):
            yield from (f"{',' if i else '['}\n  {encode(entry)}" for i, entry in enumerate(item))
            yield "\n ]"
        else:
            yield json.dumps(item, indent=1, ensure_ascii=False).replace("\n", "\n ")
    yield "\n}"


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > LONG_LIST


def read_json(path: str | Path) -> Any:
    """The value in a JSON file that mt wrote; raises UserError if the file is not whole."""
    return parsing.read_json(path, remedy=parsing.MADE_BY_MT)


def record(path: str | Path, root: str | Path, digest: str | None = None) -> Json:
    """A manifest's entry for an output file: name relative to root, size, mtime, xxh3-128 of its bytes."""
    path = Path(path)
    status = path.stat()
    made = {
        "name": os.path.relpath(path, root),
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "xxh3": digest or file_digest(path),
    }
    if (noted := _noted.get()) is not None and (name := os.path.abspath(path)) in noted:
        noted[name] = made  # its digest is not taken twice
    return made


def file_digest(path: str | Path) -> str:
    """xxh3-128 of all bytes of a file, in hex."""
    digest = xxhash.xxh3_128()
    with open(paths.regular(path), "rb") as file:
        add_to_digest(digest, file)
    return digest.hexdigest()


def add_to_digest(digest: xxhash.xxh3_128, file: BinaryIO) -> None:
    """Adds the rest of a file to a digest."""
    while block := file.read(1 << 22):
        digest.update(block)


def is_as_recorded(path: Path, known: Mapping[str, Any]) -> bool:
    """Whether a regular file has the size and the time of a record, or else the size and the digest."""
    if not path.exists() or path.stat().st_size != known["bytes"]:
        return False
    unchanged: bool = path.stat().st_mtime_ns == known["mtime_ns"]
    return unchanged or file_digest(path) == known["xxh3"]


def check_digest(path: str | Path, output: Json, manifest: Json) -> None:
    """Raises UserError if a file is not, byte for byte, what its entry in a manifest says."""
    if os.path.getsize(path) != output["bytes"] or file_digest(path) != output["xxh3"]:
        when = f" on {manifest['finished']}" if "finished" in manifest else ""
        raise UserError(
            f"{path}: its bytes are not those that `mt {manifest['verb']}` wrote{when}; fetch it again, or"
            " run that command again"
        )


def sample_digest(path: str | Path, open: Callable[..., IO[bytes]] = open) -> str:
    """xxh3-128 of 16 blocks of 64 KiB spread evenly over a file, its beginning and end included.

    It takes the same time at any size. open: that of another file system.
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


def manifest_of(path: str | Path) -> Json | None:
    """The manifest of the finished stage that wrote a file or directory; None if no stage of mt did."""
    path = Path(path)
    if path.is_dir():
        own = path / "manifest.json"
        return _read_manifest(own, own.stat().st_mtime_ns)[0] if own.exists() else None
    found = _listing(path)
    return found[0] if found else None


def read_manifest(path: str | Path) -> Json | None:
    """The manifest in a file; None where another program wrote it. Raises UserError for a damaged one."""
    path = Path(path)
    return _read_manifest(path, path.stat().st_mtime_ns)[0]


# {folder: (manifests of the folder and those above it, names of the manifests of prefixes in the folder)}
Places = dict[str, tuple[list[Path], set[str]]]


def _listing(path: Path, places: Places | None = None) -> tuple[Json, Json] | None:
    """(manifest, its entry for the file) of the stage that wrote a file, None if no stage wrote it.

    places: what was found about the folders of other files; the caller has one dict for many files.
    """
    for candidate in _candidates(path, places):
        manifest, outputs = _read_manifest(candidate, candidate.stat().st_mtime_ns)
        if manifest is not None and (entry := outputs.get(os.path.relpath(path, candidate.parent))):
            return manifest, entry
    return None


def _candidates(path: Path, places: Places | None) -> Iterator[Path]:
    """The manifests that may list a file.

    An output lies at most two folders below the manifest of a directory, or beside that of a prefix with
    which its name begins. For one file, trying these names takes a few dozen calls; listing the folder would
    take as many as there are files in it. With `places` each folder is listed once for all of its files.
    """
    folder, name = os.path.split(path)
    beside = (f"{name[:n]}{OF_PREFIX}" for n in range(1, len(name)))
    if places is None:
        above = (place / "manifest.json" for place in list(path.parents)[:3])
        yield from (p for p in itertools.chain(above, map(path.with_name, beside)) if p.exists())
        return
    if folder not in places:
        try:
            names = os.listdir(folder or ".")
        except PermissionError:  # files in it may be open to those who know their names
            yield from _candidates(path, None)
            return
        places[folder] = (
            [p for place in list(path.parents)[:3] if (p := place / "manifest.json").exists()],
            {n for n in names if n.endswith(OF_PREFIX)},
        )
    found, prefixes = places[folder]
    yield from found
    if prefixes:
        yield from (path.with_name(n) for n in beside if n in prefixes)


@functools.lru_cache(maxsize=64)
def _read_manifest(path: Path, mtime_ns: int) -> tuple[Json | None, dict[str, Json]]:
    """A manifest and its outputs by name; None and no outputs where another program wrote it.

    Cached, because a manifest can list many files. mtime_ns: of the file, so that a new one is read again.
    """
    manifest = read_json(path)
    ours = _is_ours(manifest, path)
    return manifest if ours else None, {o["name"]: o for o in manifest["outputs"]} if ours else {}


def _is_ours(manifest: Any, path: Path) -> bool:
    """Whether mt wrote this manifest.json, which is a common name.

    Raises UserError if it has all keys of one of ours, and values that mt does not write.
    """
    if not isinstance(manifest, dict) or not parsing.required_keys(Manifest) <= manifest.keys():
        return False
    parsing.check_value(manifest, Manifest, path, parsing.MADE_BY_MT)
    return True


def identity(path: str | Path, places: Places | None = None) -> Json:
    """What identifies an input in the key of a stage that reads it.

    places: an empty dict in the first call for many files, and the same dict in the others.

    Raises UserError if it is not there, or neither a file nor a folder: stages read their input several
    times.
    """
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UserError(f"{path}: no such file or directory; check the path") from None
    if stat.S_ISDIR(status.st_mode):
        manifest = manifest_of(path)
        if manifest is not None:
            return {"key": manifest["key"]}
        places = {} if places is None else places
        inside = [p for p in sorted(path.rglob("*")) if p.is_file()]
        return {"name": path.name, "files": [identity(p, places) for p in inside]}
    if not stat.S_ISREG(status.st_mode):
        paths.refuse_stream(path)
    found = _listing(path, places)
    if found and (found[1]["bytes"], found[1]["mtime_ns"]) == (status.st_size, status.st_mtime_ns):
        return {"name": path.name, "key": found[0]["key"]}
    return {
        "name": path.name,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sample": sample_digest(path),
    }


class Sealed(dict[str, Any]):
    """The manifest of a finished output as a command's summary; equal to the dict that is in the file.

    output: its directory, or its prefix. up_to_date: whether it was there before the command.
    """

    def __init__(self, manifest: Json, output: Path, *, up_to_date: bool):
        super().__init__(manifest)
        self.output, self.up_to_date = output, up_to_date


@dataclasses.dataclass
class Run:
    """A claimed output: where it is, whether it is finished, and its manifest once it is."""

    output: Path  # a directory, or a prefix
    prefix: bool
    verb: str
    key: str
    settings: Json
    inputs: list[Json]
    finished: bool
    manifest: Json  # empty until the output is finished
    started: float  # time.time()
    lock: IO[str] | None = None  # on run.json, held while this process works on the output
    notes: Json = dataclasses.field(default_factory=dict)  # what the manifest tells besides, under its names
    command: list[str] = dataclasses.field(default_factory=list)  # the words of a command that makes it again
    directory: str = ""  # where that command ran: its relative paths start there

    def path(self, name: str) -> Path:
        """The path of this output's file `name`: manifest.json or run.json."""
        return self.output.with_name(f"{self.output.name}.{name}") if self.prefix else self.output / name

    def finish(self, outputs: Iterable[Json], counts: Mapping[str, Any], **facts: Any) -> Json:
        """Seals the output by writing its manifest, the last file of all; returns the manifest.

        outputs: the `record` of every file. counts: what went in and what came out. facts: anything else to
        save (losses, scores), under its own name.
        """
        self.manifest = {
            "verb": self.verb,
            "key": self.key,
            "mt_version": __version__,
            "settings": self.settings,
            "inputs": self.inputs,
            "outputs": list(outputs),
            "counts": dict(counts),
            **self.notes,
            **facts,
            "command": self.command,
            "directory": self.directory,
            "machine": provenance.machine(),
            "seconds": round(time.time() - self.started, 3),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(self.path("manifest.json"), self.manifest)
        self.release()
        self.manifest = Sealed(self.manifest, self.output, up_to_date=False)
        return self.manifest

    def abandon(self) -> None:
        """Empties the output and releases the claim: a run with corrected settings can then start there."""
        _clear(self.output, self.path("manifest.json"), self.path("run.json"), self.prefix)
        self.release()

    def release(self) -> None:
        """Releases the claim; `finish` and the end of the process do so too."""
        self.path("run.json").unlink(missing_ok=True)
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def begin(
    verb: str,
    config: Any,
    inputs: Iterable[str | Path],
    *,
    identify: Callable[[str | Path], Json] = identity,
    output: str | Path | None = None,
    facts: Mapping[str, Any] | None = None,
    remedy: str = "",
    resumes: bool = False,
) -> Run:
    """Claims the output that `config` names; the Run knows whether it is finished already.

    verb: the command, as in "data clean".
    config: a configuration, one of whose fields has the role "output". The output is a prefix where that
        field's name ends in `prefix`, else a directory.
    inputs: every file or directory that is read.
    identify: gives an input's identity for the key; documents.sources.identity also knows inputs that are not
        files.
    output: instead of the one that `config` names.
    facts: anything besides settings and inputs that the result depends on.
    remedy: another remedy for the message where the output holds another run.
    resumes: whether the stage continues from the whole files of its finished output if a file of it is
        damaged; any other output is emptied and made again.

    Raises UserError if the output holds another run (unless config.overwrite), if it holds something that mt
    did not write, or if another process is working on it.
    """
    known, tree = list(settings(type(config))), to_dict(config)
    values: Json = {s.name: functools.reduce(_item, s.path, tree) for s in known}
    name = next(s.name for s in known if s.role == "output")
    target = Path(output if output is not None else values[name])
    prefix = name.endswith("prefix")
    relevant = {
        s.name: values[s.name]
        for s in known
        if s.role == "setting" and not (s.added and values[s.name] == _plain(s.default))
    }
    inputs = list(inputs)
    if len(inputs) > MOST_INPUTS:
        raise UserError(
            f"{target}: {len(inputs):,} inputs are more than the {MOST_INPUTS:,} that its manifest can list;"
            " join small files, as with `find FOLDER -name '*.jsonl' -exec cat {} + > all.jsonl`"
        )
    for path in map(str, inputs):
        if not path.isascii() and path.encode("utf-8", "ignore").decode() != path:
            raise UserError(f"{path}: its name is not UTF-8, as all text in a manifest; rename it")
    identified = [{"path": str(p), **identify(p)} for p in inputs]
    content = [{k: v for k, v in i.items() if k != "path"} for i in identified]
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
    run = Run(
        target,
        prefix,
        verb,
        key,
        relevant,
        identified,
        False,
        {},
        time.time(),
        command=provenance.command_line(verb, config),
        directory=provenance.directory(),
    )
    sealed, unfinished = run.path("manifest.json"), run.path("run.json")
    goes_on = False  # whether it continues from a finished output of which a file is damaged
    if sealed.exists():
        manifest = read_json(sealed)
        if not _is_ours(manifest, sealed):
            raise UserError(
                f"{sealed}: is there already, and mt did not write it; choose another output, or move it away"
                " yourself"
            )
        if manifest["key"] == key:
            damaged = next((o["name"] for o in manifest["outputs"] if not _intact(o, sealed)), None)
            if damaged is None:
                run.finished, run.manifest = True, Sealed(manifest, target, up_to_date=True)
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
    before = parsing.read_bytes(unfinished, parsing.SETTINGS_BYTES, parsing.MADE_BY_MT)
    try:
        earlier = parsing.parse_json(before, str(unfinished)) if before else None
    except UserError:
        earlier = None  # killed while run.json itself was being written: there is nothing else yet
    if earlier is not None:
        parsing.check_value(earlier, Claim, unfinished, parsing.MADE_BY_MT)
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
    if not prefix:
        try:
            _refuse_linked_folders(target)
        except UserError:
            run.lock.close()
            raise
    claim = {
        "verb": verb,
        "key": key,
        "settings": relevant,
        "command": run.command,
        "directory": run.directory,
        "pid": os.getpid(),
    }
    _rewrite(run.lock, json.dumps(claim, indent=1, default=str))
    return run


def _rewrite(file: IO[str], text: str) -> None:
    """Replaces the content of a short file that is open and locked, and syncs it.

    Over the old content, which is cut off afterwards: a kill in between never leaves an empty file.
    """
    data = text.encode()
    os.pwrite(file.fileno(), data, 0)
    os.ftruncate(file.fileno(), len(data))
    os.fsync(file.fileno())


def _refuse_linked_folders(target: Path) -> None:
    """Raises UserError if a folder in an output is a link to another place, where writes would land."""
    for folder, names, _ in os.walk(target):
        for path in (Path(folder, name) for name in names):
            if path.is_symlink() and not path.resolve().is_relative_to(target.resolve()):
                raise UserError(
                    f"{path}: is a link to another folder, and mt writes nothing through links that it finds"
                    " in an output; put the folder itself there, or choose another output"
                )


def _plain(value: Any) -> Any:
    """A setting's value as to_dict gives it: a tuple is a list."""
    return list(value) if isinstance(value, tuple) else value


def _item(tree: Any, key: str) -> Any:
    return tree[key]


def output_path(manifest: Path, name: Any) -> Path:
    """The path of an output that a manifest names; raises UserError if the name leads out of its folder.

    manifest: the path of manifest.json, or of PREFIX.manifest.json.
    """
    return paths.named(manifest.parent, name, f"{manifest}, outputs", remedy=FOREIGN)


def _intact(output: Json, manifest: Path) -> bool:
    """Whether an output file is as its record in a manifest says."""
    return is_as_recorded(output_path(manifest, output["name"]), output)


def _difference(before: Json, now: Json) -> str:
    """The first three settings that differ between two runs, for a message."""
    changed = [
        f"{k} was {shown(before.get(k))}, is {shown(now.get(k))}"
        for k in sorted({*before, *now})
        if before.get(k) != now.get(k)
    ]
    return f" ({'; '.join(changed[:3])})" if changed else " (of other inputs)"


def _lock(path: Path, target: Path) -> IO[str]:
    """run.json, opened and locked for as long as this process works on the output."""
    file: IO[str] = paths.update(path, "r+")
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
    """Whether an unfinished run has left a whole file. One that a mistake ended at once has none."""
    folder = run.output.with_name(f".{run.output.name}.partial") if run.prefix else run.output
    return any(
        p.is_file() and p != run.path("run.json") and not p.name.endswith(".partial")
        for p in folder.rglob("*")
    )


def _belongs(file: Path, prefix: Path) -> bool:
    """Whether a run could have written a file to a prefix, as PREFIX.bin or PREFIX_text_document.bin."""
    return file.parent == prefix.parent and file.name.startswith((f"{prefix.name}.", f"{prefix.name}_"))


def _clear(target: Path, sealed: Path, unfinished: Path, prefix: bool) -> None:
    """Removes an earlier run's files, its manifest first: a kill leaves no manifest without files."""
    if prefix:
        manifest = read_json(sealed) if sealed.exists() else None
        outputs = manifest["outputs"] if manifest and _is_ours(manifest, sealed) else []
        files = [output_path(sealed, output["name"]) for output in outputs]
        if strange := next((f for f in files if not _belongs(f, target)), None):
            raise UserError(
                f"{sealed}, outputs: {str(strange)!r} does not begin with {target}. or {target}_, as all that"
                f" mt writes there would; nothing was removed: {FOREIGN}"
            )
        sealed.unlink(missing_ok=True)
        for file in files:
            file.unlink(missing_ok=True)
        # where such a stage works
        paths.remove(target.with_name(f".{target.name}.partial"), ignore_errors=True)
        return
    sealed.unlink(missing_ok=True)
    for path in target.iterdir():
        if path != unfinished:
            paths.remove(path)
