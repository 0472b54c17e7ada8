"""Rules of the source tree, explained in docs/architecture.md.

Imports point down only. Each module has its test file. A class name is defined once. Only train/model/
branches on the family of a model.
"""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The packages that each package may import besides itself. Every import counts: at the top of a file,
# inside a function, under TYPE_CHECKING.
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
    # it imports what commands do by names in a table, when they are chosen; a report looks at documents
    "commands": BASE | {"dataprep"},
    "cli": {"core", "commands"},
    "__main__": {"cli", "commands"},  # commands/interrupt.py, before cli.py is imported
    # the Python API, each name imported when it is used
    "__init__": RETRO | {"dataprep", "eval", "commands"},
}
WITHOUT_TORCH = {"core", "documents", "tokenizer", "indexed", "dataprep", "cli", "__main__", "__init__"}


@functools.cache
def modules() -> list[Path]:
    """Every Python file of the package, relative to its root."""
    folders = [
        f
        for f in ROOT.iterdir()
        if f.is_dir() and f.name[0] != "." and f.name not in ("tests", "benchmarks", "examples", "build")
    ]
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    return sorted(path.relative_to(ROOT) for path in paths)


def package_of(parts: tuple[str, ...]) -> str:
    """The longest name in MAY_IMPORT that begins the path: `train.model` for ("train", "model", "gpt")."""
    return next((name for n in (2, 1) if (name := ".".join(parts[:n])) in MAY_IMPORT), ".".join(parts[:1]))


def parts_of(relative: Path) -> tuple[str, ...]:
    return (
        (*relative.parts[:-1], relative.stem)
        if relative.stem != "__init__" or len(relative.parts) == 1
        else relative.parts[:-1]
    )


@functools.cache
def tree(relative: Path) -> ast.Module:
    return ast.parse((ROOT / relative).read_text(encoding="utf-8"))


@functools.cache
def imports(relative: Path) -> list[tuple[tuple[str, ...], int]]:
    """(module of mt, line) of every import in a file. An imported class or function counts as its module."""
    found = []
    for node in ast.walk(tree(relative)):
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
    """One line for each import of a package that MAY_IMPORT does not allow."""
    package = package_of(parts_of(relative))
    allowed = MAY_IMPORT[package] | {package}
    return [
        f"{relative}:{line} imports {'.'.join(target)}"
        for target, line in found
        if package_of(target) not in allowed
    ]


@pytest.mark.parametrize("relative", modules(), ids=str)
def test_a_module_imports_only_from_its_own_package_and_the_packages_below(relative):
    assert parts_of(relative)[0] in {name.split(".")[0] for name in MAY_IMPORT}, (
        f"{relative}: belongs to no package in MAY_IMPORT"
    )
    assert not (wrong := breaches(relative, imports(relative))), "\n".join(wrong)


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """The modules of one import cycle, in order, or None."""
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


def test_there_is_no_import_cycle():
    graph = {
        ".".join(parts_of(m)): (
            {".".join(target) for target, _ in imports(m) if target} - {".".join(parts_of(m))}
        )
        for m in modules()
    }
    assert (found := cycle(graph)) is None, " -> ".join(found)


@pytest.mark.parametrize(
    "relative", [m for m in modules() if package_of(parts_of(m)) in WITHOUT_TORCH], ids=str
)
def test_packages_below_training_do_not_import_torch(relative):
    for node in ast.walk(tree(relative)):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
        assert not any(n.split(".")[0] == "torch" for n in names), f"{relative}:{node.lineno} imports torch"


def test_only_the_command_line_and_packages_are_at_the_root():
    assert {p.name for p in ROOT.glob("*.py")} == {"cli.py", "__init__.py", "__main__.py"}


def expected_test_file(relative: Path) -> Path:
    """tests/X/test_Y.py of X/Y.py."""
    return Path("tests") / relative.with_name(f"test_{relative.name}")


# tests/test_cli.py runs `__main__.py`, three lines that call cli.py.
WITHOUT_TEST_FILE = {Path("__main__.py")}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_module_has_its_test_file(package):
    missing = {
        m
        for m in modules()
        if package_of(parts_of(m)) == package
        and m.stem != "__init__"
        and not (ROOT / expected_test_file(m)).exists()
    } - WITHOUT_TEST_FILE
    assert not missing, "without tests/X/test_Y.py: " + ", ".join(sorted(map(str, missing)))


