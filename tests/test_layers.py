"""Imports point down only: the floors of docs/architecture.md."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each room may import beside itself. Every import counts: at the top of a file, inside a function, for
# types only.
BASE = {"core", "documents", "tokenizer"}
DATA = BASE | {"indexed"}
MODEL = DATA | {"train.model"}
PARALLEL = MODEL | {"train.parallel"}
CHECKPOINT = PARALLEL | {"train.checkpoint"}
TRAIN = CHECKPOINT | {"train"}
RETRO = TRAIN | {"retro"}
MAY_IMPORT = {
    "core": set(),
    "documents": {"core"},
    "tokenizer": {"core", "documents"},
    "indexed": BASE,
    "dataprep": BASE,
    "train.model": DATA,
    "train.parallel": MODEL,
    "train.checkpoint": PARALLEL,
    "train": CHECKPOINT,
    "retro": TRAIN,
    "eval": RETRO,
    "commands": {"core", "cli"},
    "cli": {"core"},  # it reaches commands as names in a table, not by import
    "__main__": {"cli"},
    "__init__": set(),
}
WITHOUT_TORCH = {"core", "documents", "tokenizer", "indexed", "dataprep", "cli", "__main__", "__init__"}


def modules() -> list[Path]:
    """Every Python file of the package, relative to its root."""
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return sorted(
        p
        for p in paths
        if p.parts[0] not in ("tests", "benchmarks", "examples", "build") and p.parts[0][0] != "."
    )


def room_of(parts: tuple[str, ...]) -> str:
    """`train.model` of ("train", "model", "gpt"): the longest name in MAY_IMPORT that the path begins with."""
    return next((name for n in (2, 1) if (name := ".".join(parts[:n])) in MAY_IMPORT), ".".join(parts[:1]))


def parts_of(relative: Path) -> tuple[str, ...]:
    return (
        (*relative.parts[:-1], relative.stem)
        if relative.stem != "__init__" or len(relative.parts) == 1
        else relative.parts[:-1]
    )


@functools.cache
def imports(relative: Path) -> list[tuple[tuple[str, ...], int]]:
    """(module of mt, line) of every import in a file; a name that is not a module counts as the module that
    holds it.
    """
    found = []
    for node in ast.walk(ast.parse((ROOT / relative).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "mt"]
            found += [(tuple(name.split(".")[1:]), node.lineno) for name in names]
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            base = relative.parts[: len(relative.parts) - node.level]
        elif (node.module or "").split(".")[0] == "mt":
            base = ()
        else:
            continue
        module = (node.module or "").split(".") if node.module else []
        base = (*base, *(module if node.level else module[1:]))
        found += [(target, node.lineno) for alias in node.names if (target := _module(base, alias.name))]
    return found


def _module(base: tuple[str, ...], name: str) -> tuple[str, ...]:
    inner = ROOT.joinpath(*base, name)
    return (*base, name) if inner.with_suffix(".py").exists() or inner.is_dir() else base


def breaches(relative: Path, found: list[tuple[tuple[str, ...], int]]) -> list[str]:
    """What a file imports from above, or from a room that is none of its business."""
    room = room_of(parts_of(relative))
    allowed = MAY_IMPORT[room] | {room}
    return [
        f"{relative}:{line} imports {'.'.join(target)}"
        for target, line in found
        if room_of(target) not in allowed
    ]


@pytest.mark.parametrize("relative", modules(), ids=str)
def test_a_module_imports_only_from_its_own_room_and_the_floors_below(relative):
    assert parts_of(relative)[0] in {name.split(".")[0] for name in MAY_IMPORT}, (
        f"{relative}: of no room of docs/architecture.md"
    )
    assert not (wrong := breaches(relative, imports(relative))), "\n".join(wrong)


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """The files of one cycle of imports, in order, or None."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str] | None:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return None
        found = next(
            filter(None, (visit(other, [*path, name]) for other in sorted(graph.get(name, ())))), None
        )
        done.add(name)
        return found

    return next(filter(None, (visit(name, []) for name in sorted(graph))), None)


def test_no_files_import_each_other_in_a_circle_late_and_type_checking_imports_counted():
    graph = {
        ".".join(parts_of(m)): (
            {".".join(target) for target, _ in imports(m) if target} - {".".join(parts_of(m))}
        )
        for m in modules()
    }
    assert (found := cycle(graph)) is None, " -> ".join(found)


@pytest.mark.parametrize("relative", [m for m in modules() if room_of(parts_of(m)) in WITHOUT_TORCH], ids=str)
def test_rooms_below_training_do_not_import_torch(relative):
    for node in ast.walk(ast.parse((ROOT / relative).read_text(encoding="utf-8"))):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
        assert not any(n.split(".")[0] == "torch" for n in names), f"{relative}:{node.lineno} imports torch"


def test_only_the_command_line_and_packages_lie_at_the_root():
    assert {p.name for p in ROOT.glob("*.py")} == {"cli.py", "__init__.py", "__main__.py"}


def test_each_kind_of_breach_is_noticed():
    inside = Path("train/model/gpt.py")
    for target in (
        ("train", "parallel", "mesh"),
        ("train", "loop"),
        ("train", "checkpoint", "native"),
        ("eval", "lm"),
        ("cli",),
        ("dataprep", "stage"),
    ):
        assert breaches(inside, [(target, 1)])
    assert not breaches(
        inside, [(("core", "config"), 1), (("train", "model", "layers"), 2), (("indexed", "format"), 3)]
    )
    assert breaches(Path("documents/reader.py"), [(("tokenizer", "tokenizer"), 1)])
    assert breaches(Path("core/manifest.py"), [(("documents", "sources"), 1)])
    assert breaches(Path("train/checkpoint/native.py"), [(("train", "optimizer"), 1)])
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
