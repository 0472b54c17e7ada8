"""The tables of a stream's index, in memory or in Redis, beside those of datasketch's MinHashLSH.

A *table* maps keys to values, both bytes. `commit` changes several tables at once: all of it happens or
nothing. In Redis a table is a hash with the name `mt_dedup:NAME`, a commit is one MULTI/EXEC, and MinHashLSH
keeps its buckets under names that begin with `mt_dedup_bucket_` and `mt_dedup_keys`. Nothing is pickled.

What lies in Redis may be a stranger's: a value of another type raises UserError here, and stream_index.py
checks what values hold. A connection that is lost is made again for about a minute (`Redis.retry`). Then, or
if Redis comes back without what it had, Failure ends the command.
"""

from __future__ import annotations

import secrets
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ...core.config import Failure, UserError
from ...core.extras import needs_package

T = TypeVar("T")
Changes = Mapping[str, Mapping[bytes, bytes]]  # {table: {key: value}}
PREFIX = "mt_dedup"
HEAD = "head"  # the table of what is known of the index as a whole
OWNER, DOCUMENTS = b"owner", b"documents"  # keys of HEAD
WAITS = (0.1, 0.2, 0.5, 1, 2, 4, 8, 8, 8, 8, 8, 8, 8)  # seconds before the index is asked again
TIMEOUT = 30  # seconds for one answer


