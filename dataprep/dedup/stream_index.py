"""The index of `mt data dedup --stream`: what was decided about earlier documents, and who is near a new one.

The first document with an exact key is a *node* with a number, as in components.py; other documents are
copies of it. Tables (stream_tables.py), with numbers as 8 bytes, big-endian:

    head     format: the settings, as JSON; documents: how many were decided; numbers: how many were given;
             unwritten: the verdicts that may not have been written yet, as JSON; owner
    seen     an identity (id and text, 128 bits) -> nothing: the document was decided
    exact    exact key -> number of the node
    parent   number -> an earlier node of the same cluster, or itself: the forest of a union-find
    name     number -> id of the node
    grams    number -> the hashes of its n-grams, uint64, little-endian, sorted and distinct: 8 bytes a word

datasketch's MinHashLSH has the bands: a bucket has the numbers of the nodes with an equal band. A new
document is compared with the first one of a bucket and with the last PAIR_WINDOW, as in key_index.py; others
are removed from the bucket. So no bucket grows.

A list of documents is decided in this order: read, compare, add to the buckets, commit everything else at
once. Numbers in a bucket that are not in `parent` are those of a list that was not committed, and are left
out. Whatever breaks off can therefore be repeated. After the commit the documents are written to standard
output, then `written` forgets the verdicts. A document that is sent again after a crash between the two gets
its verdict again; any other that is sent again, with the same id and text, was written before.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
import orjson
import xxhash

from ...core.config import UserError
from ...core.parsing import check_value
from .exact_keys import NO_KEY
from .jaccard import jaccard_similarities
from .key_index import PAIR_WINDOW
from .minhash import PERMUTATION_SEED
from .stream_tables import DOCUMENTS, HEAD, Changes, Tables, foreign, lost_documents

FORMAT, NUMBERS, UNWRITTEN = b"format", b"numbers", b"unwritten"
KEPT, AGAIN = "kept", "again"  # besides the reasons of removal
NUMBER = struct.Struct(">Q")
LARGE = 1 << 24  # bytes of n-grams that are not copied into the table


class Verdict(TypedDict):
    """What was decided about a document. what: "kept", "again" (nothing to do), or the reason of removal."""

    what: str
    survivor: str
    similarity: float


@dataclasses.dataclass(frozen=True)
class Signed:
    """A document as the index sees it.

    identity: 16 bytes, equal for a document that is sent again. exact: its exact key. grams: uint64, sorted
    and distinct. minhash: uint32 (bands * rows,), None without n-grams.
    """

    id: str
    identity: bytes
    exact: bytes
    grams: np.ndarray
    minhash: np.ndarray | None


def identity(id: str, text_key: bytes) -> bytes:
    """16 bytes that an id and a text have in common with no other. text_key: the exact key of the text."""
    return xxhash.xxh3_128_digest(text_key + id.encode())


class StreamIndex:
    """Decides about documents in order, in lists."""

    def __init__(
        self,
        tables: Tables,
        settings: dict[str, Any],
        *,
        threshold: float,
        banding: tuple[int, int],
        verify: bool,
        copy_reason: str,
    ):
        """settings: whatever changes a verdict. Raises UserError if the index was made with other ones.

        copy_reason: for documents with the exact key of an earlier one.
        """
        self.tables, self.settings = tables, settings
        self.threshold, self.verify, self.copy_reason = threshold, verify, copy_reason
        self.documents = 0
        self.unwritten: dict[bytes, Verdict] = {}
        self.lsh: Any = None
        if banding[0]:
            from datasketch import MinHashLSH

            self.lsh = MinHashLSH(
                num_perm=max(2, banding[0] * banding[1]),
                params=banding,
                storage_config=tables.lsh_storage,
                prepickle=False,
            )
        tables.retry(self._open, lambda: None)

    def _open(self) -> None:
        expected = orjson.dumps(self.settings, option=orjson.OPT_SORT_KEYS)
        [found] = self.tables.get(HEAD, [FORMAT])
        self._load()
        if found is None and not self.documents:
            self.tables.commit({HEAD: {FORMAT: expected}}, self.documents)
        elif found != expected:
            before = self._parsed(found or b"", dict[str, Any], "format")
            differences = [
                f"{name} = {before.get(name)} there and {value} here"
                for name, value in self.settings.items()
                if before.get(name) != value
            ]
            raise UserError(
                f"{self.tables.name}: was made with {', '.join(differences) or 'other settings'}; give the"
                " same settings, or choose another DB"
            )

    def _load(self) -> None:
        """Reads what may have changed since this process knew it."""
        count, unwritten = self.tables.get(HEAD, [DOCUMENTS, UNWRITTEN])
        try:
            documents = int(count or b"0")
        except ValueError:
            raise foreign(self.tables.name, "no number of documents") from None
        if documents < self.documents:
            raise lost_documents(self.tables.name, count, self.documents)
        self.documents = documents
        verdicts = self._parsed(unwritten or b"{}", dict[str, Verdict], "unwritten")
        try:
            self.unwritten = {bytes.fromhex(key): verdict for key, verdict in verdicts.items()}
        except ValueError:
            raise foreign(self.tables.name, "unwritten") from None

    def _parsed(self, data: bytes, kind: Any, what: str) -> Any:
        try:
            return check_value(orjson.loads(data), kind, what)
        except (orjson.JSONDecodeError, UserError):
            raise foreign(self.tables.name, what) from None

    def decide(self, documents: Sequence[Signed]) -> list[Verdict]:
        """The verdicts on documents, in order. They stay in `unwritten` until `written` is called."""
        return self.tables.retry(lambda: self._decide(documents), self._load)

    def _decide(self, documents: Sequence[Signed]) -> list[Verdict]:
        known = self.tables.get("seen", [d.identity for d in documents])
        decision = _Decision(self, documents, {d.identity for d, k in zip(documents, known) if k is not None})
        verdicts = [decision.verdict(document) for document in documents]
        decision.insert()
        decided = len(decision.changes["seen"])
        unwritten = {**self.unwritten, **decision.unwritten}
        head = {DOCUMENTS: b"%d" % (self.documents + decided), UNWRITTEN: _unwritten_json(unwritten)}
        if decided:
            self.tables.commit({**decision.changes, HEAD: head}, self.documents)
            self.documents += decided
            self.unwritten = unwritten
        return verdicts

    def written(self, documents: Iterable[Signed]) -> None:
        """To be called when the verdicts on the last documents cannot be lost any more."""
        left = dict(self.unwritten)
        for document in documents:
            left.pop(document.identity, None)
        if left == self.unwritten:
            return
        forget: Changes = {HEAD: {UNWRITTEN: _unwritten_json(left)}}
        self.tables.retry(lambda: self.tables.commit(forget, self.documents), lambda: None)
        self.unwritten = left

    def parents(self, numbers: Sequence[int]) -> dict[int, int]:
        """The parents of nodes; none for the number of a list that was not committed."""
        found = self.tables.get("parent", list(map(NUMBER.pack, numbers)))
        return {n: self._number(value) for n, value in zip(numbers, found) if value is not None}

    def grams(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """The n-grams of committed nodes."""
        arrays = []
        for value in self.tables.get("grams", list(map(NUMBER.pack, numbers))):
            if value is None or len(value) % 8:
                raise foreign(self.tables.name, "grams")
            arrays.append(array := np.frombuffer(value, "<u8"))
            if (array[1:] <= array[:-1]).any():
                raise foreign(self.tables.name, "grams that are not sorted")
        return arrays

    def name(self, number: int) -> str:
        """The id of a committed node."""
        [value] = self.tables.get("name", [NUMBER.pack(number)])
        try:
            assert value is not None
            return value.decode()
        except (AssertionError, UnicodeDecodeError):
            raise foreign(self.tables.name, "name") from None

    def nodes(self, exact_keys: Sequence[bytes]) -> dict[bytes, int]:
        """The nodes with these exact keys."""
        found = self.tables.get("exact", exact_keys)
        return {key: self._number(value) for key, value in zip(exact_keys, found) if value is not None}

    def buckets(self, hashes: Sequence[Sequence[bytes]]) -> list[dict[bytes, list[int]]]:
        """For each band, {hash: the numbers in its bucket, sorted}. hashes: of each band, distinct."""
        return [
            {h: sorted(map(self._number, found)) for h, found in zip(wanted, table.getmany(*wanted))}
            for table, wanted in zip(self.lsh.hashtables, hashes)
        ]

    def _number(self, value: bytes) -> int:
        if len(value) != NUMBER.size:
            raise foreign(self.tables.name, "a number")
        number: int = NUMBER.unpack(value)[0]
        return number


class _Decision:
    """The decision about one list: what the index says, and over it what the list itself adds."""

    def __init__(self, index: StreamIndex, documents: Sequence[Signed], seen: set[bytes]):
        self.index, self.seen = index, seen
        self.unwritten: dict[bytes, Verdict] = {}
        self.changes: dict[str, dict[bytes, bytes]] = {
            name: {} for name in ("seen", "exact", "parent", "name", "grams")
        }
        new = [d for d in documents if d.identity not in seen]
        self.node_of = index.nodes(list({d.exact for d in new} - {NO_KEY}))
        self.parent: dict[int, int] = {}
        self.added: dict[int, Signed] = {}  # new nodes with n-grams
        self.names: dict[int, str] = {}
        self.old: list[tuple[int, bytes, int]] = []  # (band, hash, number) to remove from buckets
        # numbers that a list before has taken and not committed are not given again
        self.next = index.tables.add(NUMBERS, len(new)) - len(new)
        if self.next < index.documents:  # else nodes would be overwritten
            index._load()  # it raises if Redis has lost documents
            raise foreign(index.tables.name, f"{self.next} numbers for {index.documents} documents")
        self.hashes = {d.identity: self._hashes(d) for d in new if d.exact not in self.node_of}
        self.buckets = self._load_buckets()

    def _hashes(self, document: Signed) -> list[bytes]:
        """The hash of each band, as MinHashLSH makes it."""
        if document.minhash is None:
            return []
        lsh = self.index.lsh
        values = _minhash(document.minhash).hashvalues
        return [lsh._H(values[start:end]) for start, end in lsh.hashranges]

    def _load_buckets(self) -> list[dict[bytes, list[int]]]:
        """The committed members of all buckets of the list that can be in a pair."""
        bands = [list(dict.fromkeys(band)) for band in zip(*filter(None, self.hashes.values()))]
        if not bands:
            return []
        buckets = self.index.buckets(bands)
        numbers = list({n for band in buckets for members in band.values() for n in members})
        self.parent |= self.index.parents(numbers)
        for band, found in enumerate(buckets):
            for h, members in found.items():
                members = [n for n in members if n in self.parent]
                self.old += [(band, h, n) for n in members[1:-PAIR_WINDOW]]
                found[h] = members[:1] + members[1:][-PAIR_WINDOW:]
        return buckets

    def verdict(self, document: Signed) -> Verdict:
        if document.identity in self.seen:
            return self.index.unwritten.get(document.identity) or _verdict(AGAIN)
        self.seen.add(document.identity)
        self.changes["seen"][document.identity] = b""
        node = self.node_of.get(document.exact)
        is_copy = node is not None
        if node is None:
            node = self._add(document)
        survivor = self._root(node)
        if survivor == node:
            verdict = _verdict(self.index.copy_reason, self._name(node), 1.0) if is_copy else _verdict(KEPT)
        else:
            similarity = float(self._similarities(self._grams([node])[0], [survivor])[0])
            verdict = _verdict("near", self._name(survivor), similarity)
        self.unwritten[document.identity] = verdict
        return verdict

    def _add(self, document: Signed) -> int:
        """Makes a node of a document and joins it with those that it is near to; returns its number."""
        node, self.next = self.next, self.next + 1
        near = self._near(document)
        root = min([node, *map(self._root, near)])
        for joined in {node, *map(self._root, near)}:
            self._set_parent(joined, root)
        key = NUMBER.pack(node)
        if document.exact != NO_KEY:
            self.node_of[document.exact] = node
            self.changes["exact"][document.exact] = key
        self.names[node] = document.id
        self.changes["name"][key] = document.id.encode()
        if document.minhash is not None:
            self.added[node] = document
            grams: Any = document.grams.astype("<u8", copy=False)
            self.changes["grams"][key] = grams.data.cast("B") if grams.nbytes > LARGE else grams.tobytes()
            for band, h in enumerate(self.hashes[document.identity]):
                self.buckets[band][h].append(node)
        return node

    def _near(self, document: Signed) -> list[int]:
        """The nodes that a document is a near duplicate of."""
        found: set[int] = set()
        for bucket, h in zip(self.buckets, self.hashes[document.identity]):
            members = bucket[h]
            found.update(members[:1], members[-PAIR_WINDOW:])
        candidates = sorted(found)
        if not candidates or not self.index.verify:
            return candidates
        similar = self._similarities(document.grams, candidates) >= self.index.threshold
        return [n for n, is_near in zip(candidates, similar.tolist()) if is_near]

    def _similarities(self, grams: np.ndarray, others: list[int]) -> np.ndarray:
        sets = [grams, *self._grams(others)]
        a, b = np.zeros(len(others), np.int64), np.arange(1, len(others) + 1)
        return jaccard_similarities(sets, a, b)

    def _grams(self, numbers: list[int]) -> list[np.ndarray]:
        stored = [n for n in numbers if n not in self.added]
        loaded = dict(zip(stored, self.index.grams(stored)))
        return [self.added[n].grams if n in self.added else loaded[n] for n in numbers]

    def _root(self, node: int) -> int:
        """The first document of a node's cluster; shortens the path to it."""
        path = []
        while (parent := self._parent(node)) != node:
            if parent > node:
                raise foreign(self.index.tables.name, "a parent that comes later")
            path.append(node)
            node = parent
        for passed in path[:-1]:
            self._set_parent(passed, node)
        return node

    def _parent(self, node: int) -> int:
        if node not in self.parent:
            found = self.index.parents([node])
            if node not in found:
                raise foreign(self.index.tables.name, "a node without a parent")
            self.parent |= found
        return self.parent[node]

    def _set_parent(self, node: int, parent: int) -> None:
        self.parent[node] = parent
        self.changes["parent"][NUMBER.pack(node)] = NUMBER.pack(parent)

    def _name(self, node: int) -> str:
        return self.names[node] if node in self.names else self.index.name(node)

    def insert(self) -> None:
        """Adds the new nodes to the buckets, and removes from them those that will be in no pair."""
        if not self.added:
            return
        with self.index.lsh.insertion_session() as session:
            for number, document in self.added.items():
                key = NUMBER.pack(number)
                session.insert(key, _minhash(document.minhash), check_duplication=False)
            for band, h, number in self.old:
                self.index.lsh.hashtables[band].remove_val(h, NUMBER.pack(number), buffer=True)


def _minhash(signature: Any) -> Any:
    """A signature as datasketch's LeanMinHash; the permutations are affine and of 32 bits, as those there."""
    from datasketch import LeanMinHash

    return LeanMinHash(seed=PERMUTATION_SEED, hashvalues=signature, scheme="affine32")


def _verdict(what: str, survivor: str = "", similarity: float = 0.0) -> Verdict:
    return {"what": what, "survivor": survivor, "similarity": similarity}


def _unwritten_json(verdicts: dict[bytes, Verdict]) -> bytes:
    return orjson.dumps({key.hex(): verdict for key, verdict in verdicts.items()})
