"""`mt doctor`: what this machine has, what is missing, and the command that brings it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil

from .. import __version__
from ..cli import EXTRAS
from ..core.config import configuration, option
from ..core.executor import default_workers


@configuration()
class DoctorConfig:
    """The settings of `mt doctor`."""

    directory: str = option(".", "directory whose free disk space to tell", role="input")


def doctor(config: DoctorConfig) -> dict:
    """Returns versions, processors, memory, disk, GPUs, and for every optional part whether it is there."""
    facts = {
        "mt": __version__,
        "python": platform.python_version(),
        "processors": default_workers(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "free_disk_gb": round(shutil.disk_usage(config.directory).free / 1e9, 1),
        "gpu": _gpu(),
    }
    parts = []
    for extra, modules in EXTRAS.items():
        for module in modules:
            found = importlib.util.find_spec(module) is not None
            parts.append(
                {
                    "part": extra,
                    "package": module,
                    "version": _version(module) if found else None,
                    "remedy": None if found else f"pip install 'mt[{extra}]'",
                }
            )
    width = max(len(p["package"]) for p in parts)
    lines = [f"{name:<14}{value}" for name, value in facts.items()]
    lines += [
        f"{p['part']:<14}{p['package']:<{width}}  {p['version'] or 'missing: ' + p['remedy']}" for p in parts
    ]
    return {"text": "\n".join(lines), **facts, "parts": parts}


def _version(module: str) -> str:
    names = importlib.metadata.packages_distributions().get(module, [module])
    return importlib.metadata.version(names[0])


def _gpu() -> str:
    if importlib.util.find_spec("torch") is None:
        return "unknown: torch is missing"
    import torch

    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
