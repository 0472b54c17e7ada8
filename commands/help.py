"""The help of mt: panels of commands, panels of settings by the groups of the configuration tree.

`mt train --help` shows the settings that most people set, where the table of commands names them; `--help
all`, `--help GROUP` and `--help WORD` show the others. The panels are drawn here, to the width of the
terminal: rich and rich-click would double the time of `mt --help`.
"""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Sequence

from ..core import terminal
from ..core.config import UserError
from . import table
from .output import FLAGS

if typing.TYPE_CHECKING:
    from .flags import ConfigCommand, Flag

Row = tuple[str, str, str]  # a mark, a name, its text
GROUP_TEXTS = {
    "data": "prepare text: from files to token ids",
    "retro": "retrieval databases",
    "eval": "evaluate models",
    "checkpoint": "inspect and convert checkpoints",
}
BOLD, DIM, RED, CYAN = "1", "2", "31", "36"  # parameters of SGR sequences
NAME_COLUMNS = 36  # a longer name has a line of its own


def overview(screen: terminal.Screen, group: str | None = None) -> str:
    """The list of commands, all or those of a group."""
    usage = "mt COMMAND" if group is None else f"mt {group} COMMAND"
    parts: list[str] = [_usage(f"{usage} [SETTINGS]", screen)]
    if group is None:
        parts.append(_plain("mt: from raw text to a trained, evaluated language model", screen))
        single = [("", " ".join(p), c.help) for p, c in table.COMMANDS.items() if len(p) == 1]
        single.append(("", "help", "show the help of a command: mt help train optimizer"))
        parts.append(_panel("commands", single, screen))
    for name in [g for g in GROUP_TEXTS if group in (None, g)]:
        rows = [("", " ".join(p), c.help) for p, c in table.COMMANDS.items() if p[0] == name and len(p) == 2]
        parts.append(_panel(f"{name}: {GROUP_TEXTS[name]}", rows, screen))
    if group is None:
        rows = [("", name, text) for name, text in (FLAGS | {"--version": "print the version"}).items()]
        parts.append(_panel("for every command", rows, screen))
    parts.append(
        _plain(
            "`mt COMMAND --help` shows the settings of a command; --config FILE.yaml reads them from a file.",
            screen,
        )
    )
    return "\n".join(parts)


def page(command: ConfigCommand, words: Sequence[str], screen: terminal.Screen) -> str:
    """The help of a command. words: nothing, `all`, a group of its settings, or words to search for.

    Raises UserError if no setting matches the words.
    """
    flags = flags_of(command)
    parts: list[str] = [_usage(_usage_line(command, flags), screen), _plain(command.help or "", screen)]
    common = table.COMMANDS[command.path].common
    note = ""
    topic = topics(command, words, screen)
    if topic:
        return "\n".join([*parts, *topic])
    if words and words[0] != "all":
        shown = search(command, words)
        note = f"{len(shown)} of {len(flags)} settings; `{command.words} --help all` shows all."
    elif common and not words:
        shown = [f for f in flags if f.is_required or f.setting is None or f.setting.path[-1] in common]
        groups = dict.fromkeys(f.setting.path[0] for f in flags if f.setting and len(f.setting.path) > 1)
        note = (
            f"{len(shown)} of {len(flags)} settings. `{command.words} --help all` shows all, `--help GROUP`"
            f" those of {', '.join(groups)}; `--help WORD` searches."
        )
    else:
        shown = flags
    if not words and (examples := table.COMMANDS[command.path].examples):
        parts.append(_panel("examples", [("", example, "") for example in examples], screen))
    parts += [_panel(title, rows, screen) for title, rows in panels(shown)]
    if note:
        parts.append(_plain(note, screen))
    return "\n".join(parts)


def topics(command: ConfigCommand, words: Sequence[str], screen: terminal.Screen) -> list[str]:
    """What a word names besides settings, as a preset or a rule: texts and panels; nothing for other words.

    The configuration class knows them: its `help_topics(word)` gives (text, title, rows) of each.
    """
    find = getattr(command.cls, "help_topics", None)
    parts: list[str] = []
    for text, title, rows in find(words[0]) if find is not None and len(words) == 1 else ():
        parts += [_plain(part, screen) for part in text.split("\n\n")]
        parts += [_panel(title, [("", *row) for row in rows], screen)] if rows else []
    return parts


def flags_of(command: ConfigCommand) -> list[Flag]:
    from .flags import Flag

    return [p for p in command.params if isinstance(p, Flag)]


def search(command: ConfigCommand, words: Sequence[str]) -> list[Flag]:
    """The flags of a group, or those that have all words in their names or texts."""
    flags = flags_of(command)
    lowered = [word.lower().lstrip("-").replace("_", "-") for word in words]
    in_group = [f for f in flags if f.setting and f.setting.path[:-1] == (lowered[0].replace("-", "_"),)]
    if len(words) == 1 and in_group:
        return in_group
    texts = {f: " ".join((f.flag.lower(), (f.help or "").lower(), *map(str.lower, f.choices))) for f in flags}
    found = [f for f, text in texts.items() if all(word in text.replace("_", "-") for word in lowered)]
    if not found:
        from . import hints

        name = "--" + "-".join(lowered)
        raise UserError(
            f"{command.words} --help {' '.join(words)}: no setting has that in its name or text"
            f"{hints.for_flag(name, [f.flag for f in flags])}; `{command.words} --help all` shows all of them"
        )
    return found


