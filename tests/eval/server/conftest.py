"""A server that the tests of this folder share."""

import pytest


@pytest.fixture(scope="session")
def server():
    from mt.tests.eval.server.running_server import Running, small_model

    with Running(small_model()) as running:
        yield running
