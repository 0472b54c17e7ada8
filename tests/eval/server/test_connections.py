"""Clients that do not keep up: each kind of waiting ends, and neither they nor busy ones hide /health."""

import concurrent.futures
import contextlib
import itertools
import socket
import threading

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.eval.server.app import ServeConfig, allow_open_files, http_server, listen
from mt.eval.server.connections import SLOWEST_READ, Connection, Connections, Limits, client_name
from mt.tests.eval.server.running_server import Running, slow_server, small_model, until

QUICK = {"header_timeout": 0.3, "body_timeout": 0.3, "idle_timeout": 0.3, "write_timeout": 0.3}
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LONG = b"Content-Length: 100000\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Client(socket.socket):
    """A connection to a server that notes when it is closed. source: the address it comes from."""

    def __init__(self, address, source=None, receive_bytes=None):
        super().__init__()
        if receive_bytes:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        if source:
            self.bind((source, 0))
        self.connect(address)
        self.setblocking(False)
        self.closed = False

    def read(self):
        """Takes what has arrived; returns whether the server has closed the connection."""
        try:
            while self.recv(65536):
                pass
            self.closed = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.closed = True
        return self.closed

    def write(self, data):
        with contextlib.suppress(BlockingIOError, ConnectionError):
            self.send(data)


def beginnings():
    """(the beginning of a request, what may follow it for ever without ending it)."""
    header = POST + b"Content-Length: 5\r\n"
    for before in (b"", HEALTH):  # on a new connection, and after a response
        for n in range(len(header)):
            yield before + header[:n], itertools.chain(header[n:], itertools.cycle(b"a: b\r\n"))
    for n in range(10):
        yield POST + LONG + b"x" * n, itertools.cycle(b"x")
    # is refused before its body has arrived
    yield POST.replace(b"localhost", b"evil.example") + LONG, itertools.cycle(b"x")
    yield POST + b"Transfer-Encoding: chunked\r\n\r\n", itertools.cycle(b"1\r\nx\r\n")
    yield POST + b"Expect: 100-continue\r\n" + LONG, itertools.cycle(b"x")


def test_a_request_that_stops_anywhere_ends_whether_its_client_is_silent_or_sends_a_byte_now_and_then():
    many = {"max_connections": 2000, "max_connections_per_client": 2000}
    allow_open_files(2000)
    with Running(small_model(), **QUICK, **many) as server, contextlib.ExitStack() as stack:
        clients = []
        for start, rest in beginnings():
            for goes_on in (False, True):
                client = stack.enter_context(Client(server.address))
                client.write(start)
                clients.append((client, rest if goes_on else iter(())))

        def over():
            for client, rest in clients:
                if not client.read() and (byte := next(rest, None)) is not None:
                    client.write(bytes([byte]))
            return all(client.closed for client, _ in clients)

        until(over)
        assert server.client.get("/health").status_code == 200


