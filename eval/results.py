"""Writes the results of an evaluation, and distributes its examples over processes.

Without `--output` a command only returns its summary. With it the directory holds

    predictions.jsonl     one line for every example, in the order of the input
    rejects.jsonl         records that could not be read (only if there are any)
    manifest.json         settings, inputs, counts, scores; written last

and the same command returns the finished summary when it runs again. An evaluation that ends with UserError
leaves the directory empty.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ..core import manifest
from ..core.config import UserError, to_dict
from ..documents import reader, sources
from ..documents.reader import Document
from ..documents.rejects import Reject
from ..documents.sharding import Plan, Shard
from ..train.compile import keep_freed_memory
from ..train.parallel.mesh import Mesh, ParallelConfig, launch
from .lm import batched

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Results:
    """The results of one evaluation, in a `with` block.

    finished: the summary of an earlier run of the same command, which the output directory holds; otherwise
    None.

    verb: the command's name in the manifest. config: has a field `output` (role "output") that may be None.
    inputs: every file or directory that is read. mesh: the ranks of this command, of which rank 0 writes.
    shards: those of the inputs that are documents.
    """

    def __init__(
        self,
        verb: str,
        config: Any,
        inputs: Iterable[str | Path],
        mesh: Mesh | None = None,
        shards: Plan | None = None,
    ):
        self.verb, self.config = verb, config

        def begin() -> manifest.Run | None:
            if config.output is None:
                return None
            identify = sources.identity if shards is None else shards.identity()
            run = manifest.begin(verb, config, inputs, identify=identify)
            if shards is not None:
                shards.not_read.tell(run)
            return run

        self.run = begin() if mesh is None else mesh.on_rank_0(begin)
        finished = self.run.manifest if self.run is not None and self.run.finished else None
        self.finished = finished if mesh is None else mesh.broadcast_object(finished)
        self.silent = mesh is not None and mesh.rank != 0
        self.rejects: list[dict] = []

    def __enter__(self) -> Results:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        # Otherwise the directory would be that of another run once the user has corrected the input.
        if kind is None or not issubclass(kind, UserError) or self.run is None:
            return
        if not self.run.manifest and not any(self.run.output.glob("step_*")):
            self.run.abandon()

    def reject(self, reject: Reject) -> None:
        """Sets a record aside; prints it where there is no output directory to list it in."""
        self.rejects.append(reject.as_json())
        if self.run is None and not self.silent:
            print(f"mt: {reject.file}, {reject.place}: {reject.reason}; set aside", file=sys.stderr)

    def refuse(self, shard: Shard, place: str, problem: str, document: Document) -> None:
        """A record that can be read but not used: raises UserError, or sets it aside (on_error "skip")."""
        if shard.on_error == "fail":
            raise UserError(
                f"{shard.path}, {place}: {problem}; mend it, or pass --on-error skip to set such records"
                " aside"
            )
        self.reject(Reject(shard.path, place, problem, document.text))

    @contextlib.contextmanager
    def predictions(self) -> Iterator[Callable[[dict], None]]:
        """`with results.predictions() as write: write({"id": ...})` writes a line of predictions.jsonl.

        Without an output directory `write` does nothing.
        """
        if self.run is None:
            yield lambda prediction: None
            return
        with manifest.atomic_write(self.run.output / "predictions.jsonl", "w") as file:
            yield lambda prediction: file.write(json.dumps(prediction, ensure_ascii=False) + "\n")

    def finish(self, counts: dict, files: Iterable[Path] = (), **facts) -> dict:
        """The summary: counts, `facts` (scores, samples) and settings; also written as the manifest.

        files: further files in the output directory.
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
    """The mesh of this command's processes, those of torchrun or this one alone, for a `with` block.

    Every rank finds a user's mistake; only rank 0 reports it, the others exit.

    patience_minutes: timeout of communication between ranks.
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
    mesh: Mesh, items: Iterable[Item], work: Callable[[list[Item]], list[Answer]], at_once: int
) -> Iterator[tuple[Item, Answer]]:
    """(item, its answer) of all items, in order, on every rank.

    work: the answers of a list of items. Each data-parallel rank works on another block of `at_once` items,
    so that the blocks do not depend on the number of ranks. UserError of one rank is raised on all.
    """
    blocks, replicas = batched(items, at_once), mesh.dp
    while turn := list(itertools.islice(blocks, replicas.size)):
        own: list[Answer] | UserError | None = None
        if replicas.rank < len(turn):
            try:
                own = work(turn[replicas.rank])
            except UserError as error:
                own = error
        # the tensor-parallel ranks of a replica are consecutive and have the same answers
        gathered = mesh.all_gather_object(own if mesh.tp.rank == 0 else None)[:: mesh.tp.size]
        for block, answers in zip(turn, gathered):
            if isinstance(answers, UserError):
                raise answers
            yield from zip(block, answers, strict=True)


def read_records(shard: Shard, results: Results) -> Iterator[tuple[str, Document]]:
    """("record N", document) of every record of a whole file that can be read.

    The other records count too, and are set aside.
    """
    number = 0

    def reject(reject: Reject) -> None:
        nonlocal number
        number += 1
        results.reject(reject)

    for document in reader.read(shard, reject):
        number += 1
        yield f"record {number}", document
