"""`mt doctor` checks this machine: does it work, what fits, what is missing, and how to install that.

It tries rather than reads: it writes a file where outputs would go, and multiplies a matrix on every device.
`examine` gathers the facts, `judge` decides what they mean, and `doctor` prints both. The exit code is 1
where something that is installed does not work; missing optional packages are no fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.config import configuration, option
from ..core.executor import default_workers
from ..core.extras import EXTRAS, install_extra
from ..core.parsing import read_yaml
from ..core.presets import presets
from ..core.progress import activity
from ..core.provenance import memory_bytes
from . import table

GIB = 2**30
LEAST_DISK = 1e9  # bytes, below which an output soon fills the disk
# The least driver for each CUDA, from the table "minor version compatibility" of NVIDIA's release notes.
LEAST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 0)}
# What the extras are for, in the order of the verdict.
PURPOSES = {"train": "training", "eval": "evaluation with lm-eval", "serve": "serving", "retro": "retrieval"}

SPARED = {"tensorboard"}  # without which its extra's commands work, and say what they leave out


@configuration()
class DoctorConfig:
    """The settings of `mt doctor`."""

    directory: str = option(
        ".", "directory where outputs would go: a file is written there, and removed", role="input"
    )


@dataclasses.dataclass(frozen=True)
class Device:
    """A device, and what became of a product of matrices on it. error: None where it was right."""

    name: str
    memory: int  # bytes
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Facts:
    """What was found on this machine."""

    directory: str
    write_error: str | None  # why no file could be written, None where one was
    free_disk: int  # bytes
    processors: int
    memory: int  # bytes
    torch: str | None  # its version; None where it is missing
    torch_error: str | None  # why it cannot be imported
    cuda: str | None  # the version of CUDA that torch was built for
    driver: str | None  # the version of NVIDIA's driver
    devices: tuple[Device, ...]  # the processors first, then the GPUs that torch can use
    presets: dict[str, tuple[int, int]]  # bytes of training with a preset: as it is, and at least
    versions: dict[str, str | None]  # of the optional packages, None where one is missing


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Returns the verdict, the problems, the facts, and the version of every optional package.

    The list `parts` has an entry for each optional package: its extra ("part"), its version, None if it is
    missing, and then the command that installs it ("remedy").
    """
    facts = examine(config)
    problems, verdict = judge(facts)
    parts = [
        {
            "part": extra,
            "package": package,
            "version": facts.versions[package],
            "remedy": None if facts.versions[package] else install_extra(extra),
        }
        for extra, packages in EXTRAS.items()
        for package in packages
    ]
    return {
        "text": _text(facts, problems, verdict, parts),
        "verdict": verdict,
        "problems": problems,
        "exit_code": 1 if problems else 0,
        "mt": __version__,
        "python": platform.python_version(),
        "processors": facts.processors,
        "memory_gb": round(facts.memory / 1e9, 1),
        "free_disk_gb": round(facts.free_disk / 1e9, 1),
        "gpu": _gpu(facts),
        "torch": facts.torch,
        "cuda": facts.cuda,
        "driver": facts.driver,
        "devices": [dataclasses.asdict(device) for device in facts.devices],
        "presets_that_fit": [name for name, sizes in facts.presets.items() if sizes[1] <= _largest(facts)],
        "parts": parts,
    }