def panels(flags: Sequence[Flag]) -> list[tuple[str, list[Row]]]:
    """The panels of settings: (title, rows). Required settings come first."""
    grouped: dict[str, list[Flag]] = {"required": [], "settings": []}
    for flag in flags:
        grouped.setdefault(_panel_of(flag), []).append(flag)
    last = grouped.pop("how it runs", []), grouped.pop("for every command", [])
    grouped |= {"how it runs": last[0], "for every command": last[1]}
    return [
        (title, [("*" if f.is_required else "", _names(f), describe(f)) for f in found])
        for title, found in grouped.items()
        if found
    ]


def _panel_of(flag: Flag) -> str:
    if flag.setting is None:
        return "settings" if flag.flag in ("--preset", "--hf") else "for every command"
    if flag.is_required:
        return "required"
    if len(flag.setting.path) > 1:
        return ".".join(flag.setting.path[:-1])
    return "how it runs" if flag.setting.role == "runtime" else "settings"


def _names(flag: Flag) -> str:
    if flag.secondary_opts == ["--no-" + flag.flag.removeprefix("--")]:
        return f"--[no-]{flag.flag.removeprefix('--')}"
    if flag.num_values == 0:
        return flag.flag
    many = " ..." if flag.num_values is None else ""
    kind = f"CHOICE{many}" if flag.choices else flag.metavar
    return f"{flag.flag} {kind}"


def describe(flag: Flag) -> str:
    """The text of a flag: its help, its choices, its default."""
    text = flag.help or ""
    if flag.choices:
        text += f" [{' | '.join(flag.choices)}]"
    if flag.setting is not None and flag.setting.default not in (dataclasses.MISSING, None, ()):
        default = flag.setting.default
        if isinstance(default, bool):
            default = "on" if default else "off"
        elif isinstance(default, tuple):
            default = " ".join(map(str, default))
        text += f" (default {default})"
    return text + " (required)" if flag.is_required else text


def _usage_line(command: ConfigCommand, flags: Sequence[Flag]) -> str:
    from .flags import positional

    names = positional(command.cls)
    words = [name.upper() if _is_required(flags, name) else f"[{name.upper()}]" for name in names]
    required = [_names(f) for f in flags if f.is_required and f.setting and f.setting.path[-1] not in names]
    return " ".join([command.words, *words, *required, "[SETTINGS]"])


def _is_required(flags: Sequence[Flag], name: str) -> bool:
    return any(f.is_required for f in flags if f.setting and f.setting.path[-1] == name)


def _usage(text: str, screen: terminal.Screen) -> str:
    lines = textwrap.wrap(text, screen.columns - 7, break_on_hyphens=False)
    return _styled("Usage: ", BOLD, screen) + "\n       ".join(lines)


def _plain(text: str, screen: terminal.Screen) -> str:
    return textwrap.fill(text, screen.columns - 1, initial_indent=" ", subsequent_indent=" ")


def _panel(title: str, rows: Sequence[Row], screen: terminal.Screen) -> str:
    """A box with a title, and a line or more for each row: its name in a column, its text in the next one."""
    inner = screen.columns - 4
    names = [f"{mark} {name}" if mark else name for mark, name, _ in rows]
    width = min(max(map(len, names)), NAME_COLUMNS) + 2
    bar = _styled("│", DIM, screen)
    lines = []
    for (mark, _, text), name in zip(rows, names):
        if not text:
            lines += textwrap.wrap(name, inner, subsequent_indent="  ", break_on_hyphens=False)
            continue
        if len(name) > width - 2:  # a line of its own
            lines.append(_styled(name.ljust(inner), CYAN, screen))
            name = ""
        texts = textwrap.wrap(text, inner - width, break_on_hyphens=False)
        for left, right in zip([name, *[""] * len(texts)], texts):
            coloured = _styled(left.ljust(width), CYAN, screen)
            if mark and left:
                coloured = _styled(mark, RED, screen) + _styled(
                    left[len(mark) :].ljust(width - 1), CYAN, screen
                )
            lines.append(coloured + right.ljust(inner - width))
    dashes = "─" * (screen.columns - len(title) - 5)
    top = _styled("╭─ ", DIM, screen) + _styled(title, BOLD, screen) + _styled(f" {dashes}╮", DIM, screen)
    body = [f"{bar} {line.ljust(inner)} {bar}" for line in lines]
    return "\n".join([top, *body, _styled("╰" + "─" * (screen.columns - 2) + "╯", DIM, screen)])


def _styled(text: str, style: str, screen: terminal.Screen) -> str:
    return f"\033[{style}m{text}\033[0m" if screen.colours else text
