"""The table of commands: what a missing package is answered with."""

import pytest

from mt.commands import table
from mt.core.config import UserError


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    import builtins

    real = builtins.__import__

    def without_torch(name, *rest):
        if name.split(".")[0] == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'", name="faiss")
        return real(name, *rest)

    monkeypatch.setattr(table.importlib, "import_module", lambda name: without_torch("faiss"))
    with pytest.raises(
        UserError, match=r"needs the package faiss; install it with: pip install 'mt-lm\[retro\]'"
    ):
        table.load(("retro", "build-db"))
