"""`mt doctor`, compared with what Python, the system and the installed distributions say."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mt.cli import EXTRAS
from mt.commands.doctor import DoctorConfig, doctor

ROOT = Path(__file__).parents[2]


def test_versions_processors_memory_and_disk_are_those_of_the_machine(tmp_path):
    facts = doctor(DoctorConfig(directory=str(tmp_path)))
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["processors"] == len(os.sched_getaffinity(0))
    assert facts["free_disk_gb"] == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, abs=1)
    if (meminfo := Path("/proc/meminfo")).exists():
        kilobytes = int(meminfo.read_text().split("MemTotal:")[1].split()[0])
        assert facts["memory_gb"] == pytest.approx(kilobytes * 1024 / 1e9, rel=0.01)


def test_every_optional_package_has_its_version_or_the_command_that_installs_it(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else there(name))
    facts = doctor(DoctorConfig())
    parts = {part["package"]: part for part in facts["parts"]}
    assert list(parts) == [package for packages in EXTRAS.values() for package in packages]
    assert parts["ray"] == {
        "part": "ray",
        "package": "ray",
        "version": None,
        "remedy": "pip install 'mt[ray]'",
    }
    assert "missing: pip install 'mt[ray]'" in facts["text"]
    for package, distribution in {"torch": "torch", "faiss": "faiss-cpu", "h5py": "h5py"}.items():
        if there(package):
            assert parts[package]["version"] == importlib.metadata.version(distribution)
            assert parts[package]["remedy"] is None
            assert f"{package:<{max(map(len, parts))}}  {parts[package]['version']}" in facts["text"]


def test_gpus_are_unknown_if_torch_is_missing(monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    assert doctor(DoctorConfig())["gpu"] == "unknown: torch is missing"


def test_the_names_of_gpus_are_those_of_torch(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {i}")
    assert doctor(DoctorConfig())["gpu"] == "GPU 0, GPU 1"


def test_the_extras_and_their_packages_are_those_of_pyproject():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) <= set(extras)
    renamed = {"faiss": "faiss-cpu", "fastwarc": "resiliparse"}  # a module and the distribution that has it
    for extra, modules in EXTRAS.items():
        required = " ".join(extras[extra]).replace("_", "-")
        for module in modules:
            assert renamed.get(module, module).replace("_", "-") in required


def test_the_command_prints_json():
    ended = subprocess.run([sys.executable, "-m", "mt", "doctor", "--json"], capture_output=True, text=True)
    assert {part["package"] for part in json.loads(ended.stdout)["parts"]} >= {"torch", "faiss"}