def judge(facts: Facts) -> tuple[list[str], str]:
    """(what does not work, each with its remedy; the verdict in one line)."""
    problems = []
    if facts.write_error:
        problems.append(
            f"no file can be written in {facts.directory} ({facts.write_error}); choose another place for"
            " outputs (--directory tries it), or change its permissions"
        )
    elif facts.free_disk < LEAST_DISK:
        problems.append(
            f"only {facts.free_disk / 1e9:.1f} GB are free in {facts.directory}; free some, or choose another"
            " place for outputs"
        )
    if facts.torch_error:
        problems.append(
            f"torch {facts.torch} cannot be imported ({facts.torch_error}); install it again:"
            " pip install --force-reinstall torch"
        )
    problems += [
        f"{device.name}: a product of matrices failed ({device.error}); check it with `nvidia-smi`, or hide"
        " it with CUDA_VISIBLE_DEVICES"
        for device in facts.devices
        if device.error
    ]
    if facts.torch and not facts.torch_error and (problem := _driver_problem(facts)):
        problems.append(problem)
    if problems:
        count = f"{len(problems)} thing{'s do' if len(problems) > 1 else ' does'} not work"
        return problems, f"{count}: see below"
    if facts.torch is None:
        return problems, "data preparation works; training needs torch: " + install_extra("train")
    gpus = len(facts.devices) - 1
    where = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "processors, no GPU"
    needed = {extra: [p for p in EXTRAS[extra] if p not in SPARED] for extra in PURPOSES}
    lacking = [
        extra for extra, packages in needed.items() if any(facts.versions[p] is None for p in packages)
    ]
    ready = [purpose for extra, purpose in PURPOSES.items() if extra not in lacking]
    text = f"ready for data preparation, {', '.join(ready)} (on {where})" if ready else "ready"
    if lacking:
        text += f"; not for {', '.join(PURPOSES[extra] for extra in lacking)}: {install_extra(*lacking)}"
    return problems, text


