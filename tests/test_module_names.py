"""Every module of the package is imported under one name, `mt....`, however pytest is started.

A module that is imported as `core.config` too is there twice: its UserError is another class, which nothing
that catches the first one catches.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mt import cli

ROOT = Path(__file__).parents[1]
HERE = "tests/test_module_names.py"
PYTEST = (str(Path(sys.executable).with_name("pytest")),)


def names_of_package_files() -> dict[str, str]:
    """The names in sys.modules of files of the package, tests excepted, with their files."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    # pytest imports the root's __init__.py, which holds a version, under the name of the folder.
    outside = (ROOT / "tests", ROOT / ".venv", ROOT / "__init__.py")
    return {
        name: file
        for name, file in files.items()
        if file
        and os.path.isabs(file)  # torch.ops and torch.classes make theirs up
        and (path := Path(file).resolve()).is_relative_to(ROOT)
        and not any(path.is_relative_to(folder) for folder in outside)
    }


def test_one_name():
    for module in (
        "core.executor",
        "commands.pipeline",
        "documents.writer",
        "tokenizer.train",
        "indexed.build",
    ):
        importlib.import_module(f"mt.{module}")
    wrong = {name: file for name, file in names_of_package_files().items() if name.partition(".")[0] != "mt"}
    assert wrong == {}
    modules = [
        m for name, m in list(sys.modules.items()) if name.partition(".")[0] in ("mt", "tests", "core")
    ]
    assert {vars(m)["UserError"] for m in modules if "UserError" in vars(m)} == {cli.UserError}


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        (".", (*PYTEST, HERE, "tests/core/test_manifest.py")),
        (".", (sys.executable, "-m", "pytest", HERE, "tests/core/test_manifest.py")),
        ("tests/core", (*PYTEST, "../test_module_names.py", "test_manifest.py")),
        (None, (*PYTEST, str(ROOT / HERE), str(ROOT / "tests/core/test_manifest.py"))),
        (None, (sys.executable, "-m", "pytest", str(ROOT / HERE))),
    ],
)
def test_pytest_gives_every_module_one_name_wherever_it_is_started(folder, command, tmp_path):
    ended = subprocess.run(
        [*command, "-q", "-k", "test_one_name", "-p", "no:cacheprovider"],
        cwd=ROOT / folder if folder else tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout


def test_the_rooms_of_the_package_are_on_no_path_of_pytest(pytestconfig):
    assert pytestconfig.getini("pythonpath") == []
    assert "$(BIN)/pytest" in (ROOT / "Makefile").read_text()
    assert "-m pytest" not in (ROOT / "Makefile").read_text()
