"""What every room's tests share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # as cli.main does, before anything imports torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs and reference numbers beside a developer's checkout; absent elsewhere."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.exists():
        pytest.skip("../shared is not here: it lies beside a developer's checkout only")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """What commands keep for later runs stays out of the user's home."""
    os.environ["XDG_CACHE_HOME"] = str(folder := tmp_path_factory.mktemp("cache"))
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """One Ray on two processors for every test that asks: starting one takes seconds.

    `--executor ray` finds and uses it.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'mt[ray]'")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def pool():
    """Processes for jobs of several ranks: pool.run(function, number of ranks, argument ...) -> results by
    rank.
    """
    from mt.tests.train.processes import Pool

    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def one_thread():
    """torch on one thread: on a busy machine two threads wait for each other more than they work on models
    this small.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
