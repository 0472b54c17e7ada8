"""The Python API: each name is imported when it is used, typed, and described in docs/api.md."""

import ast
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import mt

ROOT = Path(__file__).parents[1]


def test_importing_mt_imports_neither_torch_nor_numpy_nor_a_module_of_mt():
    heavy = ("torch", "numpy", "pyarrow", "numba", "yaml")
    code = (
        "import sys, mt; dir(mt); mt.__version__\n"
        f"print([name for name in sys.modules if name in {heavy} or name.startswith('mt.')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_every_name_is_that_of_its_module_and_type_checkers_see_the_same():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (checked,) = (n for n in tree.body if isinstance(n, ast.If))
    imports = [node for node in checked.body if node.level]  # not those of the standard library
    seen = {node.module: sorted(alias.name for alias in node.names) for node in imports}
    assert seen == {module: sorted(names) for module, names in mt._MODULES.items()}
    assert sorted(mt.__all__) == sorted(mt._MODULE_OF)
    assert set(dir(mt)) >= set(mt.__all__)
    for name in mt.__all__:
        assert getattr(mt, name) is getattr(importlib.import_module(f"mt.{mt._MODULE_OF[name]}"), name)
        assert getattr(mt, name).__doc__
    with pytest.raises(AttributeError, match="module 'mt' has no attribute 'lode'"):
        _ = mt.lode


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import mt\n"
        "try:\n    mt.load\n"
        "except mt.UserError as error:\n    print(error)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert printed == "mt.load needs the package torch; install it with: pip install 'mt-lm[train]'\n"


def test_the_page_of_the_api_is_that_of_the_docstrings():
    page = runpy.run_path(str(ROOT / ".ci/api.py"))["page"]()
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == page, "run: python .ci/api.py"
    for name in mt.__all__:
        assert f"\n### mt.{name}\n" in page


# Runs the code cells of a notebook as Jupyter does: in one namespace, and shows the last value of a cell.
RUN_CELLS = """
import ast, json, pathlib, sys

names = {}
for cell in json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            print("Out:", repr(eval(compile(ast.Expression(last.value), "cell", "eval"), names)))
"""


@pytest.mark.slow  # half a minute: a model is trained
def test_the_notebook_runs_in_any_folder_and_shows_what_it_made(tmp_path):
    notebook = ROOT / "examples/quickstart.ipynb"
    assert all(not cell.get("outputs") for cell in json.loads(notebook.read_text())["cells"])
    command = [sys.executable, "-W", "error", "-c", RUN_CELLS, str(notebook)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "Out: <gpt of " in ended.stdout
    loss = next(float(line[5:]) for line in ended.stdout.splitlines() if line[5:6] in "3456")
    assert loss < 7
