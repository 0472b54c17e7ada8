"""How the processes of a job on one machine find each other: a key-value store on the loopback address.

torch's stores listen on all interfaces and ask for no password, and torchrun's agent unpickles what lies in
its own: whoever reaches the port runs code. On one machine nobody else need reach it. So `mt launch` gives
torchrun a rendezvous of its own, which unpickles nothing, and a store whose socket is bound to 127.0.0.1
before torch gets it. gloo and NCCL are told to use the loopback interface too.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import MutableMapping

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

BACKEND = "mt-loopback"  # the name of the rendezvous among those of torchrun
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def loopback_store(host: str, port: int, timeout: datetime.timedelta | None = None) -> dist.TCPStore:
    """A store that this process serves on a loopback address; port 0 takes a free one.

    Raises OSError if the port is taken.
    """
    address = "::1" if host == "::1" else "127.0.0.1"
    family = socket.AF_INET6 if address == "::1" else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        return dist.TCPStore(
            address,
            server.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            timeout=timeout or datetime.timedelta(minutes=5),
            master_listen_fd=server.detach(),  # the store closes it
        )


def keep_to_loopback(environment: MutableMapping[str, str]) -> None:
    """Makes gloo and NCCL use the loopback interface: all processes of the job are on this machine."""
    names = [name for _, name in socket.if_nameindex()]
    with contextlib.suppress(StopIteration):
        loopback = next(name for name in ("lo", "lo0") if name in names)
        environment["GLOO_SOCKET_IFNAME"] = environment["NCCL_SOCKET_IFNAME"] = loopback


def on_one_machine(environment: MutableMapping[str, str]) -> bool:
    """Whether all processes of a job are on this machine, by the variables of torchrun."""
    world = environment.get("WORLD_SIZE")
    return environment.get("LOCAL_WORLD_SIZE") == world or environment.get("MASTER_ADDR") in LOOPBACK


def job_store(rank: int, timeout: datetime.timedelta) -> dist.Store | None:
    """The store of a job whose rank 0 has to serve it on a loopback address; None for any other job.

    MASTER_ADDR and MASTER_PORT name it. Of any other job the agent of torchrun serves it, or torch on an
    address that other machines reach.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or host not in LOOPBACK:
        return None
    if host == "localhost":
        os.environ["MASTER_ADDR"] = host = "127.0.0.1"  # and not ::1, where nobody listens
    if rank == 0:
        return loopback_store(host, port, timeout)
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)


class LoopbackRendezvous(RendezvousHandler):
    """The rendezvous of a job on one machine: its only agent is always complete.

    The agent and the processes use one store.
    """

    def __init__(self, parameters: RendezvousParameters):
        """parameters.endpoint: 127.0.0.1:PORT, the address of the store."""
        host, _, port = parameters.endpoint.rpartition(":")
        self._run_id, self._closed = parameters.run_id, False
        self._store: dist.TCPStore | None = loopback_store(host, int(port))

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        assert self._store is not None, "torchrun asks for no rendezvous after shutdown"
        place = RendezvousStoreInfo(self._store.host, self._store.port)
        return RendezvousInfo(dist.PrefixStore("agent", self._store), 0, 1, place)

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed, self._store = True, None
        return True


def register() -> None:
    """Makes the rendezvous known to torchrun."""
    rendezvous_handler_registry.register(BACKEND, LoopbackRendezvous)
