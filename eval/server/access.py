"""Who may use the server: API keys, the names in the Host header, and the sites that a request comes from.

A server without keys trusts those who can reach its address. A web page can make a browser on this machine
send requests to it, in two ways:

- DNS rebinding: the page's own name is made to resolve to 127.0.0.1, so that for the browser the server is
  the page's site, and the page may read answers. Such a request has the page's name in its Host header. So
  names are compared with a list. An address or `localhost` is not the name of anybody's site.
- Cross-site requests, whose answers the page cannot read. Browsers name the site in the headers
  Sec-Fetch-Site (https://www.w3.org/TR/fetch-metadata/) and Origin.

Programs other than browsers send neither header, and the Host that they were told.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from ...core.config import UserError
from .requests import RequestError

WITHOUT_KEY = ("/", "/health")
HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
SCHEME = re.compile(
    rb"bearer +(.+)", re.IGNORECASE | re.DOTALL
)  # RFC 6750, section 2.1; RFC 9110, section 11.4
ANY = "*"
Headers = Sequence[tuple[bytes, bytes]]  # names in lower case, as ASGI gives them


class Access:
    """The rules of one server.

    keys: a request must have one of them; none: no request needs a key. hosts: the names that a Host header
    may have, beside addresses and localhost; `*.example.com` stands for all names that end so, `*` for any.
    """

    def __init__(self, keys: Iterable[str], hosts: Iterable[str]):
        # Digests have one length, so that comparing them takes the same time whatever is given. A key with
        # other letters than ASCII arrives in either encoding: clients differ.
        spelled = {spelling for key in keys for spelling in _spellings(key)}
        self._keys = [hashlib.sha256(key).digest() for key in sorted(spelled)]
        self._hosts = frozenset(host.lower() for host in hosts)

    @property
    def with_keys(self) -> bool:
        return bool(self._keys)

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raises RequestError for a request that is not allowed. /health is for everybody."""
        if path == "/health":
            return
        host = _only(headers, b"host")
        if host is not None and not self._is_ours(_name(host)):
            raise RequestError(
                421,
                f"the Host header names {host[:200]!r}; ask for the address of this server, or start it with"
                " --allowed-hosts NAME",
            )
        if method not in ("GET", "HEAD", "OPTIONS") and not self._same_site(headers, host):
            raise RequestError(
                403,
                "the request comes from another site's page; ask from the server's own page or from a"
                " program, or start the server with --allowed-hosts NAME",
            )
        if self._keys and path not in WITHOUT_KEY and not self._has_key(headers):
            raise RequestError(
                401, "an API key is missing or wrong; send the header Authorization: Bearer KEY"
            )

    def _has_key(self, headers: Headers) -> bool:
        given = [value for name, value in headers if name == b"authorization"]
        found = SCHEME.fullmatch(given[0]) if len(given) == 1 else None
        digest = hashlib.sha256(found[1] if found else b"").digest()
        # all keys are compared, so that the time does not depend on which one it is
        return any([hmac.compare_digest(digest, key) for key in self._keys]) and found is not None

    def _is_ours(self, name: str | None) -> bool:
        if ANY in self._hosts:
            return True
        if name is None:
            return False
        if is_address(name) or name == "localhost" or name.endswith(".localhost") or name in self._hosts:
            return True
        return any(host.startswith("*.") and name.endswith(host[1:]) for host in self._hosts)

    def _same_site(self, headers: Headers, host: str | None) -> bool:
        """Whether no page of another site sent the request.

        Where a proxy changes the Host header, Sec-Fetch-Site still tells; browsers send it over HTTPS and to
        loopback addresses. Elsewhere Origin is compared with the Host header and with the allowed names.
        """
        if ANY in self._hosts:
            return True
        if (site := _only(headers, b"sec-fetch-site")) is not None:
            return site in ("same-origin", "none")
        if (origin := _only(headers, b"origin")) is None:
            return True
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        name = _name(place)
        return bool(place) and (place == (host or "").lower() or (name is not None and name in self._hosts))


def _spellings(key: str) -> Iterable[bytes]:
    yield key.encode()
    try:
        yield key.encode("latin-1")
    except UnicodeEncodeError:
        return


def _only(headers: Headers, name: bytes) -> str | None:
    """The value of a header, None where there is none; several are joined: no rule takes one of them."""
    values = [value for key, value in headers if key == name]
    return b",".join(values).decode("latin-1") if values else None


def _name(host: str) -> str | None:
    """The name or address in a Host header, without the port and in lower case; None for anything else."""
    found = re.fullmatch(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]{0,5})?", host.strip().lower())
    return found[1].strip("[]").removesuffix(".") if found else None


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def hosts_of(host: str, *, loopback: bool) -> set[str]:
    """The names by which others reach a server on `host` (--host) without further settings.

    Of an address that other machines can reach: also this machine's name, whole and without its domain.
    """
    names = {host.lower()}
    if not loopback and (own := socket.gethostname().lower()):
        names |= {own, own.partition(".")[0]}
    return names


def check_hosts(hosts: Iterable[str]) -> None:
    """Raises UserError for a value of --allowed-hosts that no Host header can match."""
    for host in hosts:
        if host != ANY and not HOST_NAME.fullmatch(host.lower()):
            raise UserError(
                f"allowed_hosts = {host} must be a name without scheme and port, such as llm.example.com,"
                " *.example.com for all names that end so, or * for any"
            )
