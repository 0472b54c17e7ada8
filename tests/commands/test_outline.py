"""The outline of a configuration class: its settings and rules without the libraries of its module.

tests/test_cli.py compares the settings of every command's outline with those of its class.
"""

import json
import socket
import subprocess
import sys

import pytest

from mt.commands import outline as outlines
from mt.core.config import UserError, build, settings

MODULE = '''
"""A command."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor, nn

from ..core.config import check, configuration, option
from ..core.executor import Workers
from .other import KINDS, Inner

BOUND = math.floor(7.5)
DTYPES = {"a": torch.float32}


def least() -> int:
    return BOUND - 6


@configuration(group="model")
class Base:
    size: int = option(3, f"at most {BOUND}")

    def __post_init__(self) -> None:
        check((least() <= self.size <= BOUND, f"size = {self.size} is out of bounds"))


@configuration()
class Config(Base, Workers):
    kind: KINDS | None = option(None, "a kind", role="input")
    inner: Inner = dataclasses.field(default_factory=Inner)
    names: tuple[str, ...] = option((), "names")

    def __post_init__(self) -> None:
        super().__post_init__()
        check((self.kind in (None, *DTYPES), "this rule needs torch"))

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.kind]


@configuration()
class Narrow:
    LIMITS = torch.zeros(3)
    size: int = option(1, "a size")

    @torch.no_grad()
    def least(self) -> int:
        return 1

    def __post_init__(self) -> None:
        if self.size == 1:
            self.least()
        if self.size == 2:
            check((self.size in self.LIMITS, "this rule needs torch"))
        check((6 // self.size > 1, "too large"))


def narrow(config: Narrow) -> dict:
    """Runs."""


class Model(nn.Module):
    """Needs torch."""


def command(config: Config, model: Model | None = None) -> dict:
    """Runs."""


def other(config: Model) -> dict:
    """Has no configuration."""
'''
OTHER = """
from typing import Literal
import numpy as np
from ..core.config import configuration, option
KINDS = Literal["a", "b"]
SIZES = np.zeros(3)

@configuration(group="inner")
class Inner:
    depth: int = option(1, "a depth")
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The outline of a function of MODULE."""
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "command.py").write_text(MODULE)
    (folder / "other.py").write_text(OTHER)
    monkeypatch.setattr(outlines, "ROOT", tmp_path)
    outlines._source.cache_clear()
    yield lambda function: outlines.outline("made.command", function)
    outlines._source.cache_clear()


def test_an_outline_has_the_settings_of_the_class_its_bases_and_its_groups(command):
    cls = command("command")
    found = {s.name: (s.default, s.role, s.help) for s in settings(cls)}
    assert found["size"] == (3, "setting", "at most 7")
    assert found["kind"] == (None, "input", "a kind")
    assert found["inner.depth"][0] == 1
    assert "workers" in found
    assert cls(names=("x",)).size == 3
    assert "torch" not in vars(sys.modules[outlines.__name__])


def test_an_outline_checks_types_and_the_rules_that_need_no_other_library(command):
    cls = command("command")
    with pytest.raises(UserError, match="size = 9 is out of bounds"):
        cls(size=9)
    with pytest.raises(UserError, match="kind = 'c': must be one of a, b"):
        build(cls, ("flags", {"kind": "c"}))
    assert build(cls, ("flags", {"kind": "b"})).kind == "b"  # the class refuses it


def test_only_rules_that_need_another_library_are_left_out(command):
    cls = command("narrow")
    assert [cls(size=size).size for size in (1, 2, 3)] == [1, 2, 3]
    with pytest.raises(UserError, match="too large"):
        cls(size=6)
    with pytest.raises(ZeroDivisionError):  # a mistake in a rule is not hidden
        cls(size=0)


def test_what_needs_another_library_has_no_outline(command):
    assert command("other") is None
    assert command("nothing") is None


def test_no_command_imports_a_library_for_its_outline():
    code = (
        "import sys\nfrom mt.commands import table\n"
        "print([p for p in table.COMMANDS if p not in table.RAW and table.outline_of(p) is None],"
        " sorted({'torch', 'numpy', 'pyarrow', 'rich', 'tokenizers', 'jinja2'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[] []\n"


def test_what_is_not_there_and_a_port_in_use_are_told_before_torch_is_imported(tmp_path):
    (tmp_path / "run.json").write_text('{"verb": "train"}')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with socket.create_server(("127.0.0.1", 0)) as free:
            closed = free.getsockname()[1]
        lines = {
            "train --lrr 1 --save x": "unknown flag --lrr",
            "train --data-path nodata --load nowhere --save x --train-iters 1": "nowhere: no such checkpoint;"
            " check the path\nnodata.idx: no such file",
            "train --data-path nodata --save x --train-iters 1": "nodata.idx: no such file",
            "train --data-path nodata --save x --train-iters 2": "no tokenizer is given; pass",
            "train --data-path a --save x --train-iters 1 --dry-run": "model.vocab_size is not known",
            "plan --world-size 1": "model.vocab_size is not known; give --vocab-size, or the tokenizer",
            f"generate --url http://127.0.0.1:{closed} --prompts a": "no answer of `mt serve`",
            "generate --url 127.0.0.1:1 --prompts a": "must begin with http://",
            "eval wikitext --load nowhere --valid-data no.txt": "nowhere: no such checkpoint; check the path"
            "\nno.txt: no such file",
            "eval mnli --load nowhere --valid-data no.tsv": "nowhere: no such checkpoint",
            f"generate --load {tmp_path} --prompts a": "has saved no checkpoint yet",
            "checkpoint inspect nowhere": "nowhere: no such checkpoint",
            f"serve --load {tmp_path.parent} --port {port}": f"port = {port}: cannot be listened on",
        }
        code = (
            "import json, sys\nfrom mt import cli\n"
            "def told(line):\n"
            "    try: cli.command(line.split())\n"
            "    except Exception as error: return f'{type(error).__name__} {error}'\n"
            "print(json.dumps([*map(told, sys.argv[1:]), sorted({'torch', 'numpy'} & set(sys.modules))]))"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code, *lines], capture_output=True, text=True, check=True, cwd=tmp_path
        )
    *told, imported = json.loads(ended.stdout)
    assert imported == []
    for line, expected, found in zip(lines, lines.values(), told, strict=True):
        assert found.startswith("UserError "), (line, found)
        assert expected in found, line
