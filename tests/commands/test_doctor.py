"""`mt doctor`, compared with what Python, the system and the installed distributions say."""

import dataclasses
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

from mt.commands.doctor import Device, DoctorConfig, Facts, doctor, examine, judge
from mt.core.extras import EXTRAS

ROOT = Path(__file__).parents[2]


def test_versions_processors_memory_and_disk_are_those_of_the_machine(tmp_path):
    facts = doctor(DoctorConfig(directory=str(tmp_path)))
    assert facts["problems"] == []
    assert facts["text"].startswith("mt doctor: ready for data preparation")
    assert "tiny" in facts["presets_that_fit"]
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["processors"] == len(os.sched_getaffinity(0))
    assert facts["free_disk_gb"] == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, abs=1)
    if (meminfo := Path("/proc/meminfo")).exists():
        kilobytes = int(meminfo.read_text().split("MemTotal:")[1].split()[0])
        assert facts["memory_gb"] == pytest.approx(kilobytes * 1024 / 1e9, rel=0.01)


def test_every_optional_package_has_its_version_or_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("mt.commands.doctor._examine_torch", lambda memory: {})
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else there(name))
    facts = doctor(DoctorConfig())
    parts = {part["package"]: part for part in facts["parts"]}
    assert list(parts) == [package for packages in EXTRAS.values() for package in packages]
    assert parts["ray"] == {
        "part": "ray",
        "package": "ray",
        "version": None,
        "remedy": "pip install 'mt-lm[ray]'",
    }
    assert "missing: pip install 'mt-lm[ray]'" in facts["text"]
    for package, distribution in {"torch": "torch", "faiss": "faiss-cpu", "h5py": "h5py"}.items():
        if there(package):
            assert parts[package]["version"] == importlib.metadata.version(distribution)
            assert parts[package]["remedy"] is None
            assert f"{package:<{max(map(len, parts))}}  {parts[package]['version']}" in facts["text"]


HEALTHY = Facts(
    directory="/out",
    write_error=None,
    free_disk=10**12,
    processors=8,
    memory=64 * 2**30,
    torch="2.13.0",
    torch_error=None,
    cuda="12.8",
    driver="570.86.10",
    devices=(Device("processors", 64 * 2**30), Device("NVIDIA H100", 80 * 2**30)),
    presets={"small": (2**30, 2**29), "middle": (90 * 2**30, 70 * 2**30), "large": (2**40, 2**39)},
    versions={package: "1.0" for packages in EXTRAS.values() for package in packages},
)
ON_CPU = {"devices": HEALTHY.devices[:1], "cuda": None, "driver": None}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ready for data preparation, training, evaluation with lm-eval, serving, retrieval (on 1 GPU)"),
        (ON_CPU, "(on processors, no GPU)"),
        (
            {"versions": {**HEALTHY.versions, "fastapi": None}},
            "retrieval (on 1 GPU); not for serving: pip install 'mt-lm[serve]'",
        ),
        (
            {**ON_CPU, "torch": None, "devices": (), "versions": {**HEALTHY.versions, "torch": None}},
            "data preparation works; training needs torch: pip install 'mt-lm[train]'",
        ),
    ],
)
def test_a_machine_on_which_all_that_is_installed_works_has_no_problem(changes, verdict):
    problems, found = judge(dataclasses.replace(HEALTHY, **changes))
    assert problems == []
    assert found.endswith(verdict)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"write_error": "Permission denied"}, "no file can be written in /out (Permission denied)"),
        ({"free_disk": 10**8}, "only 0.1 GB are free in /out"),
        ({"torch_error": "libcudart.so.12"}, "torch 2.13.0 cannot be imported (libcudart.so.12)"),
        (
            {"devices": (*ON_CPU["devices"], Device("H100", 1, "CUDA error: uncorrectable ECC error"))},
            "H100: a product of matrices failed (CUDA error: uncorrectable ECC error)",
        ),
        ({**ON_CPU, "driver": "570.86.10"}, "torch 2.13.0 is built without CUDA; install a build with it"),
        (
            {**ON_CPU, "driver": "470.82.01", "cuda": "12.8"},
            "built for CUDA 12.8, which needs a driver of at least 525.60, and this one is 470.82.01",
        ),
        ({**ON_CPU, "driver": "570.86.10", "cuda": "12.8"}, "finds no GPU although driver 570.86.10 is here"),
    ],
)
def test_what_does_not_work_is_named_with_its_remedy(changes, problem, monkeypatch):
    facts = dataclasses.replace(HEALTHY, **changes)
    problems, verdict = judge(facts)
    assert len(problems) == 1
    assert problem in problems[0]
    assert ";" in problems[0], "a remedy follows"
    assert verdict == "1 thing does not work: see below"
    monkeypatch.setattr("mt.commands.doctor.examine", lambda config: facts)
    found = doctor(DoctorConfig())
    assert found["exit_code"] == 1
    assert found["text"].splitlines()[:2] == [f"mt doctor: {verdict}", f"  ! {problems[0]}"]


def test_presets_are_compared_with_the_memory_of_the_smallest_gpu_or_of_the_machine(monkeypatch):
    monkeypatch.setattr("mt.commands.doctor.examine", lambda config: HEALTHY)
    found = doctor(DoctorConfig())
    assert found["presets_that_fit"] == ["small", "middle"]
    assert found["gpu"] == "NVIDIA H100"
    assert "that train in 80 GiB (estimated): small\n" in found["text"]
    assert "--recompute-granularity full: middle\n" in found["text"]
    facts = dataclasses.replace(HEALTHY, **ON_CPU)
    monkeypatch.setattr("mt.commands.doctor.examine", lambda config: facts)
    assert doctor(DoctorConfig())["presets_that_fit"] == ["small"]


def test_the_memory_of_a_preset_is_that_of_its_parameters_and_more():
    memory_of = pytest.importorskip("mt.train.plan").memory_of_preset
    usual, least = memory_of({"model": {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4}})
    parameters = 50304 * 64 + 1024 * 64 + 2 * (12 * 64 * 64)  # tied embedding, positions, blocks
    assert 16 * parameters < least < usual < 40 * parameters  # float32 weights, gradients, two moments


def test_gpus_are_unknown_if_torch_is_missing(monkeypatch):
    monkeypatch.setattr("mt.commands.doctor._driver", lambda: None)
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    found = doctor(DoctorConfig())
    assert found["gpu"] == "unknown: torch is missing"
    assert found["exit_code"] == 0


def test_nothing_is_left_where_a_file_was_tried_and_a_missing_directory_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("mt.commands.doctor._examine_torch", lambda memory: {})
    assert examine(DoctorConfig(directory=str(tmp_path))).write_error is None
    assert list(tmp_path.iterdir()) == []
    nowhere = examine(DoctorConfig(directory=str(tmp_path / "nowhere")))
    assert nowhere.write_error == "No such file or directory"


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
