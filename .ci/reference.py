"""The reference pages of the site, as Markdown, made from the code that they describe.

A page for each command with all of its settings; the rules of cleaning; presets; model families; tokenizers;
tasks. mkdocs_hooks.py calls it. What a page says comes from the configuration classes and docstrings, so the
place to correct it is there.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
if ROOT.name == "mt":  # as the package mt of this checkout, not of another one that is installed
    sys.path.insert(0, str(ROOT.parent))

from mt.commands.megatron_flags import Entry, entries, scripts  # noqa: E402
from mt.commands.table import COMMANDS, RAW, load  # noqa: E402
from mt.core.config import Setting, settings  # noqa: E402
from mt.core.parsing import read_yaml  # noqa: E402
from mt.core.presets import presets  # noqa: E402
from mt.dataprep.filters.clean import CleanConfig  # noqa: E402
from mt.dataprep.filters.rules import BY_LANGUAGE, EDITS, RULES  # noqa: E402
from mt.tokenizer.tokenizer import READS  # noqa: E402

FOLDER = "reference"
ROLES = {
    "setting": "may change the result; it is part of the run's key",
    "input": "a path that is read; its content is part of the key",
    "output": "where the result goes",
    "runtime": "cannot change a byte of the result",
}


def navigation() -> list[dict[str, Any]]:
    """The entries of the navigation, with the pages under the folder of the reference."""
    groups: dict[str, list[dict[str, str]]] = {}
    for path in COMMANDS:
        groups.setdefault(path[0] if len(path) == 2 else "", []).append(
            {f"mt {' '.join(path)}": _place(path)}
        )
    commands: list[Any] = [f"{FOLDER}/commands.md", *groups.pop("")]
    commands += [{f"mt {group}": entries} for group, entries in groups.items()]
    rest = {
        "Rules of cleaning": "rules",
        "Presets": "presets",
        "Model families": "families",
        "Tokenizers": "tokenizers",
        "Tasks": "tasks",
        "Flags of Megatron-LM": "megatron_flags",
    }
    return [{"Commands": commands}, *({title: f"{FOLDER}/{name}.md"} for title, name in rest.items())]


def pages() -> dict[str, str]:
    """Every page: its place in the site, and its Markdown."""
    made = {
        "commands": commands_page(),
        "rules": rules_page(),
        "presets": presets_page(),
        "families": families_page(),
        "tokenizers": tokenizers_page(),
        "tasks": tasks_page(),
        "megatron_flags": megatron_page(),
    }
    return {f"{FOLDER}/{name}.md": text for name, text in made.items()} | {
        _place(path): command_page(path) for path in COMMANDS
    }


def _place(path: tuple[str, ...]) -> str:
    return f"{FOLDER}/mt_{'_'.join(path).replace('-', '_')}.md"


def commands_page() -> str:
    rows = [
        [f"[`mt {' '.join(path)}`]({Path(_place(path)).name})", _prose(COMMANDS[path].help)]
        for path in COMMANDS
    ]
    return (
        "# Commands\n\nEvery command takes its settings as flags, or from YAML files by `--config`. The page"
        " of a command lists all of them. `mt COMMAND --help` shows the common ones, `--help all` all"
        " of them, and `--help WORD` searches.\n\n"
        + _table(["command", "what it does"], rows)
        + "\n\n## Roles\n\nThe *role* of a setting says what a change of it means for finished work:\n\n"
        + _table(["role", "meaning"], ([f"`{role}`", meaning] for role, meaning in ROLES.items()))
        + "\n\nA run whose key is that of finished work is up to date and does nothing.\n"
    )


def command_page(path: tuple[str, ...]) -> str:
    """A command: what it does, and its settings by the groups of its configuration."""
    name = f"mt {' '.join(path)}"
    head = f"# {name}\n\n{_sentence(COMMANDS[path].help)}\n\n"
    if path in RAW:
        return head + _docstring(importlib.import_module(f"mt.{COMMANDS[path].module}"))
    _, cls = load(path)
    words = getattr(cls, "POSITIONAL", ())
    words = (words,) if isinstance(words, str) else words
    known = list(settings(cls))
    required = [s.flag + " ..." for s in known if s.default is dataclasses.MISSING and s.name not in words]
    lines = [" ".join([name, *map(str.upper, words), *required, "[SETTINGS]"]), *COMMANDS[path].examples]
    text = head + "```text\n" + "\n".join(lines) + "\n```\n\n"
    if words:
        flags = " and ".join(f"`--{word.replace('_', '-')}`" for word in words)
        text += f"{', '.join(f'`{word.upper()}`' for word in words)} may be given without {flags}.\n\n"
    text += "`--config FILE...` reads settings from YAML files, `--json` prints the summary as JSON."
    if getattr(cls, "PRESETS", False):
        text += f" `--preset NAME` starts from [named settings](presets.md): {_codes(presets(cls))}."
    if hasattr(cls, "read_hf"):
        text += " `--hf DIR` takes the model's settings from the `config.json` of a Hugging Face directory."
    text += "\n\n"
    for group, members in itertools.groupby(known, key=lambda setting: setting.path[:-1]):
        if group:
            text += f"## {'.'.join(group)}\n\n"
        text += _settings_list(list(members))
    return text


def _settings_list(members: list[Setting]) -> str:
    """A definition list: a table of these would be too wide for its texts."""
    text = ""
    for setting in members:
        kind, flag = _type(setting.type), setting.flag
        if setting.default is dataclasses.MISSING:
            default = "**required**"
        elif setting.name == "workers":
            default = "default: the processors of the machine"
        elif (
            setting.default in (None, ()) and "default" in setting.help
        ):  # it says what a value of None becomes
            default = "not required"
        else:
            default = f"default: {_default(setting.default)}"
        off = f"--{flag[5:]}" if flag.startswith("--no-") else f"--no-{flag[2:]}"
        switch = f", `{off}`" if kind == "true or false" else f" {kind}"
        text += (
            f"`{flag}`{{ #{flag[2:]} }}{switch}\n"
            f":   {_prose(setting.help)}\n\n"
            f"    {default}; YAML key: `{setting.name}`; role: {setting.role}\n    {{ .facts }}\n\n"
        )
    return text


def _type(kind: Any) -> str:
    """A type for readers who need not know Python."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _type(next(k for k in arguments if k is not type(None)))
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        return f"list: {_type(arguments[0])}"
    if kind is dict or origin is dict:
        return "key=value,..."
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}[kind]


