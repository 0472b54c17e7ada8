"""The configuration class of a command, made from its source without what its module imports.

`import torch` takes seconds, from a cold disk half a minute, but a mistyped flag can be told at once, and so
can the help and the completion of flags. `outline` reads the module of a command as source. It runs the
statements that the configuration class needs (other configurations, constants, functions), and imports only
the standard library and `core`. A name that comes from anywhere else is Missing: a rule of a configuration
that needs one is left out here. The command checks it again when its real class is imported.

tests/commands/test_outline.py compares every outline with the real class.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import contextlib
import functools
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = __package__.split(".")[0]
UNKNOWN = "_unknown"  # the name of the class of unknown values, in the modules that are read
IMPORTED = ("core", "commands")  # packages of mt that are imported as they are


class Missing(Exception):
    """A name whose value cannot be known without importing another library."""


class _Unknown:
    """The value of an attribute of a class that needs another library; its use raises Missing."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _missing(self, *_: object, **__: object) -> Any:
        raise Missing(self._name)

    __call__ = __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __contains__ = _missing
    __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = _missing


def outline(module: str, function: str) -> Any:
    """The configuration class of a command's function; None if it needs another library.

    module: within mt.
    """
    collects = gc.isenabled()
    gc.disable()  # syntax trees are many objects and no garbage: looking through them doubles the time
    try:
        source = _source(f"{PACKAGE}.{module}")
        node = source.statements[function]
        assert isinstance(node, ast.FunctionDef)
        annotation = node.args.args[0].annotation
        assert annotation is not None
        return source.evaluate(annotation)
    except (Missing, KeyError):
        return None
    finally:
        if collects:
            gc.enable()


@functools.cache
def _source(name: str) -> _Source:
    return _Source(name)