def _driver_problem(facts: Facts) -> str | None:
    """Why torch does not use a GPU whose driver is there."""
    if facts.driver is None or len(facts.devices) > 1:
        return None
    if facts.cuda is None:
        return (
            f"NVIDIA's driver {facts.driver} is here, but torch {facts.torch} is built without CUDA; install"
            " a build with it: https://pytorch.org/get-started/locally"
        )
    least = LEAST_DRIVER.get(int(facts.cuda.split(".")[0]))
    if least and _numbers(facts.driver) < least:
        return (
            f"torch {facts.torch} is built for CUDA {facts.cuda}, which needs a driver of at least"
            f" {least[0]}.{least[1]}, and this one is {facts.driver}; update the driver, or install torch"
            " for an older CUDA"
        )
    return (
        f"torch {facts.torch} (CUDA {facts.cuda}) finds no GPU although driver {facts.driver} is here; check"
        " `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def examine(config: DoctorConfig) -> Facts:
    """The facts of this machine; takes some seconds with torch."""
    distributions = importlib.metadata.packages_distributions()  # once: it reads the files of all of them
    versions = {
        package: _version(package, distributions) for packages in EXTRAS.values() for package in packages
    }
    memory = memory_bytes() or 0
    write_error = _write(Path(config.directory))
    free = 0 if not Path(config.directory).is_dir() else shutil.disk_usage(config.directory).free
    found: dict[str, Any] = {"torch_error": None, "cuda": None, "devices": (), "presets": {}}
    if versions["torch"] is not None:
        with activity("trying torch and the devices", after=0.5):
            found |= _examine_torch(memory)
    return Facts(
        directory=str(Path(config.directory).resolve()),
        write_error=write_error,
        free_disk=free,
        processors=default_workers(),
        memory=memory,
        torch=versions["torch"],
        driver=_driver(),
        versions=versions,
        **found,
    )


def _examine_torch(memory: int) -> dict[str, Any]:
    """The facts of Facts that need torch."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"torch_error": str(error).splitlines()[0]}
    devices = [Device("processors", memory, _multiply("cpu"))]
    if torch.cuda.is_available():
        devices += [
            Device(
                torch.cuda.get_device_name(i),
                torch.cuda.get_device_properties(i).total_memory,
                _multiply(f"cuda:{i}"),
            )
            for i in range(torch.cuda.device_count())
        ]
    memory_of = table.imported("train.plan", "memory_of_preset")
    _, cls = table.load(("train",))
    return {
        "cuda": torch.version.cuda,
        "devices": tuple(devices),
        "presets": {name: memory_of(read_yaml(path)) for name, path in presets(cls).items()},
    }


def _multiply(device: str) -> str | None:
    """Multiplies two matrices; the error in one line, None where the product is right."""
    import torch

    try:
        a = torch.ones(256, 256, device=device)
        product = float((a @ a).sum())
    except RuntimeError as error:  # also CUDA's errors
        return str(error).splitlines()[0]
    return None if product == 256**3 else f"the sum is {product:g}, not {256**3}"


def _write(directory: Path) -> str | None:
    """Writes, syncs, renames and removes a file, as every command does; the error, None where it works."""
    try:
        with tempfile.TemporaryDirectory(prefix=".mt-doctor-", dir=directory) as folder:
            file = Path(folder) / "partial"
            with open(file, "wb") as opened:
                opened.write(b"mt" * 500_000)
                opened.flush()
                os.fsync(opened.fileno())
            file.rename(Path(folder) / "whole")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        return asked.stdout.splitlines()[0].strip()
    return None


def _version(module: str, distributions: Mapping[str, list[str]]) -> str | None:
    """The version of the distribution that has the module; None if it is missing."""
    if importlib.util.find_spec(module) is None:
        return None
    names = distributions.get(module, [module])
    return importlib.metadata.version(names[0])


def _gpu(facts: Facts) -> str:
    """The names of the GPUs that torch finds."""
    if facts.torch is None:
        return "unknown: torch is missing"
    return ", ".join(device.name for device in facts.devices[1:]) or "none"


def _largest(facts: Facts) -> int:
    """The memory of the device that training would use: the smallest GPU, else the processors'."""
    return min((device.memory for device in facts.devices[1:]), default=facts.memory)


def _text(facts: Facts, problems: list[str], verdict: str, parts: list[dict[str, Any]]) -> str:
    lines = [f"mt doctor: {verdict}"]
    lines += [f"  ! {problem}" for problem in problems]
    rows = {
        "mt": f"{__version__}, Python {platform.python_version()}",
        "files": facts.write_error or f"written in {facts.directory}; {facts.free_disk / 1e9:,.0f} GB free",
        "memory": f"{facts.memory / GIB:,.0f} GiB, {facts.processors} processors",
    }
    if facts.torch is None:
        rows["torch"] = f"missing: {install_extra('train')}"
    else:
        cuda = f"for CUDA {facts.cuda}" if facts.cuda else "without CUDA"
        driver = f"driver {facts.driver}" if facts.driver else "no NVIDIA driver"
        rows["torch"] = f"{facts.torch} {cuda}, {driver}"
    lines += ["", *(f"{name:<11}{row}" for name, row in rows.items())]
    for number, device in enumerate(facts.devices):
        name = f"cuda:{number - 1}" if number else "cpu"
        result = device.error or "multiplied two matrices rightly"
        lines.append(f"{name:<11}{device.name}, {device.memory / GIB:,.0f} GiB: {result}")
    lines += _preset_lines(facts)
    lines.append("")
    width = max(len(part["package"]) for part in parts)
    for part in parts:
        shown = part["version"] or f"missing: {part['remedy']}"
        lines.append(f"{part['part']:<11}{part['package']:<{width}}  {shown}")
    return "\n".join(lines)


def _preset_lines(facts: Facts) -> list[str]:
    """Which presets train on one device of this machine."""
    largest = _largest(facts)
    fit = [name for name, (usual, _) in facts.presets.items() if usual <= largest]
    least = [name for name, (usual, least) in facts.presets.items() if least <= largest < usual]
    if not facts.presets:
        return []
    lines = [f"{'presets':<11}that train in {largest / GIB:,.0f} GiB (estimated): {', '.join(fit) or 'none'}"]
    if least:
        how = "with --micro-batch-size 1 --recompute-granularity full"
        lines.append(f"{'':<11}{how}: {', '.join(least)}")
    return lines
