"""`mt doctor` checks this machine: installed and missing packages, GPUs, how to install what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from typing import Any

from .. import __version__
from ..cli import EXTRAS
from ..core.config import configuration, option
from ..core.executor import default_workers


@configuration()
class DoctorConfig:
    """The settings of `mt doctor`."""

    directory: str = option(".", "directory whose free disk space is printed", role="input")


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Returns versions, processors, memory, free disk space, GPUs, and the version of every optional package.

    The list `parts` has an entry for each optional package: its extra ("part"), its version, None if it is
    missing, and then the command that installs it ("remedy").
    """
    facts = {
        "mt": __version__,
        "python": platform.python_version(),
        "processors": default_workers(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(config.directory).free / 1e9, 1),
        "gpu": _gpu(),
    }
    parts = []
    lines = [f"{name:<14}{value}" for name, value in facts.items()]
    width = max(len(package) for packages in EXTRAS.values() for package in packages)
    for extra, packages in EXTRAS.items():
        for package in packages:
            found = importlib.util.find_spec(package) is not None
            version = _version(package) if found else None
            remedy = None if found else f"pip install 'mt[{extra}]'"
            parts.append({"part": extra, "package": package, "version": version, "remedy": remedy})
            lines.append(f"{extra:<14}{package:<{width}}  {version or f'missing: {remedy}'}")
    return {"text": "\n".join(lines), **facts, "parts": parts}


def _version(module: str) -> str:
    """The version of the distribution that has the module."""
    names = importlib.metadata.packages_distributions().get(module, [module])
    return importlib.metadata.version(names[0])


def _gpu() -> str:
    """The names of the GPUs that torch finds."""
    if importlib.util.find_spec("torch") is None:
        return "unknown: torch is missing"
    import torch

    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
