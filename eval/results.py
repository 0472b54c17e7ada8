"""where an evaluation's results go: the summary that is printed, and a directory where one is named.

Without `--output` nothing is claimed or written. With it the directory holds

    predictions.jsonl     one line for every example, in the order of the input
    rejects.jsonl         records that could not be read (only if there are any)
    manifest.json         settings, inputs, counts, scores; written last

and the same command again returns what it holds. An evaluation ended by a user's mistake leaves nothing
there.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..core import manifest
from ..core.config import UserError, to_dict
from ..documents import reader, sources
from ..documents.reader import Document, Reject, Shard
from ..train.compile import keep_freed_memory
from ..train.parallel.mesh import Mesh, ParallelConfig, launch
from .lm import batched


class Results:
    """The results of one evaluation, in a `with` block; `finished` is the summary where the output directory
    holds it already.

    config: has a field `output` (role "output") that may be None. inputs: every file or directory that is
    read. mesh: the ranks of this command, of which the first writes.
    """

    def __init__(self, verb: str, config, inputs: Iterable[str | Path], mesh: Mesh | None = None):
        self.verb, self.config = verb, config
        begin = lambda: (
            manifest.begin(verb, config, inputs, identify=sources.identity)
            if config.output is not None
            else None
        )
        self.run = begin() if mesh is None else mesh.on_rank_0(begin)
        finished = self.run.manifest if self.run is not None and self.run.finished else None
        self.finished = finished if mesh is None else mesh.broadcast_object(finished)
        self.silent = mesh is not None and mesh.rank != 0
        self.rejects: list[dict] = []

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if (
            kind is not None
            and issubclass(kind, UserError)
            and self.run is not None
            and not self.run.manifest
            and not any(self.run.output.glob("step_*"))
        ):
            self.run.abandon()  # the mended input would be refused as another run's

    def reject(self, reject: Reject) -> None:
        """Sets a record aside, and says so where no file will."""
        self.rejects.append(reject.as_json())
        if self.run is None and not self.silent:
            print(f"mt: {reject.file}, {reject.place}: {reject.reason}; set aside", file=sys.stderr)

    def refuse(self, shard: Shard, place: str, problem: str, document: Document) -> None:
        """A record that can be read but not used: UserError, or set aside where shard.on_error is "skip"."""
        if shard.on_error == "fail":
            raise UserError(
                f"{shard.path}, {place}: {problem}; mend it, or pass --on-error skip to set such records"
                " aside"
            )
        self.reject(Reject(shard.path, place, problem, document.text))

    @contextlib.contextmanager
    def predictions(self) -> Iterator[Callable[[dict], None]]:
        """`with results.predictions() as write: write({"id": ...})`: a line for each example, if anybody
        wants them.
        """
        if self.run is None:
            yield lambda prediction: None
            return
        with manifest.atomic_write(self.run.output / "predictions.jsonl", "w") as file:
            yield lambda prediction: file.write(json.dumps(prediction, ensure_ascii=False) + "\n")

    def finish(self, counts: dict, files: Iterable[Path] = (), **facts) -> dict:
        """The summary: counts, `facts` (scores, samples) and the settings; sealed in the output directory if
        there is one.

        files: what else lies there.
        """
        counts = {**counts, "rejected": len(self.rejects)}
        if self.run is None:
            return {"verb": self.verb, "settings": to_dict(self.config), "counts": counts, **facts}
        root = self.run.output
        outputs = [manifest.record(path, root) for path in (root / "predictions.jsonl", *files)]
        if self.rejects:
            with manifest.atomic_write(root / "rejects.jsonl", "w") as file:
                file.writelines(json.dumps(reject, ensure_ascii=False) + "\n" for reject in self.rejects)
            outputs.append({**manifest.record(root / "rejects.jsonl", root), "documents": False})
        return self.run.finish(outputs, counts, **facts)


@contextlib.contextmanager
def launch_ranks(tensor_model_parallel_size: int = 1, patience_minutes: float = 10.0) -> Iterator[Mesh]:
    """All processes of this command, torchrun's or this one alone.

    A user's mistake, which all find, is said by the first.

    patience_minutes: how long one waits for another.
    """
    with launch(
        ParallelConfig(
            tensor_model_parallel_size=tensor_model_parallel_size,
            distributed_timeout_minutes=patience_minutes,
        )
    ) as mesh:
        if mesh.device.type == "cpu":
            keep_freed_memory()
        try:
            yield mesh
        except UserError:
            if mesh.rank != 0:
                mesh.exit_quietly()
            raise


def map_over_ranks(
    mesh: Mesh, items: Iterable, work: Callable[[list], list], at_once: int
) -> Iterator[tuple]:
    """(item, its answer) of all items, in order and on every rank; data-parallel ranks work on different
    blocks of `at_once` at a time.

    work: the answers for a list of items. Nothing is worked on twice, and what is worked on together does not
    depend on the number of ranks. A mistake of the user's that work finds on one rank is raised on all.
    """
    blocks, replicas = batched(items, at_once), mesh.dp
    while turn := list(itertools.islice(blocks, replicas.size)):
        mine = None
        if replicas.rank < len(turn):
            try:
                mine = work(turn[replicas.rank])
            except UserError as mistake:
                mine = mistake
        # the ranks of a replica are neighbours, and have the same answers
        found = mesh.all_gather_object(mine if mesh.tp.rank == 0 else None)[:: mesh.tp.size]
        for block, answers in zip(turn, found):
            if isinstance(answers, UserError):
                raise answers
            yield from zip(block, answers, strict=True)


def read_records(shard: Shard, results: Results) -> Iterator[tuple[str, Document]]:
    """("record N", document) of every record of a whole file that can be read; the others are counted and set
    aside.
    """
    number = 0

    def reject(reject: Reject) -> None:
        nonlocal number
        number += 1
        results.reject(reject)

    for document in reader.read(shard, reject):
        number += 1
        yield f"record {number}", document
