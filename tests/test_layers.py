"""Imports point down only: the floors of docs/architecture.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each room may import, beside itself. `cli` reaches the verbs as names in a table, not by import.
BASE = {"config", "compiled", "sources", "files", "manifest", "executor", "documents", "writer", "vocabulary", "tokenizer", "train_tokenizer"}
MAY_IMPORT = {
    "config": set(),
    "compiled": set(),
    "sources": {"config"},
    "files": {"config"},
    "manifest": {"config", "sources"},
    "executor": {"config", "manifest"},
    "documents": {"config", "sources", "files", "manifest"},
    "writer": {"config", "manifest", "documents"},
    "vocabulary": {"config"},
    "tokenizer": {"config", "files", "manifest", "vocabulary"},
    "train_tokenizer": {"config", "manifest", "executor", "documents", "vocabulary"},
    "indexed": BASE,
    "dataprep": BASE,
    "train": BASE | {"indexed"},
    "retro": BASE | {"indexed", "train"},
    "eval": BASE | {"indexed", "train", "retro"},
    "report": {"config", "manifest"},
    "pipeline": {"config", "manifest", "cli", "report"},
    "doctor": {"config", "executor", "cli"},
    "cli": {"config"},
    "__main__": {"cli"},
    "__init__": set(),
}
NO_TORCH = set(MAY_IMPORT) - {"train", "retro", "eval"}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        if relative.parts[0] in MAY_IMPORT or (relative.stem in MAY_IMPORT and len(relative.parts) == 1):
            yield relative


def imported_rooms(relative: Path):
    """(room, line) of every import of mt's own modules, also those inside functions."""
    tree = ast.parse((ROOT / relative).read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = relative.parts[:-1][: len(relative.parts) - node.level]
            names = [(*base, *(node.module or "").split("."))] if node.module else [(*base, alias.name) for alias in node.names]
        elif (node.module or "").split(".")[0] == "mt":
            parts = node.module.split(".")[1:]
            names = [tuple(parts)] if parts else [(alias.name,) for alias in node.names]
        else:
            continue
        for parts in names:
            yield parts[0], node.lineno


@pytest.mark.parametrize("relative", list(modules()), ids=str)
def test_a_module_imports_only_from_its_own_room_and_the_floors_below(relative):
    room = relative.parts[0].removesuffix(".py")
    allowed = MAY_IMPORT[room] | {room, "__version__"}
    wrong = [f"{relative}:{line} imports {other}" for other, line in imported_rooms(relative) if other not in allowed]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("relative", [r for r in modules() if r.parts[0].removesuffix(".py") in NO_TORCH], ids=str)
def test_rooms_below_training_do_not_import_torch(relative):
    tree = ast.parse((ROOT / relative).read_text())
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if relative.name == "doctor.py":
            continue
        assert not any(n.split(".")[0] == "torch" for n in names), f"{relative}:{node.lineno} imports torch"
