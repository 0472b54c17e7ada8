"""`mt completion bash|zsh|fish` prints a script that completes commands, flags, choices, presets and files.

The script holds all names, so that a shell completes without starting Python. It is written once, and again
after an update of mt:

    mt completion bash > ~/.local/share/bash-completion/completions/mt
    mt completion zsh > ~/.zsh/completions/_mt          # a folder of $fpath, before compinit
    mt completion fish > ~/.config/fish/completions/mt.fish
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any, Literal

from ..core.config import UserError, configuration, option
from . import flags, table
from .output import FLAGS


@configuration()
class CompletionConfig:
    """The settings of `mt completion`."""

    POSITIONAL = "shell"

    shell: Literal["bash", "zsh", "fish"] = option(help="the shell that reads the script")


@dataclasses.dataclass(frozen=True)
class Completed:
    """What can be typed after a command: its words, or its flags. values: of each flag that takes one."""

    words: dict[str, str]  # a word of a command line and its text
    values: dict[str, Sequence[str]]  # a flag and its choices, none: a file or any text
    lists: frozenset[str] = frozenset()  # flags that take any number of values


def completion(config: CompletionConfig) -> dict[str, Any]:
    """Returns the script of a shell as `text`; without the flags of commands whose packages are missing."""
    writers = {"bash": bash, "zsh": zsh, "fish": fish}
    return {"text": writers[config.shell](tables())}


def tables() -> dict[str, Completed]:
    """What can be typed after `mt`, each group and each command, by its words: "", "data", "data clean"."""
    found = {"": Completed({}, {})}
    for path, command in table.COMMANDS.items():
        for length in range(len(path)):
            before = found.setdefault(" ".join(path[:length]), Completed({}, {}))
            last = length == len(path) - 1
            before.words.setdefault(path[length], command.help if last else f"commands of mt {path[length]}")
        found[" ".join(path)] = _of_command(path)
    found[""].words.update(FLAGS | {"--version": "print the version"})
    found[""].words.setdefault("help", "show the help of a command")
    return found


def _of_command(path: table.Path) -> Completed:
    words: dict[str, str] = {}
    values: dict[str, Sequence[str]] = {}
    lists: set[str] = set()
    try:
        cls = (table.outline_of(path) or table.load(path)[1]) if path not in table.RAW else None
    except UserError:  # a package is missing
        cls = None
    for flag in flags.parameters(cls) if cls else []:
        if not isinstance(flag, flags.Flag):
            continue
        for name in (*flag.opts, *flag.secondary_opts):
            words[name] = (flag.help or "").replace("\n", " ")
        if flag.num_values != 0:
            values[flag.flag] = flag.choices
        if flag.num_values is None:
            lists.add(flag.flag)
    return Completed(words | {"--help": "show the settings"}, values, frozenset(lists))


# What bash and zsh share: `path` are the words of the command, `flag` is the flag whose value is typed.
SCAN = """\
    local path= flag= word first=1
    for word in "${before[@]}"; do
        if [[ $first == 1 ]]; then first=0; continue; fi
        case $word in
            -*) flag=$word ;;
            =) ;;
            *) if [[ -z $flag ]] && _mt_knows "${path:+$path }$word"; then path="${path:+$path }$word"; fi ;;
        esac
    done
    [[ $flag == --*=* ]] && flag=