@contextlib.contextmanager
def serving(app, **settings):
    """The address of an ASGI application behind the limits of `settings`, and its uvicorn server."""
    listener = listen("127.0.0.1", 0)
    server = http_server(app, ServeConfig(load="none", shutdown_grace=0.0, **settings))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        until(lambda: server.started)
        yield listener.getsockname(), server
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("pieces", [1, 1000], ids=["one piece", "a stream"])
@pytest.mark.parametrize("closing", [False, True])
def test_a_client_that_does_not_read_its_response_is_closed(pieces, closing):
    sent = []

    async def app(scope, receive, send):
        headers = [(b"connection", b"close")] if closing else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for n in range(pieces):
            body = b"x" * (50_000_000 // pieces)
            await send({"type": "http.response.body", "body": body, "more_body": n < pieces - 1})
        sent.append(True)

    with serving(app, **QUICK) as (address, server), Client(address, receive_bytes=4096) as client:
        client.write(HEALTH)
        until(lambda: server.server_state.connections)
        until(lambda: not server.server_state.connections)
        until(lambda: sent)  # the application is not left waiting


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_a_client_that_reads_slowly_but_steadily_is_not(steps):
    """With a timer that the test turns: after each limit the client has read SLOWEST_READ bytes, or less."""

    class Loop:
        def call_later(self, seconds, expire):
            self.expire = expire
            return self

        def cancel(self):
            self.expire = None

    class Transport:
        aborted = False

        def __init__(self, unread):
            self.unread = unread

        def get_write_buffer_size(self):
            return self.unread

        def abort(self):
            self.aborted = True

    class Flow:
        write_paused = False

        def pause_writing(self):
            self.write_paused = True

    connection = object.__new__(Connection)
    connection.pool = Connections(Limits(9, 9, 9, 1, 1, 1, 1))
    connection.loop, connection.flow = Loop(), Flow()
    connection.transport = Transport(SLOWEST_READ * 20)
    connection.pause_writing()
    for _ in range(steps):
        connection.transport.unread -= SLOWEST_READ
        connection.loop.expire()
        assert not connection.transport.aborted
    connection.transport.unread -= SLOWEST_READ - 1
    connection.loop.expire()
    assert connection.transport.aborted


def test_other_clients_are_answered_beside_1100_silent_connections_of_one_client():
    allow_open_files(2500)
    with Running(small_model()) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.address)) for _ in range(1100)]
        with httpx.Client(base_url=server.url, timeout=60) as new:
            assert new.get("/health").status_code == 200
            assert new.post("/v1/completions", json={"prompt": "a"}).status_code == 200
        until(
            lambda: (
                sum(client.read() for client in clients)
                >= 1100 - ServeConfig(load="x").max_connections_per_client
            )
        )
        assert not clients[-1].read(), "the longest-waiting are closed first"


def test_other_clients_are_answered_beside_silent_connections_of_many_clients():
    limits = {"max_connections": 60, "max_connections_per_client": 20, "reserved_connections": 4}
    with Running(small_model(), **limits) as server, contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(Client(server.address, source=f"127.0.0.{2 + n % 9}")) for n in range(300)
        ]
        with httpx.Client(base_url=server.url, timeout=60) as new:
            assert new.get("/health").status_code == 200
            assert new.post("/v1/completions", json={"prompt": "a"}).status_code == 200
        until(lambda: sum(client.read() for client in clients) >= 300 - 60)


def test_while_every_connection_is_busy_health_is_answered_and_other_requests_are_refused():
    limits = {"max_connections": 4, "max_connections_per_client": 4, "reserved_connections": 2}
    with slow_server(**limits) as server, concurrent.futures.ThreadPoolExecutor(4) as pool:
        ask = lambda: httpx.post(
            f"{server.url}/v1/completions", json={"prompt": "a", "max_tokens": 5}, timeout=60
        )
        with server.model.model.paused():
            asked = [pool.submit(ask) for _ in range(4)]
            until(lambda: server.engine.running + server.engine.waiting == 4)
            with contextlib.ExitStack() as stack:
                silent = [stack.enter_context(Client(server.address)) for _ in range(20)]
                assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
                refused = ask()
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                assert "no free connection" in refused.json()["error"]["message"]
                until(lambda: sum(client.read() for client in silent) >= 18)
        assert [one.result().status_code for one in asked] == [200] * 4, "a busy connection is never closed"


class FakeConnection:
    """What the pool sees of a connection."""

    def __init__(self, pool, client_name):
        self.pool, self.client_name, self.dropped = pool, client_name, False

    def drop(self):
        self.dropped = True
        self.pool.remove(self)


@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.lists(st.tuples(st.sampled_from(["new", "busy", "wait", "close"]), st.integers(0, 99)), max_size=80),
)
def test_the_pool_keeps_its_bounds_and_closes_only_the_longest_waiting(sizes, actions):
    total, per_client, reserved = sizes
    pool = Connections(Limits(total, per_client, reserved, 1, 1, 1, 1))
    places: dict[FakeConnection, str] = {}  # the open connections
    waiting: list[FakeConnection] = []  # the longest first
    for action, number in actions:
        if action == "new":
            new = FakeConnection(pool, f"client {number % 3}")
            place = pool.admit(new)
            dropped = [c for c in places if c.dropped]
            if dropped:
                (victim,) = dropped  # one for one
                same = [c for c in waiting if places[c] == place]
                mine = [c for c in same if c.client_name == new.client_name]
                assert victim in (same[:1] + mine[:1])
                waiting.remove(victim)
                del places[victim]
            if place == "refused":
                assert not any(places[c] == "reserved" for c in waiting)
            else:
                places[new] = place
                pool.set_waiting(new, True)
                waiting.append(new)
        elif places:
            chosen = list(places)[number % len(places)]
            if chosen in waiting:
                waiting.remove(chosen)
            if action == "close":
                pool.remove(chosen)
                del places[chosen]
            else:
                pool.set_waiting(chosen, action == "wait")
                waiting += [chosen] * (action == "wait")
        normal = [c.client_name for c, place in places.items() if place == "normal"]
        assert len(normal) <= total
        assert all(normal.count(name) <= per_client for name in normal)
        assert len(places) - len(normal) <= reserved
        assert len(pool) == len(places)


