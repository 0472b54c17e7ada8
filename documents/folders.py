"""Finds the files that inputs name: files, folders and globs. Tells which files of a folder are not read.

Every file below a folder is either read or counted as not read, by the ending of its name. Hidden files and
folders (.git, .ipynb_checkpoints, .x.swp) and the copies that editors leave (x~, #x#, x.swp) are not read.
Linked folders are followed; a folder that several names lead to is read once, by its own name if that lies
below the input. The files of a folder that mt wrote are those of its manifest; of a folder that `datasets`
saved, those of its state.json; nothing else in these counts.

Each file has a label, from which its documents get ids if they have none: its path relative to the input, or
its name if the input names the file. Where two inputs give different files the same label, as many folders
stand before it as make them differ.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fnmatch
import glob
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from ..core import manifest, paths
from ..core.config import UserError
from ..core.parsing import SETTINGS_BYTES, check_value, read_json
from ..core.terminal import escape_line
from . import compression

Kind = Literal["lines", "json", "parquet", "arrow", "csv", "tsv", "text", "html"]
KINDS: dict[str, Kind] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
}
TABLES: dict[str, Kind] = {".parquet": "parquet", ".arrow": "arrow"}  # compressed inside, if at all
READ = (
    f"{' '.join(KINDS)}, each also with {' '.join(compression.ENDINGS)}; {' '.join(TABLES)}; other files as"
    " plain text with --include '*.ENDING'"
)
EDITORS = ("*~", "#*#", "*.swp", "*.swo")
NAMED_FILES = 3  # of those that are not read, in the message
NAMED_ENDINGS = 20  # in a message
HIDDEN = "hidden"


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file to read. label: begins the ids that its documents get; see above. kind: how it is read."""

    path: Path
    label: str
    kind: Kind


@dataclasses.dataclass
class NotRead:
    """The files of folders that are not read: how many of each ending, and the first ones in order."""

    endings: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    first: list[str] = dataclasses.field(default_factory=list)

    def add(self, path: Path, ending: str) -> None:
        """Names may be bytes that are no UTF-8, which no JSON file can have, so they are escaped."""
        self.endings[escape_line(ending)] += 1
        if len(self.first) < NAMED_FILES:
            self.first.append(escape_line(str(path)))

    def add_all(self, other: NotRead) -> None:
        self.endings += other.endings
        self.first = [*self.first, *other.first][:NAMED_FILES]

    def report(self) -> None:
        """Prints a line to standard error, unless every file is read."""
        if self:
            print(f"mt: {self}", file=sys.stderr, flush=True)

    def tell(self, run: manifest.Run) -> None:
        """Lets the manifest of a run tell the same."""
        if self:
            run.notes["not_read"] = self.as_json()

    def __bool__(self) -> bool:
        return bool(self.endings)

    def as_json(self) -> dict[str, Any]:
        """{"files": their number, "endings": {ending: number}, "first": [path]}."""
        return {
            "files": self.endings.total(),
            "endings": dict(self.endings.most_common()),
            "first": self.first,
        }

    def __str__(self) -> str:
        total = self.endings.total()
        kinds = ", ".join(
            f"{ending} {number:,}" for ending, number in self.endings.most_common(NAMED_ENDINGS)
        )
        kinds += ", ..." * (len(self.endings) > NAMED_ENDINGS)
        more = ", ..." if total > len(self.first) else ""
        return f"not read: {total:,} file{'s' * (total != 1)} ({kinds}): {', '.join(self.first)}{more}"


def kind_of(name: str, include: Sequence[str] = ()) -> Kind | None:
    """How a file is read, by its name or path relative to the input; None if it is not read.

    include: patterns of names that are read as plain text. One with a slash is matched with the whole path.
    """
    plain = compression.plain_name(name)
    base = os.path.basename(plain)
    for pattern in include:
        if any(
            fnmatch.fnmatchcase(part if "/" in pattern else os.path.basename(part), pattern)
            for part in (name, plain)
        ):
            return "text"
    ending = os.path.splitext(base)[1].lower()
    return KINDS.get(ending) or (TABLES.get(ending) if plain == name else None)


