"""Writes docs/api.md, the reference of the Python API, from the docstrings and signatures of `mt`.

    python .ci/api.py          # tests/test_api.py compares the page with the code

What the page says about a name comes from its docstring, so the place to correct it is there.
"""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
if ROOT.name == "mt":  # as the package mt of this checkout, not of another one that is installed
    sys.path.insert(0, str(ROOT.parent))

# ruff: noqa: E501 - lines of Markdown
HEAD = """\
# Python

<!-- Written by `python .ci/api.py` from docstrings. Correct those. -->

You can do from Python what the commands do, in a script or in a notebook:

```python
import mt

kept = mt.dedup(mt.clean(mt.read_documents("my/*.jsonl"), preset="prose"))
mt.write_documents(kept, "out/clean.jsonl")
mt.run(
    "data tokenize", input="out/clean.jsonl", output_prefix="out/tokens", tokenizer_type="ByteLevelTokenizer"
)

model = mt.load("out/model")  # the output of `mt train`, or the directory of a Hugging Face model
model.generate("The first", max_new_tokens=20)
```

[examples/quickstart.ipynb](../examples/quickstart.ipynb) goes from text to a trained model. `import mt` takes
milliseconds: each name is imported when it is first used. The annotations are for type checkers too (`py.typed`).

A mistake raises `mt.UserError`, whose message is the line that the command would print. The functions print nothing: what a
command would note on standard error is a Python warning. Functions with workers start processes, and these import the running
script. So a script must call them under `if __name__ == "__main__":`. A notebook need not.

Functions that take documents accept `mt.Document` objects, texts, and mappings with the key `text`, such as rows of a Hugging
Face dataset. The `id` of a mapping is the id of the document, and its other keys are fields of the document.

"""
SECTIONS = {
    "Commands": ("run", "UserError", "Failure"),
    "Models": ("load", "LoadedModel", "LogLikelihood"),
    "Documents": (
        "read_documents",
        "write_documents",
        "clean",
        "dedup",
        "KeptDocuments",
        "RemovedDocument",
        "Document",
    ),
    "Tokens": ("open_dataset", "TokenSequences", "gpt_dataset", "TokenSamples"),
}
WIDTH = 100


def page() -> str:
    mt = importlib.import_module("mt")
    assert sorted(mt.__all__) == sorted(name for names in SECTIONS.values() for name in names)
    text = HEAD
    for title, names in SECTIONS.items():
        text += f"## {title}\n\n"
        for name in names:
            text += _entry(f"mt.{name}", getattr(mt, name), "###")
    return text.rstrip() + "\n"


def _entry(name: str, thing: object, level: str) -> str:
    text = f"{level} {name}\n\n"
    if inspect.isfunction(thing):
        text += f"```python\n{_signature(name, thing)}\n```\n\n"
    text += _markdown(inspect.getdoc(thing) or "")
    for method, function in vars(thing).items() if inspect.isclass(thing) else ():
        if inspect.isfunction(function) and not method.startswith("_") and function.__doc__:
            text += _entry(f"{name}.{method}", function, level + "#")
    return text


def _signature(name: str, function: object) -> str:
    """The signature as it stands in the source; a long one has an argument a line."""
    (made,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    given = made.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    arguments = [_argument(*pair) for pair in zip(positional, defaults) if pair[0].arg != "self"]
    if given.posonlyargs:
        arguments.insert(len(given.posonlyargs), "/")
    if given.kwonlyargs:
        arguments.append("*")
    arguments += map(_argument, given.kwonlyargs, given.kw_defaults)
    if given.kwarg:
        arguments.append(f"**{_argument(given.kwarg)}")
    result = ast.unparse(made.returns)
    line = f"{name}({', '.join(arguments)}) -> {result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f") -> {result}"


def _argument(argument: ast.arg, default: ast.expr | None = None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


def _markdown(docstring: str) -> str:
    """A docstring as Markdown: the arguments as a list, indented lines as code."""
    text = ""
    for part in docstring.split("\n\n"):
        if part.startswith("Args:\n"):
            for entry in re.split(r"\n(?=\S)", textwrap.dedent(part.removeprefix("Args:\n"))):
                names, _, meaning = " ".join(entry.split()).partition(": ")
                text += f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {meaning}\n"
            text += "\n"
        elif part.startswith("    "):
            text += f"```text\n{textwrap.dedent(part)}\n```\n\n"
        else:
            text += "\n".join(textwrap.wrap(" ".join(part.split()), 124, break_long_words=False)) + "\n\n"
    return text


if __name__ == "__main__":
    (ROOT / "docs/api.md").write_text(page(), encoding="utf-8")
