"""A queue that serves its clients in turn, so that one with many texts keeps no other waiting."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of clients: the first of each client in turn, a client's own in their order."""

    def __init__(self) -> None:
        self._items: collections.OrderedDict[str, collections.deque[T]] = collections.OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def append(self, client: str, item: T) -> None:
        self._items.setdefault(client, collections.deque()).append(item)
        self._length += 1

    def first(self) -> T:
        """The item that popleft would return."""
        return next(iter(self._items.values()))[0]

    def popleft(self) -> T:
        """Removes an item of the client whose turn it is; the next one is another client's."""
        client, items = next(iter(self._items.items()))
        item = items.popleft()
        self._items.move_to_end(client)
        self._forget(client)
        return item

    def remove(self, client: str, item: T) -> bool:
        """Removes an item; returns whether it was there."""
        place = next((n for n, one in enumerate(self.of(client)) if one is item), None)
        if place is None:
            return False
        del self._items[client][place]
        self._forget(client)
        return True

    def of(self, client: str) -> Sequence[T]:
        return self._items.get(client) or ()

    def counts(self) -> collections.Counter[str]:
        """Items by client."""
        return collections.Counter({client: len(items) for client, items in self._items.items()})

    def __iter__(self) -> Iterator[T]:
        for items in self._items.values():
            yield from items

    def _forget(self, client: str) -> None:
        self._length -= 1
        if not self._items[client]:
            del self._items[client]