def find(inputs: Sequence[str], include: Sequence[str] = ()) -> list[InputFile]:
    """The files that several inputs name, with labels that differ: `files_of` each, then `distinct`."""
    return distinct([file for item in inputs for file in files_of(item, include, NotRead())])


def files_of(item: str, include: Sequence[str], not_read: NotRead) -> list[InputFile]:
    """The files that a file, folder or glob names, sorted.

    include: as for kind_of. not_read: gets the files of folders that are not read. Raises UserError for an
    input that names no file, and for a file named by itself that mt does not read.
    """
    path = Path(item)
    if path.is_dir():
        return list(_in_folder(path, Path(), include, not_read))
    if os.path.lexists(path):
        return [_named(path, path.name, include)]
    return list(_globbed(item, include, not_read))


def _named(path: Path, label: str, include: Sequence[str]) -> InputFile:
    """A file that the user names."""
    if not path.exists():
        raise UserError(f"{path}: is a link to a file that is not there; check the path")
    paths.refuse_stream(path)
    if (kind := kind_of(label, include)) is None:
        raise UserError(f"{path}: not a kind of file that mt reads; it reads {READ}")
    return InputFile(path, label, kind)


def _globbed(pattern: str, include: Sequence[str], not_read: NotRead) -> Iterator[InputFile]:
    """The files that a glob matches, and those in the folders that it matches."""
    names = sorted(glob.glob(pattern, recursive=True))
    if not names:
        raise UserError(f"{pattern}: no such file or directory; check the path")
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    # `**` follows links in circles. Of the names of a file in a folder the one without links is the shortest.
    own: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (name.count("/"), name)):
        folder, base = os.path.split(name.rstrip("/"))
        own.setdefault(os.path.join(os.path.realpath(folder), base), name)
    chosen = set(own.values())
    folders = [Path(name) for name in names if name in chosen and os.path.isdir(name)]
    for name in names:
        path = Path(name)
        if name not in chosen:
            continue
        if not path.is_dir():
            yield _named(path, str(path.relative_to(fixed)), include)
        elif "**" not in parts and not any(other in path.parents for other in folders):
            yield from _in_folder(path, path.relative_to(fixed), include, not_read)


def _in_folder(folder: Path, label: Path, include: Sequence[str], not_read: NotRead) -> Iterator[InputFile]:
    """The files of a folder. label: what stands before their relative paths in their labels."""
    if (written := _of_program(folder)) is not None:
        for path in written:
            relative = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
            yield dataclasses.replace(_named(path, str(relative), ()), label=str(label / relative))
        return
    skipped = NotRead()
    found = below(folder, lambda relative: _document_kind(relative, include) is not None, skipped)
    not_read.add_all(skipped)
    if not found:
        raise UserError(
            f"{folder}: holds no documents ({READ}){f'; {skipped}' if skipped else ''}; check the path"
        )
    for path in found:
        relative = path.relative_to(folder)
        if (kind := _document_kind(relative, include)) is not None:
            yield InputFile(path, str(label / relative), kind)


def _document_kind(relative: Path, include: Sequence[str]) -> Kind | None:
    # Another program's manifest.json does not hold documents.
    return None if relative.name == "manifest.json" else kind_of(str(relative), include)


def below(folder: Path, accept: Callable[[Path], bool], not_read: NotRead) -> list[Path]:
    """The files below a folder that are read, sorted.

    accept: whether a file is of a kind that is read, by its path relative to the folder. Hidden files, the
    copies of editors, and what is no regular file (a pipe, a link to nothing) are not read either. not_read:
    gets all that are not.
    """
    found = []
    for path, hidden in sorted(_walk(folder)):
        is_copy = any(fnmatch.fnmatchcase(path.name, copy) for copy in EDITORS)
        if not hidden and not is_copy and accept(path.relative_to(folder)) and path.is_file():
            found.append(path)
        else:
            not_read.add(path, HIDDEN if hidden else _ending(path.name))
    return found