def test_a_client_is_an_ipv4_address_or_a_64_network_of_ipv6():
    assert client_name(("192.0.2.7", 1)) == client_name(("::ffff:192.0.2.7", 1, 0, 0)) == "192.0.2.7"
    assert client_name(("2001:db8::1", 1, 0, 0)) == client_name(("2001:db8::ffff:2", 2, 0, 0))
    assert client_name(("2001:db8::1", 1, 0, 0)) != client_name(("2001:db8:0:1::1", 1, 0, 0))
    assert client_name(("fe80::1%eth0", 1, 0, 2)) == client_name(("fe80::2", 1, 0, 2))
    assert client_name(None) == client_name("") == ""


def test_a_body_of_tiny_chunks_ends_its_connection():
    with Running(small_model()) as server, Client(server.address) as client:
        head = POST.replace(b"/v1/completions", b"/health") + b"Transfer-Encoding: chunked\r\n\r\n"
        client.write(head)
        sent = 0

        def ended():
            nonlocal sent
            client.write(b"1\r\nx\r\n" * 1000)
            sent += 1000
            return client.read()

        until(ended)
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_chunks_of_an_honest_size_are_taken(server):
    body = b'{"prompt": "a", "max_tokens": 1}' + b" " * 500_000
    pieces = (body[n : n + 100] for n in range(0, len(body), 100))
    reply = httpx.post(
        f"{server.url}/v1/completions", content=pieces, headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 200


def answer(address, request):
    """What the server answers until it closes the connection, or has answered a request that says so."""
    with socket.create_connection(address, timeout=60) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


CLOSE = b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://localhost/health", 200),
        (b"HTTP://127.0.0.1:80/health?x=http://a", 200),
        (b"https://localhost/v1/models", 200),
        (b"http://localhost", 200),
        (b"http://localhost?x", 200),
        (b"http://evil.example/v1/models", 421),  # the target counts, not the Host header
        (b"http://a@localhost/health", 404),
        (b"http:///health", 404),
        (b"ftp://localhost/health", 404),
    ],
)
def test_a_target_in_absolute_form_is_that_of_its_path(server, target, status):
    found = answer(server.address, b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b" % (target, CLOSE))
    assert found.startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ],
)
def test_a_request_with_a_length_and_chunks_is_refused_and_nothing_after_it_is_read(server, headers):
    requests = server.metrics.counts()["requests"]
    found = answer(server.address, POST + headers + b"\r\n0\r\n\r\n" + HEALTH)
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1") == 1
    assert server.metrics.counts()["requests"] == requests


@pytest.mark.parametrize("path", ["/health", "/", "/v1/models", "/nothing", "/v1/completions", "/api"])
def test_head_is_answered_as_get_without_the_body(server, path):
    head, get = server.client.head(path), server.client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert {**head.headers, "date": ""} == {**get.headers, "date": ""}


def test_bodies_that_are_not_there_at_shutdown_are_refused_at_once():
    """With a grace of eleven days, which a connection in wait would use."""
    with contextlib.ExitStack() as stack:
        with Running(small_model(), shutdown_grace=1e6) as server:
            clients = [stack.enter_context(socket.create_connection(server.address)) for _ in range(3)]
            clients[0].sendall(POST + LONG)
            clients[1].sendall(POST + LONG + b"x" * 1000)
            clients[2].sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
            until(lambda: len(server.waiting_for_bodies()) == 3)
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 503 ")
