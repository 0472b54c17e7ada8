"""The configuration of a command, from layers of settings: a preset, files, flags."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.config import build, merge, shown
from ..core.parsing import check_value
from ..core.presets import read_preset
from . import hints

Layer = tuple[str, dict[str, Any]]  # (origin, tree of settings)


def configure(cls: Any, layers: Sequence[Layer], preset: str | None = None, hf: str | None = None) -> Any:
    """The configuration of a command from (origin, tree) layers, where a later layer wins.

    A layer may name a `preset`, whose settings come before all layers, and with `hf` a Hugging Face
    directory, whose config.json gives the model's settings; they come after the preset.
    """
    return build(cls, *layers_of(cls, layers, preset, hf), hint=hints.for_setting)


def layers_of(cls: Any, layers: Sequence[Layer], preset: str | None, hf: str | None) -> list[Layer]:
    """The layers with those of the preset and of the Hugging Face directory, in the order of precedence."""
    layers = [(origin, dict(tree)) for origin, tree in layers]
    named: dict[str, list[Any]] = {"preset": [], "hf": []}
    for name in named:
        if getattr(cls, {"preset": "PRESETS", "hf": "read_hf"}[name], False):
            named[name] = [
                check_value(tree.pop(name), str, f"{origin}: {name}", "name one")
                for origin, tree in layers
                if name in tree
            ]
    if directory := hf or (named["hf"] or [None])[-1]:
        layers.insert(0, (f"--hf {directory}", cls.read_hf(directory)))
    if chosen := preset or (named["preset"] or [None])[-1]:
        layers.insert(0, (f"preset {chosen}", read_preset(cls, chosen)))
    return layers


def origins(cls: Any, layers: Sequence[Layer]) -> list[str]:
    """A line for each setting that a layer gives: `optimizer.lr = 0.003 (preset tiny)`."""
    values, sources, _ = merge(cls, layers)
    return [f"{'.'.join(path)} = {shown(value)} ({sources[path]})" for path, value in values.items()]


def replaced_lists(cls: Any, layers: Sequence[Layer]) -> list[str]:
    """A line for each list of a preset in place of which a later layer gives another one."""
    preset = next((layer for layer in layers if layer[0].startswith("preset ")), None)
    if preset is None:
        return []
    before, after = merge(cls, [preset])[0], merge(cls, layers)[0]
    return [
        f"{path[-1]} of {preset[0]} are not used, other ones are given; they are"
        f" {' '.join(shlex.quote(str(item)) for item in value)}"
        for path, value in before.items()
        if isinstance(value, list) and list(after[path]) != value
    ]


def from_file(cls: Any, tree: dict[str, Any], file: str | Path) -> dict[str, Any]:
    """The settings in a file, after the configuration class has resolved what lies beside the file."""
    resolve = getattr(cls, "from_file", None)
    resolved: dict[str, Any] = resolve(tree, Path(file).parent) if resolve else tree
    return resolved
