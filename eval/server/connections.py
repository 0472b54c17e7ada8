"""The connections of the server: how long each may wait for its client, and how many there may be.

uvicorn limits the time between two requests of a connection, and nothing else. A client that connects and
says nothing, that sends a byte of a header now and then, or that does not read its answer, would keep its
connection for ever. `protocol` gives uvicorn a class of HTTP connections with the missing limits:

- Time. At every moment a connection waits for its client (for a header, for a body, for the next request, or
  for the client to read), or the client waits for the server. Each kind of waiting for the client has its
  limit. A client that reads slowly may go on as long as it takes SLOWEST_READ bytes in every `write_s`.
- Number. There is room for `total` connections, `per_client` of them from one address. A new connection
  beyond that closes the one that has waited for its client longest, of the same address or of all. Where none
  waits, the new one takes one of the `reserved` places, where only /health is answered. If these are taken
  too, it replaces the one that has waited there longest, or is closed. So connections are never left in the
  kernel's queue, and neither silent clients nor busy ones can hide whether the server is alive.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import ipaddress
import re
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .requests import RequestError
from .responses import error_messages

Phase = Literal["header", "body", "idle", "response", "write", "closed"]
SLOWEST_READ = 16_384  # bytes
PIECE = 8192  # bytes that are parsed at a time
# A body of more chunks than this, of fewer bytes each on average, costs far more than its size allows for.
MOST_SMALL_CHUNKS, SMALL_CHUNK = 1000, 16
ABSOLUTE_TARGET = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE | re.DOTALL)
# The application answers a late body with an error (middleware.py). The connection is closed this much later.
AFTER_BODY_S = 2.0


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many connections there may be, and how many seconds each may wait for its client."""

    total: int
    per_client: int
    reserved: int
    header_s: float  # from the first byte of a connection or of a request to the end of its header
    body_s: float  # from there to the end of the body
    idle_s: float  # between two requests
    write_s: float  # to read SLOWEST_READ bytes, or the rest, of what was sent


