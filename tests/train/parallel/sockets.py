"""The listening TCP sockets of processes, from /proc (Linux)."""

import contextlib
import ipaddress
import os
import re
from pathlib import Path

LISTEN = "0A"  # the state of a listening socket in /proc/net/tcp


def processes_of(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            # the name, in parentheses, may contain anything
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def listening(*processes: int) -> list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """(address, port) of every TCP socket on which one of the processes listens."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for handle in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(handle)):
                        inodes.add(match[1])
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            (
                _,
                local,
                _,
                state,
                *_,
            ) = fields = line.split()
            if state == LISTEN and fields[9] in inodes:
                address, port = local.split(":")
                found.append((ipaddress.ip_address(_bytes(address)), int(port, 16)))
    return found


def _bytes(address: str) -> bytes:
    """An address of /proc/net/tcp: words of four bytes, each in the order of this machine, in hex."""
    return b"".join(int(address[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(address), 8))
