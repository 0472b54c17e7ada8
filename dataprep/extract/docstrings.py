"""Extract documents from the docstrings of this Python installation.

The texts are the language reference in `pydoc_data.topics` and the docstrings of the standard library and of
installed packages (numpy and torch have megabytes of them): natural English with natural duplicates, without
a download. Files are parsed, never imported, so no code of a package runs. One document is one reference
topic, or the docstrings of one module in source order, each under its dotted name.
"""

from __future__ import annotations

import ast
import importlib.metadata
import platform
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...core.config import UserError
from ...documents.reader import Document
from ..stage import Removed

# numpy and torch set the docstrings of their compiled functions by calls of these names.
DOCSTRING_CALLS = {"add_newdoc", "add_docstr", "_add_docstr", "add_newdoc_for_scalar_type", "add_docstr_all"}


def python_files(packages: tuple[str, ...]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(name, path) of the Python files of the standard library and of some distributions, in a fixed order.

    Also returns {distribution: version}, on which the text depends. Raises UserError for a distribution that
    is not installed.
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
    """Yields (file name, document) for the documents of one Python source file.

    A file without docstrings yields nothing. A file that does not parse (a template, code for another version
    of Python) yields Removed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarnings about other projects' invalid escapes
            tree = ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError, RecursionError) as error:
        yield name, Removed("not_python", {"why": str(error)})
        return
    if name == "pydoc_data/topics.py":
        for topic, text in sorted(_topics(tree).items()):
            yield name, Document(f"pydoc_data.topics/{topic}", text, {"title": topic})
        return
    module = name.removesuffix(".py").removesuffix(".pyi").replace("/", ".").removesuffix(".__init__")
    sections: list[str] = []
    number = size = 0
    for heading, text in docstrings(tree):
        if len(text) < min_chars:
            continue
        if sections and size + len(text) > max_chars:
            yield name, _module_document(module, number, sections)
            sections, size, number = [], 0, number + 1
        sections.append(f"{heading}\n\n{text}" if heading else text)
        size += len(sections[-1])
    if sections:
        yield name, _module_document(module, number, sections)


def _module_document(module: str, number: int, sections: list[str]) -> Document:
    return Document(f"{module}/{number}", "\n\n\n".join(sections), {"title": module})


def _topics(tree: ast.Module) -> dict[str, str]:
    """{topic: text} of pydoc_data/topics.py, whose only content is one dictionary."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            return topics
    return {}


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yields (dotted name, cleaned docstring) in source order; the module's own docstring has the name ""."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := cleaned(ast.get_docstring(node, clean=False) or ""):
                yield name, text
        elif isinstance(node, ast.Call) and _function_name(node) in DOCSTRING_CALLS:
            for argument in node.args:
                text = _longest_text(argument)
                if len(text) > 100:
                    yield "", cleaned(text)
            continue
        children = [(_dotted_name(name, child), child) for child in ast.iter_child_nodes(node)]
        stack += reversed(children)


def cleaned(text: str) -> str:
    """The same as inspect.cleandoc(text), which takes quadratic time in the blank lines at the beginning."""
    first, *lines = text.expandtabs().split("\n")
    margin = min((len(line) - len(stripped) for line in lines if (stripped := line.lstrip())), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in lines)]).strip("\n")


def _function_name(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _dotted_name(parent: str, node: ast.AST) -> str:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{parent}.{node.name}".strip(".")
    return parent


def _longest_text(node: ast.AST) -> str:
    """The longest string constant in an argument, as in `add_docstr(f, r'...'.format(**common))`."""
    texts = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return max(texts, key=len, default="")
