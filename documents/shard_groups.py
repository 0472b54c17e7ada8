"""Groups of small shards: what one worker of a stage reads, and writes one file for.

A stage saves the result of each of its tasks, and syncs every file of it to the disk. For a file of one line
that costs a thousand times as much as the line. So small files that follow each other share a task.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from . import reader
from .reader import Document
from .rejects import Rejecter
from .sharding import Shard

SHARE = 16  # files of less than 1 / SHARE of a shard share a group, up to that size
FILE_BYTES = 1000  # added for each file: opening one takes as long as cleaning so many bytes
# How small files are grouped: a run that was killed continues only if this has not changed.
GROUP_RULES = "1"


@dataclasses.dataclass(frozen=True)
class ShardGroup:
    """One shard, or some small ones in the order of the inputs. bytes: of all of them."""

    shards: tuple[Shard, ...]
    bytes: int

    @property
    def name(self) -> str:
        """The names of the inputs in messages."""
        more = f" and {len(self.shards) - 1} more files" if len(self.shards) > 1 else ""
        return f"{self.shards[0].name}{more}"

    def read(self, reject: Rejecter | None = None) -> Iterator[Document]:
        """The documents of all shards, in order; as reader.read."""
        return itertools.chain.from_iterable(reader.read(shard, reject) for shard in self.shards)

    def fields(self) -> dict[str, Any]:
        """{name: pyarrow.Field} of columns that have one type in all shards; {} if one is not of columns."""
        known = [reader.fields(shard) for shard in self.shards]
        if not all(known):
            return {}
        merged = {name: field for fields in known for name, field in fields.items()}
        return {
            name: field
            for name, field in merged.items()
            if all(fields[name].type == field.type for fields in known if name in fields)
        }


def group(shards: Iterable[Shard], shard_bytes: int) -> list[ShardGroup]:
    """The shards in groups, which depend on the sizes of the shards and on shard_bytes alone.

    A shard of at least shard_bytes / SHARE is alone.
    """
    groups: list[ShardGroup] = []
    small: list[Shard] = []
    size = 0

    def close() -> None:
        if small:
            groups.append(ShardGroup(tuple(small), sum(s.bytes for s in small)))
            small.clear()

    for shard in shards:
        # the size of a dataset's shards may not be known
        weight = shard_bytes if shard.kind == "hub" else shard.bytes + FILE_BYTES
        if size + weight > shard_bytes // SHARE:
            close()
            size = 0
        small.append(shard)
        size += weight
    close()
    return groups


def facts(groups: Sequence[ShardGroup]) -> dict[str, str]:
    """What the key of a stage has about the groups: nothing if each is one shard, as in earlier versions."""
    return {"small_files": GROUP_RULES} if any(len(g.shards) > 1 for g in groups) else {}
