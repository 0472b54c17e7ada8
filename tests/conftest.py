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
