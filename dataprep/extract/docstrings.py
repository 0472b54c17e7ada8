"""The English prose that every Python installation carries, as documents.

It is the language reference in `pydoc_data.topics`, and the docstrings of the standard library and of
installed packages (numpy's and torch's run to megabytes): real text, with its real duplicates, that needs no
download. Files are parsed, never imported, so no code of a package runs. One document is one reference topic,
or the docstrings of one module in source order under headings of their own names.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...core.config import UserError
from ...documents.reader import Document
from ..stage import Removed

# Where a package keeps docstrings of its compiled parts: numpy's and torch's calls of these names carry them
# as text.
DOCSTRING_CALLS = {"add_newdoc", "add_docstr", "_add_docstr", "add_newdoc_for_scalar_type", "add_docstr_all"}


def python_files(packages: tuple[str, ...]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(name, path) of the Python files of the standard library and of installed distributions, in a fixed
    order.

    Also returns the version of each, on which the text depends. Raises UserError for one that is not
    installed.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    files = [
        (str(path.relative_to(library)), str(path))
        for path in sorted(library.rglob("*.py"))
        if not skip & set(path.relative_to(library).parts)
    ]
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"packages: {package!r} is not installed; install it, or leave it out") from None
        versions[package] = distribution.version
        for file in sorted(distribution.files or [], key=str):
            if (
                file.suffix in (".py", ".pyi")
                and "tests" not in file.parts
                and "test" not in file.parts
                and ".." not in file.parts
            ):
                files.append((str(file), str(distribution.locate_file(file))))
    return files, versions


def module_documents(
    name: str, path: str, min_chars: int, max_chars: int
) -> Iterator[tuple[str, Document | Removed]]:
    """(the file's name, a document) for those in one Python source file; none where it says nothing.

    A file that does not parse (a template, code for another Python) is removed: not ours to mend.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # another project's invalid escapes are not our user's concern
            tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        yield name, Removed("not_python", {"why": str(error)})
        return
    if name == "pydoc_data/topics.py":
        for topic, text in sorted(_topics(tree).items()):
            yield name, Document(f"pydoc_data.topics/{topic}", text, {"title": topic})
        return
    pieces = [(heading, text) for heading, text in docstrings(tree) if len(text) >= min_chars]
    module = name.removesuffix(".py").removesuffix(".pyi").replace("/", ".").removesuffix(".__init__")
    part: list[str] = []
    number = size = 0
    for heading, text in pieces:
        if part and size + len(text) > max_chars:
            yield name, _module_document(module, number, part)
            part, size, number = [], 0, number + 1
        part.append(f"{heading}\n\n{text}" if heading else text)
        size += len(part[-1])
    if part:
        yield name, _module_document(module, number, part)


def _module_document(module: str, number: int, part: list[str]) -> Document:
    return Document(f"{module}/{number}", "\n\n\n".join(part), {"title": module})


def _topics(tree: ast.Module) -> dict[str, str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(dotted name, cleaned docstring) in source order; the module's own has the name ""."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=True)
            if text:
                yield name, text
        elif isinstance(node, ast.Call) and _called(node) in DOCSTRING_CALLS:
            for argument in node.args:
                text = _longest_text(argument)
                if len(text) > 100:
                    yield "", inspect.cleandoc(text)
            continue
        inner = [(_qualified(name, child), child) for child in ast.iter_child_nodes(node)]
        stack += reversed(inner)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _qualified(name: str, node: ast.AST) -> str:
    own = (
        getattr(node, "name", "")
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        else ""
    )
    return f"{name}.{own}".strip(".")


def _longest_text(node: ast.AST) -> str:
    """The longest text constant within an argument: the docstring in `add_docstr(f,
    r'...'.format(**common))`.
    """
    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return max(texts, key=len, default="")
