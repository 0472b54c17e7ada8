"""click commands made from configuration classes, and the reading of their command lines.

Each setting is a flag. click's own parser stops at the first mistake, and has no option with any number of
values, as Megatron-LM's `--data-path 0.7 a 0.3 b`. So `ConfigCommand` reads its command line itself, by
click's parameters: it collects all mistakes, and raises one UserError that has a line for each.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import click

from ..core.config import Setting, UserError, build, settings
from ..core.parsing import parse_yaml, read_yaml
from ..core.presets import presets
from . import hints, table
from .configure import from_file, layers_of
from .megatron_flags import Entry, for_other_commands
from .output import FLAGS

# -1, -.5, -1e-3: values, not flags
NEGATIVE = re.compile(r"-(\d|\.\d)[\d.eE+_-]*")
ReadFile = Callable[[str], dict[str, Any]]
SEARCH = "; `--help WORD` searches the settings"


class Flag(click.Option):
    """A flag: a setting's, or one of those that every command has.

    num_values: how many values follow it: 0 for --x/--no-x, 1, or None for a list, of any length.
    """

    def __init__(
        self,
        name: str,
        help: str,
        *,
        num_values: int | None = 1,
        metavar: str = "TEXT",
        choices: Sequence[str] = (),
        setting: Setting | None = None,
        off: str | None = None,
    ) -> None:
        kind = click.Choice(list(choices)) if choices else click.STRING
        if num_values == 0:
            super().__init__([f"{name}/{off}" if off else name], help=help, is_flag=True)
        else:
            super().__init__([name], help=help, metavar=metavar, type=kind, multiple=num_values is None)
        self.flag, self.num_values, self.choices, self.setting = name, num_values, tuple(choices), setting
        self.is_mapping = False

    @property
    def is_required(self) -> bool:
        return self.setting is not None and self.setting.default is dataclasses.MISSING


def flag_of(setting: Setting, others: frozenset[str]) -> Flag:
    """The flag of a setting. others: the flags of all settings of the command."""
    kind = setting.type
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is bool:
        off = "--no-" + setting.flag.removeprefix("--")
        if setting.flag.startswith("--no-"):
            off = "--" + setting.flag.removeprefix("--no-")
        return Flag(
            setting.flag, setting.help, num_values=0, setting=setting, off=None if off in others else off
        )
    if kind is dict or origin is dict:
        made = Flag(setting.flag, setting.help, metavar="KEY=VALUE,...", setting=setting)
        made.is_mapping = True
        return made
    many = origin is tuple
    leaf = arguments[0] if many else kind
    choices = [str(choice) for choice in typing.get_args(leaf)] if is_literal(leaf) else []
    one = "PATH" if leaf is str and setting.role in ("input", "output") else "TEXT"
    metavar = "|".join(choices) or {int: "N", float: "X"}.get(leaf, one)
    metavar = f"{metavar} ..." if many else metavar
    return Flag(
        setting.flag,
        setting.help,
        num_values=None if many else 1,
        metavar=metavar,
        choices=choices,
        setting=setting,
    )


def is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def positional(cls: type[Any]) -> tuple[str, ...]:
    """The settings that can be given without their flags, as in `mt run FILE`."""
    names = getattr(cls, "POSITIONAL", ())
    return (names,) if isinstance(names, str) else names


def parameters(cls: type[Any]) -> list[click.Parameter]:
    """The parameters of a command with this configuration class."""
    found: list[click.Parameter] = []
    if names := positional(cls):
        found.append(
            click.Argument(["words"], nargs=-1, required=False, metavar=" ".join(map(str.upper, names)))
        )
    found.append(
        Flag(
            "--config",
            "YAML files of settings; a later file and flags override them",
            num_values=None,
            metavar="FILE ...",
        )
    )
    if getattr(cls, "PRESETS", False):
        found.append(
            Flag("--preset", "named settings to start from", metavar="NAME", choices=list(presets(cls)))
        )
    if hasattr(cls, "read_hf"):
        found.append(
            Flag("--hf", "Hugging Face directory whose config.json gives the model's settings", metavar="DIR")
        )
    leaves = list(settings(cls))
    taken = frozenset(s.flag for s in leaves)
    found += [flag_of(setting, taken) for setting in leaves]
    found += [Flag(name, text, num_values=0) for name, text in FLAGS.items()]
    return found


@dataclasses.dataclass
class Given:
    """What a command line gives. help: the words after --help, None without --help."""

    values: dict[str, Any]  # of each flag, by its name
    words: list[str]
    mistakes: list[str]
    help: list[str] | None = None


def read(found: Sequence[click.Parameter], arguments: Sequence[str]) -> Given:
    """Reads a command line by the parameters of its command. The last of two equal flags counts."""
    named = {name: p for p in found if isinstance(p, Flag) for name in (*p.opts, *p.secondary_opts)}
    given = Given({}, [], [])
    notes: set[str] = set()
    loose: list[str] = []  # words after an unknown flag: perhaps its values
    queue = list(arguments)

    def next_values() -> list[str]:
        taken = []
        while queue and not is_flag(queue[0], named):
            taken.append(queue.pop(0))
        return taken

    while queue:
        word = queue.pop(0)
        if word == "--":
            given.words += queue
            break
        if not is_flag(word, named):
            given.words.append(word)
            continue
        name, equals, value = word.partition("=")
        if word in ("--help", "-h"):
            given.help = next_values()
            continue
        entry = for_other_commands(name) if name not in named else None
        if entry is not None and (entry.cannot or entry.no_effect):
            if entry.takes != 0:
                next_values()
            if entry.cannot:
                given.mistakes.append(f"{name}: {entry.cannot}")
            elif (
                entry.no_effect not in notes and os.environ.get("RANK", "0") == "0"
            ):  # of torchrun's processes
                print(f"mt: {name} is accepted and not needed: {entry.no_effect}", file=sys.stderr)
            notes.add(entry.no_effect or "")
            continue
        if entry is not None and (words := _replacement(entry, equals + value, named)):
            queue[:0] = words
            continue
        if (flag := named.get(name)) is None:
            given.mistakes.append(f"unknown flag {name}{hints.for_flag(name, named) or SEARCH}")
            loose += next_values()
            continue
        try:
            given.values[flag.flag] = _value(flag, name, value if equals else None, next_values, queue, named)
        except ValueError as error:
            given.mistakes.append(f"{name}{error}")
    if not given.words and loose and any(isinstance(p, click.Argument) for p in found):
        given.words = loose[-1:]  # `mt run --dryrun my.yaml`: nobody says that the file is missing
    return given


def _replacement(entry: Entry, attached: str, named: dict[str, Flag]) -> list[str]:
    """The flags of the command that a flag of Megatron-LM stands for; none if the command does not have all.

    attached: `=` and the value, where the value is not the next word.
    """
    words: list[str] = []
    for name, value in entry.settings.items():
        flag = "--" + name.replace("_", "-")
        if value is False and named.get(flag):
            words += named[flag].secondary_opts[:1]
        elif isinstance(value, dict):
            words.append(f"{flag}={','.join(f'{key}={item}' for key, item in value.items())}")
        else:
            words.append(flag if value is True else f"{flag}={value}")
    if entry.setting is not None:
        value = attached.removeprefix("=")
        words.append(f"--{entry.setting.replace('_', '-')}{attached and '='}{entry.values.get(value, value)}")
    return words if all(word.partition("=")[0] in named for word in words) else []


def is_flag(word: str, named: dict[str, Flag]) -> bool:
    """Whether a word of a command line is a flag, not a value; as argparse decides."""
    if not word.startswith("-") or word == "-":
        return False
    if word.partition("=")[0] in named:
        return True
    return not (NEGATIVE.fullmatch(word) or " " in word)


def _value(
    flag: Flag,
    name: str,
    attached: str | None,
    next_values: Callable[[], list[str]],
    queue: list[str],
    named: dict[str, Flag],
) -> Any:
    """The value of a flag; raises ValueError with the rest of the message. attached: what follows `=`."""
    if flag.num_values == 0:
        if attached is None:
            return name in flag.opts
        if name in flag.opts and flag.setting is not None:
            return attached  # `--bf16=true`
        raise ValueError(f"={attached}: this flag takes no value; remove ={attached}")
    if flag.num_values is None:
        return [attached] if attached is not None else next_values()
    if attached is None:
        if not queue or is_flag(queue[0], named):
            shown = f"; a value that begins with - is written {name}=VALUE" if queue else ""
            raise ValueError(f" needs a value ({flag.metavar}){shown}")
        attached = queue.pop(0)
    if not flag.is_mapping:
        return attached
    pairs = [pair.partition("=") for pair in attached.split(",")]
    if not all(key.strip() and equals for key, equals, _ in pairs):
        raise ValueError(f": {attached} must be key=value pairs, separated by commas")
    try:
        return {key.strip(): parse_yaml(text) for key, _, text in pairs}
    except ValueError as error:
        raise ValueError(f": {attached}: not valid YAML: {error}") from None


class ConfigCommand(click.Command):
    """A command whose parameters are the settings of a configuration class.

    cls: the class, or with `load` its outline, which tells the settings, the help and nearly all mistakes;
    `load` gives the class, after seconds.

    callback: takes `config`, and `layers`, the layers of settings that it was made from.

    help_page: prints the help: (command, words after --help).
    """

    def __init__(
        self,
        path: table.Path,
        cls: type[Any],
        callback: Callable[..., Any],
        help_page: Callable[[ConfigCommand, list[str]], None],
        load: Callable[[], type[Any]] | None = None,
    ) -> None:
        self.path, self.cls, self.help_page, self.load = path, cls, help_page, load
        super().__init__(
            path[-1],
            params=parameters(cls),
            callback=callback,
            help=table.COMMANDS[path].help,
            add_help_option=False,
        )

    @property
    def words(self) -> str:
        """What calls the command: `mt data clean`."""
        return " ".join(("mt", *self.path))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the configuration and its layers into ctx.params; --help prints the help and exits."""
        given = read(self.params, args)
        if given.help is not None:
            self.help_page(self, given.help)
            ctx.exit()
        read_file = functools.cache(functools.partial(read_yaml, may_be_pipe=True))  # a pipe only once
        if self.load is not None:
            self._tell_mistakes(given, read_file)
            self.cls = self.load()
        ctx.params["config"], ctx.params["layers"] = self.configuration(given, read_file)
        return []

    def _tell_mistakes(self, given: Given, read_file: ReadFile) -> None:
        """Raises UserError for the mistakes that the outline finds, and for inputs that are not there."""
        from .outline import Missing

        with contextlib.suppress(Missing):  # a check needs another library: the class finds the mistake
            config, _ = self.configuration(given, read_file)
            check_inputs(config)

    def configuration(
        self, given: Given, read_file: ReadFile
    ) -> tuple[Any, list[tuple[str, dict[str, Any]]]]:
        """(configuration, its layers of settings); raises UserError with all mistakes."""
        values = dict(given.values)
        files = values.pop("--config", [])
        preset, hf = values.pop("--preset", None), values.pop("--hf", None)
        mistakes = [f"{self.words}: {mistake}" for mistake in given.mistakes]
        flags = {s.name: values[s.flag] for s in settings(self.cls) if s.flag in values}
        flags |= self._positional(given.words, mistakes)
        try:
            layers = [(f, from_file(self.cls, copy.deepcopy(read_file(f)), f)) for f in files]
            layers = layers_of(self.cls, [*layers, ("command line", flags)], preset, hf)
            config = build(self.cls, *layers, hint=hints.for_setting)
        except UserError as error:
            raise UserError("\n".join([*mistakes, str(error)])) from error
        if mistakes:
            raise UserError("\n".join(mistakes))
        return config, layers

    def _positional(self, words: list[str], mistakes: list[str]) -> dict[str, Any]:
        """The settings that are given without flags, by their names."""
        names = positional(self.cls)
        leaves = {s.path[-1]: s for s in settings(self.cls)}
        if words and names and typing.get_origin(leaves[names[0]].type) is tuple:
            return {leaves[names[0]].name: words}
        if extra := words[len(names) :]:
            takes = f"it takes {'one ' if len(names) == 1 else ''}{' '.join(map(str.upper, names))}"
            takes = takes if names else "settings are given as flags"
            mistakes.append(f"{self.words}: unexpected argument {extra[0]}; {takes}")
        return {leaves[name].name: word for name, word in zip(names, words)}


def check_inputs(config: Any) -> None:
    """Raises UserError for an input of a configuration that is not there, if its class looks for them."""
    if hasattr(config, "check_inputs"):
        config.check_inputs()


class RawCommand(click.Command):
    """A command that reads its arguments itself: `mt launch`, whose arguments include another command."""

    def __init__(self, path: table.Path, callback: Callable[..., Any]) -> None:
        super().__init__(path[-1], callback=callback, help=table.COMMANDS[path].help, add_help_option=False)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["arguments"] = args
        return []
