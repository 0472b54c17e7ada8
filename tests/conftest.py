"""What every room's tests share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as cli.main does, before anything imports torch


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs and reference numbers beside a developer's checkout; absent elsewhere."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.exists():
        pytest.skip("../shared is not here: it lies beside a developer's checkout only")
    return folder
