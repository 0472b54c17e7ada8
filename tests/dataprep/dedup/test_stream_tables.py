"""Tables in memory and in Redis: one commit, one owner, a server that is lost, refuses or forgets."""

import re
import threading

import pytest

from mt.core.config import Failure, UserError
from mt.dataprep.dedup import stream_tables
from mt.dataprep.dedup.stream_tables import HEAD, MemoryTables, RedisTables
from mt.tests.dataprep.dedup.redis_server import RedisServer


def once():
    return None


@pytest.fixture
def waits(monkeypatch):
    monkeypatch.setattr(stream_tables, "WAITS", (0.05,) * 3)


def test_both_kinds_keep_and_change_the_same_values(redis_server):
    for tables in (MemoryTables(), RedisTables(redis_server.url)):
        tables.commit({"a": {b"\0": b"\xff", b"k": b""}, "b": {}, HEAD: {b"x": b"1"}}, 0)
        tables.commit({"a": {b"k": b"new"}, HEAD: {b"documents": b"2"}}, 0)
        assert tables.get("a", [b"k", b"none", b"\0"]) == [b"new", None, b"\xff"]
        assert tables.get("b", [b"k"]) == [None]
        assert tables.get("b", []) == []
        assert [tables.add(b"numbers", 3), tables.add(b"numbers", 4)] == [3, 7]


def test_a_commit_of_a_process_that_is_not_the_owner_changes_nothing(redis_server):
    old = RedisTables(redis_server.url)
    new = RedisTables(redis_server.url)
    with pytest.raises(Failure, match="another `mt data dedup --stream` has opened it"):
        old.commit({"a": {b"k": b"old"}}, 0)
    assert new.get("a", [b"k"]) == [None]


def test_an_action_is_repeated_after_the_server_has_come_back(redis_server):
    tables, begun = RedisTables(redis_server.url), []
    redis_server.kill()
    starting = threading.Timer(0.3, redis_server.start)
    starting.start()
    assert tables.retry(lambda: tables.add(b"numbers", 2), lambda: begun.append(1)) == 2
    starting.join()
    assert begun


def test_a_server_that_stays_away_ends_in_one_line(redis_server, waits, capsys):
    tables = RedisTables(redis_server.url)
    redis_server.kill()
    with pytest.raises(Failure, match=r"no connection \(.*refused.*\) in 0 seconds; start Redis"):
        tables.retry(lambda: tables.get("a", [b"k"]), once)
    assert capsys.readouterr().err.count("trying again") == 1


@pytest.mark.parametrize("command", ["WATCH", "HMGET", "EXEC"])
def test_a_commit_is_repeated_wherever_the_connection_is_lost(redis_server, monkeypatch, command):
    import redis

    tables, failed = RedisTables(redis_server.url), []
    send = redis.connection.Connection.send_packed_command

    def lose(connection, packed, **how):
        data = packed if isinstance(packed, bytes) else b"".join(packed)
        if not failed and command.encode() in data:
            failed.append(send(connection, packed, **how))  # the server does it, and the answer is lost
            connection.disconnect()
            raise redis.ConnectionError("lost")
        return send(connection, packed, **how)

    monkeypatch.setattr(redis.connection.Connection, "send_packed_command", lose)
    tables.retry(lambda: tables.commit({"a": {b"k": b"v"}}, 0), once)
    assert failed
    assert tables.get("a", [b"k"]) == [b"v"]


def test_a_server_that_lost_documents_is_told_of(redis_server):
    tables = RedisTables(redis_server.url)
    tables.commit({HEAD: {b"documents": b"5"}}, 0)
    redis_server.client.hset("mt_dedup:head", "documents", 3)
    with pytest.raises(Failure, match="came back with 3 of 5 documents"):
        tables.commit({"a": {b"k": b"v"}}, 5)
    assert tables.get("a", [b"k"]) == [None]


def test_keys_of_another_type_and_numbers_that_are_none_are_refused(redis_server):
    tables = RedisTables(redis_server.url)
    redis_server.client.lpush("mt_dedup:a", "x")
    redis_server.client.hset("mt_dedup:head", "numbers", "x")
    for action in (lambda: tables.get("a", [b"k"]), lambda: tables.add(b"numbers", 1)):
        with pytest.raises(UserError, match="holds what mt does not write"):
            tables.retry(action, once)


def test_a_server_that_may_drop_keys_is_refused_and_one_that_forgets_is_told_of(tmp_path, capsys):
    server = RedisServer(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(
            UserError, match=r"maxmemory-policy = allkeys-lru .* set maxmemory-policy noeviction"
        ):
            RedisTables(server.url)
        server.client.config_set("maxmemory-policy", "noeviction")
        server.client.config_set("appendonly", "no")
        RedisTables(server.url)
        assert "appendonly is off" in capsys.readouterr().err
    finally:
        server.kill()


def test_a_password_is_used_and_never_shown(tmp_path):
    server = RedisServer(tmp_path)
    try:
        server.client.config_set("requirepass", "sesame")
        RedisTables(server.url.replace("//", "//:sesame@")).add(b"numbers", 1)
        for url in (server.url, server.url.replace("//", "//:wrong@")):
            with pytest.raises(UserError) as caught:
                RedisTables(url)
            assert "give redis://USER:PASSWORD@HOST/DB" in str(caught.value)
            assert re.match(rf"index redis://127\.0\.0\.1:{server.port}/0: ", str(caught.value))
    finally:
        server.kill()