def _default(value: Any) -> str:
    if value is None or value == () or value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return " ".join(f"`{item}`" for item in value)
    return f"`{value:,}`" if isinstance(value, int) else f"`{value}`"


def rules_page() -> str:
    text = (
        "# Rules of cleaning\n\nThe items of `--rules` of [`mt data clean`](mt_data_clean.md). A rule drops a"
        " document, an edit changes its text. An item is a name with the parameters that differ from the"
        " defaults, as in `gopher_quality min_words=20`. [Cleaning](../cleaning.md) explains them, and how to"
        " write your own.\n\n"
    )
    for title, functions in (("Rules", RULES), ("Edits", EDITS)):
        text += f"## {title}\n\n"
        for name, function in functions.items():
            text += f"### {name}\n\n{_docstring(function)}\n\n"
            if name in BY_LANGUAGE:
                text += "In other languages than English the thresholds are those of the language.\n\n"
            parameters = [
                [f"`{p.name}`", _parameter_type(function, p.name), _default(p.default)]
                for p in inspect.signature(function).parameters.values()
                if p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.name != "tokenizer"
            ]
            if parameters:
                text += _table(["parameter", "type", "default"], parameters) + "\n\n"
    return text


def _parameter_type(function: Callable[..., Any], name: str) -> str:
    return _type(typing.get_type_hints(function, vars(sys.modules[function.__module__]))[name])


def presets_page() -> str:
    """The presets of `mt data clean` and of `mt train`."""
    from mt.core.config import build
    from mt.train.config import TrainConfig
    from mt.train.model.config import resolve
    from mt.train.model.family import count_parameters

    # what a run needs besides a preset
    run = {"data": {"data_path": ["x"]}, "train": {"train_iters": 10_000}, "checkpoint": {"save": "x"}}
    rows = []
    for name, file in presets(TrainConfig).items():
        config = build(TrainConfig, (name, read_yaml(file)), ("reference", run))
        model = dataclasses.replace(config.model, make_vocab_size_divisible_by=1)
        few, many = (
            count_parameters(resolve(model, vocab_size=size, seq_length=config.data.seq_length))
            for size in (1000, 2000)
        )
        per_token = (many - few) // 1000
        rows.append(
            [
                f"[`{name}`](#{re.sub(r'[^a-z0-9_-]', '', name)})",
                f"`{model.family}`",
                f"{(few - 1000 * per_token) / 1e6:,.0f} million",
                f"{per_token:,}",
                f"{model.hidden_size:,}",
                f"{config.data.seq_length:,}",
            ]
        )
    columns = [
        "preset", "family", "parameters besides the vocabulary", "for each token of the vocabulary",
        "`--hidden-size`", "`--seq-length`",
    ]  # fmt: skip
    head = "# Presets\n\nA preset is a file of settings. Files of `--config` and flags come after it.\n\n"
    cleaning = "".join(_preset(name, file) for name, file in presets(CleanConfig).items())
    training = "".join(_preset(name, file) for name, file in presets(TrainConfig).items())
    return (
        f"{head}## Of mt data clean\n\n{cleaning}"
        f"## Of mt train and mt plan\n\n{_table(columns, rows)}\n\n{training}"
    )


def _preset(name: str, file: Path) -> str:
    return f"### {name}\n\n```yaml\n{file.read_text(encoding='utf-8').strip()}\n```\n\n"


