"""The store of a job on one machine: where it listens, and what torchrun's agent gets."""

import datetime
import os

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from mt.tests.train.parallel.jobs import listening_sockets
from mt.tests.train.parallel.sockets import listening
from mt.train.parallel.mesh import ParallelConfig, launch
from mt.train.parallel.rendezvous import (
    BACKEND,
    LoopbackRendezvous,
    job_store,
    keep_to_loopback,
    loopback_store,
    on_one_machine,
)

SECOND = datetime.timedelta(seconds=1)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_the_store_listens_on_the_loopback_address_and_works(host):
    before = listening(os.getpid())
    try:
        store = loopback_store(host, 0)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    (place,) = set(listening(os.getpid())) - set(before)
    assert place[0].is_loopback
    assert place[1] == store.port
    client = dist.TCPStore(store.host, store.port, is_master=False, wait_for_workers=False, timeout=SECOND)
    store.set("a", "1")
    assert client.get("a") == b"1"
    with pytest.raises(OSError, match="in use"):
        loopback_store(host, store.port)
    del client, store
    assert listening(os.getpid()) == before


def test_the_rendezvous_is_complete_at_once_and_shares_its_store_with_the_processes():
    parameters = RendezvousParameters(BACKEND, "127.0.0.1:0", "job 7", 1, 1)
    handler = LoopbackRendezvous(parameters)
    found = handler.next_rendezvous()
    place = found.bootstrap_store_info
    assert (found.rank, found.world_size, place.master_addr) == (0, 1, "127.0.0.1")
    assert (handler.get_backend(), handler.get_run_id(), handler.num_nodes_waiting()) == (BACKEND, "job 7", 0)
    assert handler.use_agent_store
    assert not handler.is_closed()
    found.store.set("x", "1")
    client = dist.TCPStore(
        place.master_addr, place.master_port, is_master=False, wait_for_workers=False, timeout=SECOND
    )
    assert not client.check(["x"]), "the agent's keys are its own"
    del found, client
    assert handler.shutdown()
    assert handler.is_closed()
    assert not [p for _, p in listening(os.getpid()) if p == place.master_port]


@pytest.mark.parametrize(
    ("variables", "one"),
    [
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node1"}, True),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node1"}, False),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, True),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1"}, False),
    ],
)
def test_a_job_is_on_one_machine_if_its_variables_say_so(variables, one):
    assert on_one_machine(variables) is one


def test_gloo_and_nccl_get_the_loopback_interface_whatever_was_set():
    environment = {"NCCL_SOCKET_IFNAME": "ib0"}
    keep_to_loopback(environment)
    assert environment["NCCL_SOCKET_IFNAME"] == environment["GLOO_SOCKET_IFNAME"] in ("lo", "lo0")


def test_torch_makes_the_stores_of_jobs_that_have_an_agent_or_another_address(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert job_store(0, SECOND) is None
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert job_store(0, SECOND) is None


def test_processes_started_without_a_launcher_listen_on_the_loopback_address_alone(pool):
    for found in pool.run(listening_sockets, 2):
        assert found, "gloo listens"
        assert all(address.is_loopback for address, _ in found), found


def test_one_process_alone_listens_on_nothing():
    before = listening(os.getpid())
    with launch(ParallelConfig()) as mesh:
        assert mesh.world_size == 1
        assert listening(os.getpid()) == before
