"""Every module of the package is imported as `mt....` only, wherever pytest is started.

A module that is also imported as `core.config` exists twice. Code that catches `mt.core.config.UserError`
then does not catch the other UserError.
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
    """Name in sys.modules -> file, for the files of the package without its tests."""
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    # pytest imports the __init__.py at the root under the name of the folder; it has only a version
    outside = (ROOT / "tests", ROOT / ".venv", ROOT / "__init__.py")
    return {
        name: file
        for name, file in files.items()
        if file
        and os.path.isabs(file)  # torch.ops and torch.classes have invented paths
        and (path := Path(file).resolve()).is_relative_to(ROOT)
        and not any(path.is_relative_to(folder) for folder in outside)
    }


def test_every_module_has_one_name():
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
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("tests/core", (*PYTEST, "../test_module_names.py", "test_manifest.py")),
                (None, (*PYTEST, str(ROOT / HERE), str(ROOT / "tests/core/test_manifest.py"))),
                (None, (sys.executable, "-m", "pytest", str(ROOT / HERE))),
            )
        ),
    ],
)
def test_pytest_gives_every_module_one_name_wherever_it_is_started(folder, command, tmp_path):
    ended = subprocess.run(
        [*command, "-q", "-k", "test_every_module_has_one_name", "-p", "no:cacheprovider"],
        cwd=ROOT / folder if folder else tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout


def test_pytest_adds_no_folder_of_the_package_to_sys_path(pytestconfig):
    assert pytestconfig.getini("pythonpath") == []
    assert "$(BIN)/pytest" in (ROOT / "Makefile").read_text()
    assert "-m pytest" not in (ROOT / "Makefile").read_text()
