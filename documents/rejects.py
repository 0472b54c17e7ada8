"""Records that cannot be read: the reason, and what happens to them (`--on-error`)."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core import manifest
from ..core.config import UserError
from . import values
from .files import BEGINNING_BYTES
from .sharding import Shard

MAX_REJECTS, REJECT_BYTES = 1_000_000, 256 << 20


@dataclasses.dataclass
class Reject:
    """A record that could not be read.

    place: "line 3" or "row 3". raw: its bytes as text if they are UTF-8, else in base64; of a record that is
    too long, the first 1,000.
    """

    file: str
    place: str
    reason: str
    raw: str

    def as_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


def too_many(reject: Reject) -> UserError:
    """The refusal of a shard with more than MAX_REJECTS rejects: a small file can hold billions."""
    return UserError(f"{reject.file}: {MAX_REJECTS:,} records cannot be read; check the input")


class Rejects(list[Reject]):
    """Rejects that wait in memory to be written; of those after the first REJECT_BYTES only beginnings stay.

    `append` raises UserError after MAX_REJECTS.
    """

    num_bytes = 0

    def append(self, reject: Reject) -> None:
        if len(self) >= MAX_REJECTS:
            raise too_many(reject)
        self.num_bytes += len(reject.raw)
        if self.num_bytes > REJECT_BYTES:
            reject = dataclasses.replace(reject, raw=reject.raw[:BEGINNING_BYTES])
        super().append(reject)

    def write(self, path: Path) -> None:
        """Writes them to a file, a JSON object a line."""
        with manifest.atomic_write(path, "w") as file:
            file.writelines(json.dumps(r.as_json(), ensure_ascii=False) + "\n" for r in self)

    def clear(self) -> None:
        self.num_bytes = 0
        super().clear()


Rejecter = Callable[[Reject], None]


def set_aside(
    shard: Shard, place: str, reason: str, raw: bytes | dict[str, Any], reject: Rejecter | None
) -> None:
    """Passes a record that cannot be read to `reject`, or raises UserError."""
    if shard.on_error == "fail" or reject is None:
        raise UserError(
            f"{shard.name}{place}: {reason}; mend it, or pass --on-error skip to set such records aside"
        )
    reject(Reject(shard.name, place.removeprefix(", "), reason, _printable(raw)))


def _printable(raw: bytes | dict[str, Any]) -> str:
    if isinstance(raw, dict):
        try:
            raw = values.json_bytes(raw)
        except ValueError:  # it is nested too deep
            raw = repr(list(raw)).encode()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()