def families_page() -> str:
    from mt.train.model.config import FAMILY_SETTINGS
    from mt.train.model.family import FAMILIES

    rows = [
        [
            f"`{name}`",
            {"decoder": "decoder", "encoder-decoder": "encoder and decoder", None: "encoder"}[family.text],
            _codes(FAMILY_SETTINGS[name].positions),
            _codes(family.huggingface) or "none",
            "yes" if family.megatron else "no",
            "yes" if family.stages else "no",
            _codes(sorted(FAMILY_SETTINGS[name].takes)),
        ]
        for name, family in FAMILIES.items()
    ]
    columns = [
        "`--family`", "kind", "positions", "`model_type` of Hugging Face", "Megatron-LM's checkpoints",
        "pipeline parallel", "settings that not all families take",
    ]  # fmt: skip
    return (
        "# Model families\n\n[Models](../models.md) describes them, and says which settings make which"
        " published model.\n\n" + _table(columns, rows) + "\n"
    )


def tokenizers_page() -> str:
    rows = [[f"`{name}`", _flags(needs), _flags(may)] for name, (needs, may) in READS.items()]
    return (
        "# Tokenizers\n\nThe values of `--tokenizer-type`, and the settings that each one reads.\n\n"
        + _table(["`--tokenizer-type`", "needs", "may have"], rows)
    )


def tasks_page() -> str:
    text = (
        "# Tasks\n\n`mt eval TASK` evaluates a checkpoint. [Evaluation](../evaluation.md) defines the"
        " scores.\n\n"
    )
    for path, command in COMMANDS.items():
        if path[0] == "eval":
            text += (
                f"## {path[1]}\n\n{_sentence(command.help)} [All settings]({Path(_place(path)).name}).\n\n"
            )
            text += _docstring(importlib.import_module(f"mt.{command.module}"), without_first=True) + "\n\n"
    return text


def megatron_page() -> str:
    programs = [
        [f"`{name}`", _prose(script.cannot) if script.cannot else f"`mt {' '.join(script.command)}`"]
        for name, script in scripts().items()
    ]
    rows = [[f"`{flag}`", *_megatron_entry(entry)] for flag, entry in sorted(entries().items())]
    return (
        "# Flags of Megatron-LM\n\nWhat `mt megatron SCRIPT ARGS...` makes of each flag of Megatron-LM's"
        " scripts. [Coming from Megatron-LM](../megatron.md) compares defaults and files.\n\n"
        + _table(["script", "here"], programs)
        + "\n\n"
        + _table(["flag there", "", "here"], rows)
        + "\n"
    )


def _megatron_entry(entry: Entry) -> list[str]:
    """[kind, text] of a flag's row."""
    if entry.no_effect is not None:
        return ["no effect", _prose(entry.no_effect)]
    if entry.cannot is not None:
        values = f" (unless it is {', '.join(entry.unless)})" if entry.unless else ""
        return ["cannot be", _prose(entry.cannot) + values]
    if entry.computed is not None:
        return ["translated", _prose(entry.computed)]
    names = [f"`{entry.setting}`"] if entry.setting else []
    names += [f"`{name}: {str(value).lower()}`" for name, value in entry.settings.items()]
    values = [f"{there} is {here}" for there, here in entry.values.items() if there != here]
    values += [f"not {value}: {why}" for value, why in entry.refused.items()]
    return ["translated", ", ".join(names) + (f" ({_prose('; '.join(values))})" if values else "")]


def _docstring(thing: Any, without_first: bool = False) -> str:
    """A docstring as Markdown: indented lines are code."""
    text = inspect.getdoc(thing) or ""
    first, _, rest = text.partition("\n\n")
    parts = [] if without_first else [_sentence(" ".join(first.split()))]
    for part in filter(None, rest.split("\n\n")):
        if part.startswith("    "):
            parts.append(f"```text\n{inspect.cleandoc(part)}\n```")
        else:
            parts.append(_prose(part))
    return "\n\n".join(parts)


def _sentence(text: str) -> str:
    text = _prose(text)
    first = text.split(" ", 1)[0]
    return (text[:1].upper() + text[1:] if first.islower() else text) + (
        "" if text.endswith((".", "`")) else "."
    )


def _prose(text: str) -> str:
    """Plain text for Markdown: what is between backquotes is code, all else stands as it is."""
    pieces = text.split("`")
    for index in range(0, len(pieces), 2):
        pieces[index] = re.sub(r"([*_<>\[\]{}\\])", r"\\\1", pieces[index])
    return "`".join(pieces)


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _flags(names: Iterable[str]) -> str:
    return _codes("--" + name.replace("_", "-") for name in names)


def _table(columns: list[str], rows: Iterable[list[str]]) -> str:
    def lines() -> Iterator[str]:
        for row in [columns, ["---"] * len(columns), *rows]:
            yield "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + " |"

    return "\n".join(lines())


if __name__ == "__main__":  # for a look: python .ci/reference.py FOLDER
    for place, text in pages().items():
        target = Path(sys.argv[1]) / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