"""


def bash(found: dict[str, Completed]) -> str:
    """The script for bash, 3.2 and later."""
    return "\n".join(
        [
            "# bash completion of mt; written by `mt completion bash`",
            _functions(found),
            "_mt() {",
            '    local current=${COMP_WORDS[COMP_CWORD]} before=("${COMP_WORDS[@]:0:COMP_CWORD}")',
            SCAN.rstrip(),
            '    [[ $current == "=" ]] && current=',
            "    local last=${COMP_WORDS[COMP_CWORD-1]}",
            "    COMPREPLY=()",
            '    if [[ $current != -* ]] && _mt_value "$path" "$flag" "$last"; then',
            "        if [[ -n $choices ]]; then",
            '            COMPREPLY=($(compgen -W "$choices" -- "$current"))',
            "            return",
            "        fi",
            "        compopt -o filenames 2> /dev/null",
            "        local IFS=$'\\n'",
            '        COMPREPLY=($(compgen -f -- "$current"))',
            "        return",
            "    fi",
            '    COMPREPLY=($(compgen -W "$(_mt_words "$path")" -- "$current"))',
            "    if [[ ${#COMPREPLY[@]} == 0 && $current != -* ]]; then",
            "        compopt -o filenames 2> /dev/null",
            "        local IFS=$'\\n'",
            '        COMPREPLY=($(compgen -f -- "$current"))',
            "    fi",
            "}",
            "complete -F _mt mt",
        ]
    )


def zsh(found: dict[str, Completed]) -> str:
    """The script for zsh: a file `_mt` of $fpath, or one that is sourced after compinit."""
    texts = ["_mt_texts() {", "    case $1 in"]
    for path, completed in found.items():
        words = [word.replace(":", "\\:") + f":{text}" for word, text in completed.words.items()]
        texts += [f"        {shlex.quote(path)}) texts=({' '.join(map(shlex.quote, words))}) ;;"]
    texts += ["    esac", "}"]
    return "\n".join(
        [
            "#compdef mt",
            "# zsh completion of mt; written by `mt completion zsh`",
            _functions(found),
            *texts,
            "_mt() {",
            '    local current=$PREFIX choices; local -a before texts; before=("${(@)words[1,CURRENT-1]}")',
            SCAN.rstrip()
            .replace("local path= flag= word", "local path= flag= word last", 1)
            .replace("path", "mt_path"),
            "    last=${words[CURRENT-1]}",
            "    if [[ $current == --*=* ]]; then",
            "        flag=${current%%=*} last=${current%%=*}",
            "        compset -P '*='",
            '        _mt_value "$mt_path" "$flag" "$last"',
            "        if [[ -n $choices ]]; then compadd -- ${=choices}; else _files; fi",
            "        return",
            "    fi",
            '    if [[ $current != -* ]] && _mt_value "$mt_path" "$flag" "$last"; then',
            "        if [[ -n $choices ]]; then compadd -- ${=choices}; else _files; fi",
            "        return",
            "    fi",
            '    _mt_texts "$mt_path"',
            "    _describe -t words 'mt' texts || _files",
            "}",
            'if [[ $funcstack[1] == _mt ]]; then _mt "$@"; else compdef _mt mt; fi',
        ]
    )


def _functions(found: dict[str, Completed]) -> str:
    """Functions in the language that bash and zsh share.

    _mt_knows PATH: whether these words are a command or a group. _mt_words PATH prints what can follow them.
    _mt_value PATH FLAG LAST: whether a value of the flag can follow the last word; sets `choices`.
    """
    knows = " | ".join(shlex.quote(path) for path in found if path)
    words = [f"        {shlex.quote(p)}) echo {shlex.quote(' '.join(c.words))} ;;" for p, c in found.items()]
    values = []
    for path, completed in found.items():
        for flag, choices in completed.values.items():
            count = "any" if flag in completed.lists else "one"
            found_choices = shlex.quote(" ".join(choices))
            values.append(
                f"        {shlex.quote(f'{path} {flag}')}) count={count} choices={found_choices} ;;"
            )
    return "\n".join(
        [
            f"_mt_knows() {{ case $1 in {knows}) return 0 ;; *) return 1 ;; esac }}",
            "_mt_words() {",
            "    case $1 in",
            *words,
            "    esac",
            "}",
            "_mt_value() {",
            "    local count=",
            "    choices=",
            '    case "$1 $2" in',
            *values,
            "    esac",
            '    [[ $count == any ]] || [[ $count == one && ( $3 == "$2" || $3 == "=" ) ]]',
            "}",
        ]
    )


def fish(found: dict[str, Completed]) -> str:
    """The script for fish."""
    lines = [
        "# fish completion of mt; written by `mt completion fish`",
        "function __mt_at",
        "    # whether the command line begins with these words, and no further word of a command",
        "    set -l path",
        "    for word in (commandline -opc)[2..]",
        "        if string match -q -- '-*' $word",
        "            test (count $path) -gt 0; and break; or continue",
        "        end",
        "        __mt_knows (string join ' ' $path $word); or break",
        "        set -a path $word",
        "    end",
        '    test "$path" = "$argv"',
        "end",
        "function __mt_knows",
        f'    contains -- "$argv" {" ".join(shlex.quote(path) for path in found if path)}',
        "end",
    ]
    for path, completed in found.items():
        at = f"-n {_fish(f'__mt_at {path}'.rstrip())}"
        for word, text in completed.words.items():
            if not word.startswith("--"):
                lines.append(f"complete -c mt {at} -f -a {_fish(word)} -d {_fish(text)}")
                continue
            takes = ""
            if word in completed.values:
                choices = completed.values[word]
                takes = f" -x -a {_fish(' '.join(choices))}" if choices else " -r -F"
            lines.append(f"complete -c mt {at} -l {word[2:]}{takes} -d {_fish(text)}")
    return "\n".join(lines)


def _fish(text: str) -> str:
    """A word of fish in quotes, in which only the backslash and the quote are special."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
