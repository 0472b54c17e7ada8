"""Presets: named settings in the YAML files of the folder `presets` beside a configuration class's module."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from .config import UserError, nearest
from .parsing import read_yaml


def read_preset(cls: type[Any], name: str) -> dict[str, Any]:
    """The settings of a preset; raises UserError if there is no preset of that name."""
    known = presets(cls)
    if name not in known:
        raise UserError(
            f"preset {name!r} is not known; choose one of {', '.join(known)}{nearest(name, known)}"
        )
    return read_yaml(known[name])


def presets(cls: type[Any]) -> dict[str, Path]:
    """The presets of a configuration class by name: the YAML files in `presets` beside its module."""
    found = importlib.util.find_spec(cls.__module__)  # the module need not be imported
    assert found is not None, "its module can be found"
    folder = Path(str(found.origin)).parent / "presets"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}