class Tables(Protocol):
    """The tables of an index."""

    name: str  # of the index in messages
    lsh_storage: dict[str, Any]  # storage_config of MinHashLSH

    def get(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys, None where there is none."""
        ...

    def add(self, key: bytes, amount: int) -> int:
        """Adds to a number of HEAD, at once; returns the sum."""
        ...

    def commit(self, changes: Changes, documents: int) -> None:
        """Changes tables, all or nothing. documents: what HEAD must say of their number before."""
        ...

    def retry(self, action: Callable[[], T], begin_again: Callable[[], None]) -> T:
        """The result of an action, which is repeated if the connection is lost, after `begin_again`."""
        ...


class MemoryTables:
    """Tables in memory."""

    name = "the index in memory"

    def __init__(self) -> None:
        self.lsh_storage: dict[str, Any] = {"type": "dict"}
        self._tables: dict[str, dict[bytes, bytes]] = {}

    def get(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(map(self._tables.get(table, {}).get, keys))

    def add(self, key: bytes, amount: int) -> int:
        total = int(self.get(HEAD, [key])[0] or 0) + amount
        self.commit({HEAD: {key: b"%d" % total}}, 0)
        return total

    def commit(self, changes: Changes, documents: int) -> None:
        for table, values in changes.items():
            self._tables.setdefault(table, {}).update(values)

    def retry(self, action: Callable[[], T], begin_again: Callable[[], None]) -> T:
        return action()


class RedisTables:
    """Tables in Redis. The process that opened them last owns them; a commit of another one fails."""

    def __init__(self, url: str):
        """url: redis://[USER:PASSWORD@]HOST[:PORT]/DB, or rediss:// for TLS."""
        redis = _client()
        self.name = f"index {_without_password(url)}"
        try:
            self._pool = redis.ConnectionPool.from_url(
                url,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),  # `retry` below does it
            )
        except ValueError as error:  # of the port
            raise UserError(f"{self.name}: {error}; give redis://HOST[:PORT]/DB") from None
        self._redis = redis.Redis(connection_pool=self._pool)
        self._owner = secrets.token_hex(8).encode()
        self.lsh_storage = {
            "type": "redis",
            "basename": PREFIX.encode(),
            "redis": {"connection_pool": self._pool},
            "redis_buffer": {"transaction": False},
        }
        self.retry(self._open, lambda: None)

    def _open(self) -> None:
        self._check_server()
        self._redis.hset(_key(HEAD), OWNER, self._owner)

    def _check_server(self) -> None:
        """Raises UserError if the server may drop keys; warns if it loses them when it is killed."""
        import redis

        try:
            facts = self._redis.config_get("maxmemory", "maxmemory-policy", "appendonly")
        except redis.ResponseError:  # a server that does not let us ask
            return
        policy = facts.get("maxmemory-policy", "noeviction")
        if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
            raise UserError(
                f"{self.name}: maxmemory-policy = {policy} lets Redis drop parts of the index, and with them"
                " duplicates would pass; set maxmemory-policy noeviction"
            )
        if facts.get("appendonly") == "no":
            print(
                f"mt: {self.name}: appendonly is off: a Redis that is killed loses what it has not saved; set"
                " appendonly yes",
                file=sys.stderr,
            )

    def get(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return list(self._redis.hmget(_key(table), list(keys))) if keys else []

    def add(self, key: bytes, amount: int) -> int:
        return int(self._redis.hincrby(_key(HEAD), key.decode(), amount))

    def commit(self, changes: Changes, documents: int) -> None:
        import redis

        try:
            self._commit(changes, documents)
        except redis.WatchError as error:
            # HEAD was changed, or the connection was lost: redis-py tells both by this error, and the second
            # attempt of `retry` tells them apart
            raise redis.ConnectionError(str(error)) from None

    def _commit(self, changes: Changes, documents: int) -> None:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.watch(_key(HEAD))
            owner, count = pipe.hmget(_key(HEAD), [OWNER, DOCUMENTS])
            if owner != self._owner:
                raise Failure(
                    f"{self.name}: is not this command's any more: another `mt data dedup --stream` has"
                    " opened it, or Redis has lost it; run one at a time, and with appendonly yes"
                )
            if (count or b"0") != b"%d" % documents:
                raise lost_documents(self.name, count, documents)
            pipe.multi()
            for table, values in changes.items():
                if values:
                    pipe.hset(_key(table), mapping=dict(values))
            pipe.execute()

    def retry(self, action: Callable[[], T], begin_again: Callable[[], None]) -> T:
        import redis

        problem: Exception
        for number, wait in enumerate((0, *WAITS)):
            time.sleep(wait)
            try:
                if number:
                    begin_again()
                return action()
            except (redis.AuthenticationError, redis.exceptions.AuthorizationError) as error:
                raise UserError(f"{self.name}: {error}; give redis://USER:PASSWORD@HOST/DB") from None
            except (redis.ConnectionError, redis.TimeoutError) as error:
                problem = error
                if number == 1:
                    print(f"mt: {self.name}: no connection ({error}); trying again", file=sys.stderr)
            except redis.ResponseError as error:
                if "WRONGTYPE" in str(error) or "not an integer" in str(error):
                    raise foreign(self.name, str(error)) from None
                raise Failure(f"{self.name}: Redis refuses: {error}") from None
            except redis.RedisError as error:
                raise Failure(f"{self.name}: {error}") from None
        raise Failure(
            f"{self.name}: no connection ({problem}) in {sum(WAITS):.0f} seconds; start Redis, and send again"
            " the documents that were not answered: what was decided is in the index"
        )


def lost_documents(name: str, count: bytes | None, documents: int) -> Failure:
    """The error for a server that came back with fewer documents."""
    return Failure(
        f"{name}: Redis came back with {int(count or 0):,} of {documents:,} documents: it lost what it had"
        " not saved; set appendonly yes and appendfsync always, and send again the documents that it lost"
    )


def foreign(name: str, what: str) -> UserError:
    """The error for an index that mt did not write."""
    return UserError(f"{name}: holds what mt does not write ({what}); choose another DB, or empty this one")


def _key(table: str) -> str:
    return f"{PREFIX}:{table}"


def _client() -> Any:
    try:
        import redis
        import redis.backoff
        import redis.retry
    except ModuleNotFoundError:
        raise UserError(needs_package("index = redis://...", "redis")) from None
    return redis


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