class Connections:
    """The open connections of one server. The loop's thread alone uses it."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self._clients: collections.Counter[str] = collections.Counter()
        self._normal: set[Connection] = set()
        self._reserved: set[Connection] = set()
        # Those that wait for their clients, the longest-waiting first. A dict would do, but looking for its
        # first key passes over all that were removed.
        self._waiting: collections.OrderedDict[Connection, None] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._normal) + len(self._reserved)

    def admit(self, connection: Connection) -> Literal["normal", "reserved", "refused"]:
        """Finds a place for a new connection, and closes others where it must."""
        client = connection.client_name
        too_many = self._clients[client] >= self.limits.per_client
        if too_many or len(self._normal) >= self.limits.total:
            group = (
                c for c in self._waiting if c in self._normal and (not too_many or c.client_name == client)
            )
            if (longest := next(group, None)) is None:
                return self._admit_to_reserve(connection)
            longest.drop()
        self._normal.add(connection)
        self._clients[client] += 1
        return "normal"

    def _admit_to_reserve(self, connection: Connection) -> Literal["reserved", "refused"]:
        if len(self._reserved) >= self.limits.reserved:
            longest = next((c for c in self._waiting if c in self._reserved), None)
            if longest is None:
                return "refused"
            longest.drop()
        self._reserved.add(connection)
        return "reserved"

    def set_waiting(self, connection: Connection, waiting: bool) -> None:
        self._waiting.pop(connection, None)
        if waiting:
            self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)
        self._reserved.discard(connection)
        if connection in self._normal:
            self._normal.remove(connection)
            self._clients[connection.client_name] -= 1
            if not self._clients[connection.client_name]:
                del self._clients[connection.client_name]


class Connection(H11Protocol):
    """One connection, with the limits of `pool`."""

    pool: Connections
    client_name = ""
    phase: Phase = "closed"
    _timer: asyncio.TimerHandle | None = None
    _chunks = _payload = 0  # of the current request's body, and their bytes
    _unsent = 0  # bytes that the client had not read when the timer was set

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # Then every byte that the client does not take calls pause_writing, and so starts the timer.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)
        self._h11_next_event = self.conn.next_event
        self.conn.next_event = self._next_event  # type: ignore[method-assign]
        self.client_name = client_name(transport.get_extra_info("peername"))
        place = self.pool.admit(self)
        if place == "refused":
            transport.abort()
            return
        if place == "reserved":
            self.app = only_health(self.app)
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        self._enter("closed")
        self.pool.remove(self)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        # In pieces: h11 takes some 10 us for each chunk of a body, and a read can hold 40,000 of them.
        for start in range(0, len(data), PIECE):
            super().data_received(data[start : start + PIECE])
            if self._chunks > MOST_SMALL_CHUNKS and self._payload < self._chunks * SMALL_CHUNK:
                self.drop()
            if self.transport.is_closing():
                break
        self._update()

    def _next_event(self) -> Any:
        """h11's next event; counts the chunks of a body. uvicorn answers a RemoteProtocolError with 400."""
        event = self._h11_next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._payload = 0
            event = checked_request(event)
        elif isinstance(event, h11.Data):
            self._chunks += 1
            self._payload += len(event.data)
        return event

    def shutdown(self) -> None:
        super().shutdown()
        if self.cycle is not None and self._current() == "body":
            self.cycle.message_event.set()  # so that the application finds out that it waits in vain

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # the limit of this class takes its place
        self._update()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._update()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update()

    def drop(self) -> None:
        """Closes the connection at once, whatever was not sent yet."""
        self.pool.remove(self)
        self._enter("closed")
        self.transport.abort()

    def _update(self) -> None:
        """Finds out what is waited for; if that has changed, sets the timer for it."""
        self._enter(self._current())

    def _current(self) -> Phase:
        if self.flow.write_paused:
            return "write"
        if self.transport.is_closing():
            return "closed"
        if self.cycle is None:
            return "header"
        if not self.cycle.response_complete:
            return "body" if self.cycle.more_body else "response"
        if (
            self.conn.their_state is h11.SEND_BODY
        ):  # of a request that was refused before its body had arrived
            return "body"
        return "header" if self.conn.trailing_data[0] else "idle"

    def _enter(self, phase: Phase) -> None:
        if phase == self.phase:
            return
        self.phase = phase
        self.pool.set_waiting(self, phase not in ("response", "closed"))
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        limits = self.pool.limits
        seconds = {
            "header": limits.header_s,
            "body": limits.body_s + AFTER_BODY_S,
            "idle": limits.idle_s,
            "write": limits.write_s,
        }.get(self.phase)
        if seconds is not None:
            self._unsent = self.transport.get_write_buffer_size()
            self._timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        left = self.transport.get_write_buffer_size()
        if self.phase == "write" and left and self._unsent - left >= SLOWEST_READ:
            self._set_timer()
        else:
            self.drop()


def checked_request(request: h11.Request) -> h11.Request:
    """The request with its target in origin form (RFC 9112, section 3.2); raises h11.RemoteProtocolError.

    Of a target in absolute form the server's name counts, not the one in the Host header. A request with a
    length and with chunks is how requests are smuggled past a proxy (section 6.1).
    """
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise h11.RemoteProtocolError("Transfer-Encoding and Content-Length together")
    found = ABSOLUTE_TARGET.fullmatch(request.target)
    if found is None:
        return request
    headers = [(name, value) for name, value in request.headers if name != b"host"]
    return h11.Request(
        method=request.method,
        target=_path(found[2] or b""),
        headers=[(b"host", found[1]), *headers],
        http_version=request.http_version,
    )


def _path(target: bytes) -> bytes:
    return target if target.startswith(b"/") else b"/" + target


def protocol(pool: Connections) -> type[Connection]:
    """The class of connections that uvicorn is given; all of them share `pool`."""

    class PooledConnection(Connection):
        pass

    PooledConnection.pool = pool
    return PooledConnection


def client_name(peer: Any) -> str:
    """Whom a connection is counted for: an IPv4 address, or the /64 network of an IPv6 one.

    A subscriber has a whole /64. An IPv4 address in an IPv6 one counts as what it is.
    """
    try:
        address = ipaddress.ip_address(peer[0].partition("%")[0])
    except (TypeError, ValueError, IndexError, AttributeError):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def only_health(app: Any) -> Any:
    """The application for a reserved place: it answers /health and refuses the rest, and then closes."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def closing_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        if scope["type"] == "http" and scope["path"] == "/health":
            await app(scope, receive, closing_send)
        else:
            busy = RequestError(503, "the server has no free connection; try again later", retry_after_s=1)
            for message in error_messages(busy, scope["path"]):
                await closing_send(message)

    return answer