def classes(module: ast.Module) -> list[str]:
    """The public classes of a module, those inside functions and classes included."""
    return [n.name for n in ast.walk(module) if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]


def defined_twice(names: dict[str, list[str]]) -> list[str]:
    """names: file -> its classes. Returns one line for each name that is defined more than once."""
    owners: dict[str, list[str]] = {}
    for file, found in names.items():
        for name in found:
            owners.setdefault(name, []).append(file)
    return [f"{name}: {', '.join(files)}" for name, files in sorted(owners.items()) if len(files) > 1]


def test_every_class_name_is_defined_once():
    found = defined_twice({str(m): classes(tree(m)) for m in modules()})
    assert not found, "\n".join(found)


@functools.cache
def model_classes() -> set[str]:
    """The classes in train/model/ that derive from Model, directly or not."""
    bases = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for m in modules()
        if package_of(parts_of(m)) == "train.model"
        for node in ast.walk(tree(m))
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    while more := {name for name, of in bases.items() if of & (found | {"Model"})} - found:
        found |= more
    return found


def family_branches(module: ast.Module) -> list[int]:
    """Numbers of the lines that branch on a model's family.

    They compare `.family` or match on it, look it up in a literal dict, or check for a class of model.
    """

    def is_family(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Attribute) and n.attr == "family" for n in ast.walk(node))

    def names(node: ast.AST) -> set[str]:
        inner = list(ast.walk(node))
        return {n.id for n in inner if isinstance(n, ast.Name)} | {
            n.attr for n in inner if isinstance(n, ast.Attribute)
        }

    lines = []
    for node in ast.walk(module):
        match node:
            case ast.Compare(left=left, comparators=others):
                found = is_family(left) or any(map(is_family, others))
            case ast.Match(subject=subject):
                found = is_family(subject)
            case ast.Subscript(value=ast.Dict(), slice=key):
                found = is_family(key)
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kinds]):
                found = bool(names(kinds) & model_classes())
            case ast.MatchClass(cls=kind):
                found = bool(names(kind) & model_classes())
            case _:
                found = False
        if found:
            lines.append(node.lineno if hasattr(node, "lineno") else node.cls.lineno)
    return lines


def test_only_train_model_branches_on_the_family():
    outside = [m for m in modules() if package_of(parts_of(m)) != "train.model"]
    found = [
        f"{m}:{line} branches on the model's family" for m in outside for line in family_branches(tree(m))
    ]
    assert not found, "\n".join(found)


def test_each_kind_of_broken_rule_is_found():
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
    assert defined_twice({"a.py": ["One", "Two"], "b.py": ["Two"], "c.py": ["Three", "Three"]}) == [
        "Three: c.py, c.py",
        "Two: a.py, b.py",
    ]
    assert model_classes() >= {"GPT", "Bert", "T5", "Biencoder", "Retro", "GPTNeoX"}
    assert classes(ast.parse("class A:\n  class B: ...\ndef f():\n  class _C: ...")) == ["A", "B"]
    assert expected_test_file(Path("train/model/gpt.py")) == Path("tests/train/model/test_gpt.py")


@pytest.mark.parametrize(
    ("code", "is_branch"),
    [
        ('if config.family == "gpt": pass', True),
        ('x = 1 if "t5" != model.family else 2', True),
        ('return_ = settings.model.family in ("gpt", "retro")', True),
        ('match config.family:\n  case "gpt": pass', True),
        ('f = {"gpt": 1}[config.family]', True),
        ('if (family := saved.model.family) != "ict": pass', True),
        ("isinstance(model, Retro)", True),
        ("isinstance(model, (Bert, retro.Retro))", True),
        ("issubclass(kind, T5 | GPT)", True),
        ("match model:\n  case GPT(): pass", True),
        ("family = family_of(config.family)", False),
        ('message = f"model.family = {config.family}"', False),
        ("isinstance(dataset, GPTDataset)", False),
    ],
)
def test_branches_on_the_family_are_found(code, is_branch):
    assert family_branches(ast.parse(code)) == (
        [1] if is_branch and "case GPT" not in code else [2] * is_branch
    )