def _ending(name: str) -> str:
    """The ending of a name as it is counted: `.png`, `.csv.bak`, `.tar.gz`."""
    stem, last = os.path.splitext(name)
    before = os.path.splitext(stem)[1]
    known = {*KINDS, *TABLES, ".tar", *compression.ENDINGS}
    return (before if before.lower() in known else "") + last or "no ending"


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(path, whether it or a folder above it is hidden) of all files below a folder.

    Links to folders are followed after the folders that are no links, so that a folder below `folder` is
    found under its own name.
    """
    seen: set[tuple[int, int]] = set()
    queue = collections.deque([(folder, False)])
    while queue:
        start, hidden = queue.popleft()
        stack = [(start, hidden)]
        while stack:
            place, hidden = stack.pop()
            found = place.stat()
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            for entry in _entries(place, hidden):
                below = hidden or entry.name.startswith(".")
                if entry.is_dir(follow_symlinks=False):
                    stack.append((Path(entry.path), below))
                elif entry.is_symlink() and _leads_to_folder(entry):
                    queue.append((Path(entry.path), below))
                else:
                    yield Path(entry.path), below


def _entries(folder: Path, hidden: bool) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted. A hidden folder that cannot be opened is taken as empty."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError:
        if hidden:
            return []
        raise UserError(
            f"{folder}: cannot be opened (permission denied); allow it, or name the other inputs one by one"
        ) from None


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link to itself
        return stat.S_ISDIR(entry.stat().st_mode)
    return False


def distinct(files: Sequence[InputFile]) -> list[InputFile]:
    """The files with labels that differ; raises UserError for a file that two inputs name."""
    labels = [file.label for file in files]
    whole = [os.path.abspath(file.path) for file in files]
    if twice := next((path for path, count in collections.Counter(whole).items() if count > 1), None):
        raise UserError(f"{twice}: two inputs name this file; name it once")
    more = 0  # folders put before the labels that are equal
    while True:
        same: dict[str, list[int]] = collections.defaultdict(list)
        for index, label in enumerate(labels):
            same[label].append(index)
        equal = [index for group in same.values() if len(group) > 1 for index in group]
        if not equal:
            return [
                file if file.label == label else dataclasses.replace(file, label=label)
                for file, label in zip(files, labels)
            ]
        more += 1
        for index in equal:
            count = len(Path(files[index].label).parts) + more
            labels[index] = str(Path(*Path(whole[index]).parts[-count:]))


def _of_program(folder: Path) -> list[Path] | None:
    """The files of a folder that mt or `datasets` wrote; None if neither did."""
    if (written := manifest.manifest_of(folder)) is not None:
        # A stage writes one file for each shard, even if it kept no document of the shard.
        return [
            manifest.output_path(folder / "manifest.json", o["name"])
            for o in written["outputs"]
            if o.get("documents", True) and o.get("rows") != 0 and kind_of(o["name"]) is not None
        ]
    if (folder / "run.json").exists():
        raise UserError(
            f"{folder}: holds an unfinished run of mt; run the command that writes it again first"
        )
    if (folder / "dataset_dict.json").exists():
        listing = folder / "dataset_dict.json"
        splits = check_value(read_json(listing, SETTINGS_BYTES), SavedSplits, listing)["splits"]
        example = f"; name one, as in {folder / splits[0]}" if splits else "; check the path"
        raise UserError(f"{folder}: holds the splits {', '.join(splits)} of a dataset{example}")
    if is_saved_dataset(folder):
        state = folder / "state.json"
        saved = check_value(read_json(state), SavedDataset, state)
        names = [file["filename"] for file in saved["_data_files"]]
        return [paths.named(folder, name, f"{state}, _data_files") for name in names]
    return None


class DataFile(TypedDict):
    """A file of a dataset that `datasets` saved."""

    filename: str


class SavedDataset(TypedDict):
    """The state.json of such a dataset."""

    _data_files: list[DataFile]


class SavedSplits(TypedDict):
    """The dataset_dict.json beside such datasets."""

    splits: list[str]


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "state.json").exists() and (folder / "dataset_info.json").exists()