class _Source(dict[str, Any]):
    """The names of a module, each with its value as soon as it is asked for; raises Missing."""

    def __init__(self, name: str) -> None:
        place = ROOT.joinpath(*name.split(".")[1:])
        path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        super().__init__(__name__=name, __file__=str(path), __builtins__=builtins)
        self.name, self.path = name, path
        self.package = name if place.is_dir() else name.rpartition(".")[0]
        self.statements: dict[str, ast.stmt] = {}
        self.running: set[str] = set()
        self.submodules: dict[str, list[str]] = {}  # several statements may bind `urllib`
        for node in ast.parse(path.read_bytes()).body:
            for alias in node.names if isinstance(node, ast.Import) else ():
                self.submodules.setdefault(alias.name.split(".")[0], []).append(alias.name)
            for bound in _bound(node):
                self.statements.setdefault(bound, node)

    def __missing__(self, name: str) -> Any:  # Python asks so for the globals of a function
        if hasattr(builtins, name):
            raise KeyError(name)  # found there
        node = self.statements.get(name)
        if node is None or name in self.running:
            raise Missing(f"{self.name}.{name}")
        self.running.add(name)
        try:
            self._run(node, name)
        finally:
            self.running.discard(name)
        return dict.__getitem__(self, name)

    def evaluate(self, node: ast.expr) -> Any:
        self._resolve(_names(node))
        expression = ast.Expression(node)
        return eval(compile(expression, self.path, "eval", dont_inherit=True), self)

    def _run(self, node: ast.stmt, name: str) -> None:
        """Runs a statement that binds a name."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            self[name] = self._imported(node, name)
            return
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            node = ast.copy_location(ast.Assign([node.target], node.value), node)
        is_settings = isinstance(node, ast.ClassDef) and _is_configuration(node)
        eager = is_settings or (isinstance(node, ast.ClassDef) and _is_typed_dict(node))
        if isinstance(node, ast.ClassDef):
            node = self._class(node, eager=eager)
        self._resolve(_names(node))
        tree = ast.fix_missing_locations(ast.Module([node], []))
        # The annotations of settings and of keys are values, since no module is there in which they could be
        # looked up.
        flags = 0 if eager else __future__.annotations.compiler_flag
        exec(compile(tree, self.path, "exec", flags=flags, dont_inherit=True), self)
        if is_settings and "__post_init__" in vars(self[name]):
            self[name].__post_init__ = _without_missing(self[name].__post_init__)

    def _resolve(self, names: Iterator[str]) -> None:
        """Gives names their values: a class body and an expression do not ask for them."""
        for name in names:
            if name not in self and not hasattr(builtins, name):
                self[name] = self.__missing__(name)

    def _class(self, node: ast.ClassDef, eager: bool) -> ast.ClassDef:
        """The class without what cannot be run. eager: whether annotations of its fields are values."""
        own = frozenset(name for statement in node.body for name in _bound(statement))
        body: list[ast.stmt] = []
        for statement in node.body:
            kept: ast.stmt = statement
            if isinstance(statement, ast.FunctionDef):
                kept = _without_annotations(statement)
            elif isinstance(statement, ast.AnnAssign) and not eager:
                kept = ast.copy_location(
                    ast.AnnAssign(statement.target, ast.Constant(""), statement.value, statement.simple),
                    statement,
                )
            try:
                self._resolve(_names(kept, own))
            except Missing as missing:
                if isinstance(statement, ast.AnnAssign):
                    raise
                bound = list(_bound(statement))
                if not bound:
                    continue
                self[UNKNOWN] = _Unknown
                value = ast.Call(ast.Name(UNKNOWN, ast.Load()), [ast.Constant(str(missing))], [])
                targets: list[ast.expr] = [ast.Name(name, ast.Store()) for name in bound]
                kept = ast.copy_location(ast.Assign(targets, value), statement)
            body.append(kept if eager or not isinstance(statement, ast.AnnAssign) else statement)
        if not eager:  # dataclasses look up annotations in the module of the class, an imported one
            body.append(ast.Assign([ast.Name("__module__", ast.Store())], ast.Constant(__name__)))
        made = ast.ClassDef(node.name, node.bases, node.keywords, body or [ast.Pass()], node.decorator_list)
        if sys.version_info >= (3, 12):
            made.type_params = node.type_params
        return ast.copy_location(made, node)

    def _imported(self, node: ast.Import | ast.ImportFrom, name: str) -> Any:
        """The value of a name that an import statement binds."""
        alias = next(a for a in node.names if (a.asname or a.name.split(".")[0]) == name)
        if isinstance(node, ast.Import):
            full = alias.name
            if full.split(".")[0] not in sys.stdlib_module_names:
                raise Missing(full)
            for module in [full] if alias.asname else self.submodules[full.split(".")[0]]:
                importlib.import_module(module)
            return sys.modules[full if alias.asname else full.split(".")[0]]
        base = node.module or ""
        if node.level:
            parts = self.package.split(".")
            base = ".".join(filter(None, [*parts[: len(parts) - node.level + 1], base]))
        if base.split(".")[0] not in {PACKAGE, *sys.stdlib_module_names}:
            raise Missing(base)
        return _attribute(base, alias.name)


class _Module:
    """A module of mt whose attributes are those of its source."""

    def __init__(self, source: _Source) -> None:
        self._source = source

    def __getattr__(self, name: str) -> Any:
        return self._source[name]


def _attribute(module: str, name: str) -> Any:
    """What `from module import name` binds."""
    words = module.split(".")
    within = words[1] if len(words) > 1 else name
    if words[0] != PACKAGE or within in IMPORTED:
        found = importlib.import_module(module)
        return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")
    place = ROOT.joinpath(*words[1:], name)
    if place.with_suffix(".py").exists() or place.is_dir():
        return _Module(_source(f"{module}.{name}"))
    return _source(module)[name]


def _without_missing(rules: Callable[[Any], None]) -> Callable[[Any], None]:
    """The rules of a configuration; none where one of them needs another library."""

    @functools.wraps(rules)
    def __post_init__(self: Any) -> None:
        with contextlib.suppress(Missing):
            rules(self)

    return __post_init__


def _is_configuration(node: ast.ClassDef) -> bool:
    calls = (d.func for d in node.decorator_list if isinstance(d, ast.Call))
    return any(isinstance(called, ast.Name) and called.id == "configuration" for called in calls)


def _is_typed_dict(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "TypedDict" for base in node.bases)


def _without_annotations(node: ast.FunctionDef) -> ast.FunctionDef:
    node.returns = None
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return node


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.split(".")[0] for alias in node.names)
    elif isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (inner.id for inner in ast.walk(target) if isinstance(inner, ast.Name))


def _names(node: ast.AST, known: frozenset[str] = frozenset()) -> Iterator[str]:
    """The names that a statement needs at once: not those in the bodies of functions.

    known: names that the class of the statement binds.
    """
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load) and node.id not in known:
            yield node.id
        return
    if isinstance(node, ast.ClassDef):
        known = known.union(*map(_bound, node.body))
    inner: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.FunctionDef):
        inner = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
    elif isinstance(node, ast.Lambda):
        inner = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        known = known.union(
            n.id for g in node.generators for n in ast.walk(g.target) if isinstance(n, ast.Name)
        )
    for child in inner:
        yield from _names(child, known)
