"""Sentence splitting with Punkt, equal to NLTK's, and training of its parameters (`mt data train-punkt`).

Punkt (Kiss and Strunk, "Unsupervised multilingual sentence boundary detection", 2006) decides for every `.`,
`?` and `!` that is followed by text whether it ends a sentence, from the words around it and four tables
learned from text. `SentenceSplitter` returns the sentences of `nltk.tokenize.sent_tokenize` without importing
NLTK, which takes a second in every process, and about six times as fast: most periods end a plain word that
is in no table, and need no further decision.

The tables are four text files in NLTK's `punkt_tab` layout, in a folder named after the language:

    abbrev_types.txt     an abbreviation a line, without its last period: `mr`, `u.s`
    collocations.tab     two types a line, separated by a tab, that belong together across a period
    sent_starters.txt    a frequent first word of sentences a line
    ortho_context.tab    type, tab, sum of bits: the positions and cases in which it occurred
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..core.parsing import read_text
from ..documents.rejects import Rejects
from ..documents.sharding import InputOptions
from ..tokenizer.train import sample_texts

SLAB_CHARACTERS = 1_000_000  # Megatron-LM cuts longer texts before it splits them
FILES = ("abbrev_types.txt", "collocations.tab", "sent_starters.txt", "ortho_context.tab")
# Bits of ortho_context: the type occurred with an upper-case or lower-case letter at the beginning of a
# sentence, inside one, or at an unknown position.
BEGIN_UPPER, MID_UPPER, UNKNOWN_UPPER, BEGIN_LOWER, MID_LOWER, UNKNOWN_LOWER = (1 << i for i in range(1, 7))
UPPER, LOWER = BEGIN_UPPER | MID_UPPER | UNKNOWN_UPPER, BEGIN_LOWER | MID_LOWER | UNKNOWN_LOWER

WHITESPACE = " \t\n\r\x0b\x0c"
# NLTK compiles its expressions with the package regex, in which the separators U+001C to U+001F are not white
# space.
_SPACE, _SOLID = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
_NON_WORD = "[)\";}\\]*:@'({\\[\u2018\u2019\u201c\u201d\xab\xbb?!]"
_MULTIPLE = rf"(?:\-{{2,}}|\.{{2,}}|(?:\.{_SPACE}){{2,}}\.)"
_WORD_END = rf"(?:{_SPACE}|$|{_NON_WORD}|{_MULTIPLE}|,(?=$|{_SPACE}|{_NON_WORD}|{_MULTIPLE}))"
WORD = re.compile(rf"({_MULTIPLE}|(?=[^(\"`{{\[:;&#*@)}}\]\-,]){_SOLID}+?(?={_WORD_END})|{_SOLID})")
CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{_NON_WORD}|{_SPACE}+(?P<next>{_SOLID}+)))")
# With newlines kept, the white space after a sentence belongs to it, and the word before it to the match.
KEEPING = re.compile(rf"{_SOLID}*[.?!]{_SPACE}*(?=(?P<after>{_NON_WORD}|(?P<next>{_SOLID}+)))")
KEEPING_AT_WORD = re.compile(rf"(?<!{_SOLID}){KEEPING.pattern}")
CLOSING = re.compile(f"[\"')\\]}}\u2018\u2019\u201c\u201d\xab\xbb]+?(?:{_SPACE}+|(?=--)|$)", re.MULTILINE)
NUMBER = re.compile(r"^-?[.,]?\d[\d,.-]*\.?$")
INITIAL = re.compile(r"[^\W\d]\.$")
PUNCTUATION = frozenset(";:,.!?")


class SentenceSplitter:
    """`splitter(text)` returns the sentences of a text.

    folder: the four files of a language. keep_newlines: keep the white space after a sentence. Raises
    UserError for parameters that are missing or malformed.
    """

    def __init__(self, folder: str | Path, keep_newlines: bool = False):
        self.folder, self.keep_newlines = Path(folder), keep_newlines
        rows = {name: _rows(self.folder / name) for name in FILES}
        digest = xxhash.xxh3_128("".join(f"{name}\n{rows[name]}\n" for name in FILES).encode())
        self.fingerprint = digest.hexdigest()
        self.abbreviations = frozenset(rows["abbrev_types.txt"])
        self.starters = frozenset(rows["sent_starters.txt"])
        try:
            pairs = [tuple(row.split("\t")) for row in rows["collocations.tab"]]
            self.collocations = frozenset((first, second) for first, second in pairs)
            self.contexts = {
                word: int(bits) for word, bits in (row.split("\t") for row in rows["ortho_context.tab"])
            }
        except ValueError:
            raise UserError(
                f"{self.folder}: collocations.tab or ortho_context.tab does not hold two columns with a tab"
                " between; fetch or train the parameters again"
            ) from None
        # words whose period needs a closer look
        self._ambiguous = self.abbreviations | {first for first, _ in self.collocations}
        # Contexts recur: a cache of 65,536 of them saves half of the remaining work.
        self._breaks = functools.lru_cache(1 << 16)(self._decide)

    def __reduce__(self) -> tuple[type[SentenceSplitter], tuple[Path, bool]]:
        return SentenceSplitter, (self.folder, self.keep_newlines)

    def __call__(self, text: str) -> list[str]:
        if len(text) <= SLAB_CHARACTERS:
            return self._split(text)
        return [
            s
            for at in range(0, len(text), SLAB_CHARACTERS)
            for s in self._split(text[at : at + SLAB_CHARACTERS])
        ]

    def _split(self, text: str) -> list[str]:
        """The pieces between breaks; closing quotes and brackets go to the sentence that they close."""
        pieces = self._pieces(text)
        sentences, moved = [], 0
        for (start, stop), (next_start, next_stop) in zip(pieces, [*pieces[1:], (0, 0)]):
            start += moved
            closing = CLOSING.match(text, next_start, next_stop)
            if closing:
                sentences.append(text[start : next_start + len(closing[0].rstrip())])
                moved = closing.end() - next_start
            else:
                moved = 0
                if start < stop:
                    sentences.append(text[start:stop])
        return sentences

    def _pieces(self, text: str) -> list[tuple[int, int]]:
        """(start, stop) of the pieces between breaks.

        A candidate replaces the one before it if both end the same word: `what?!`.
        """
        pieces: list[tuple[int, int]] = []
        begun, last = 0, None
        word, at = 0, 0  # start of the word before the last candidate, and of the candidate itself
        for match in self._candidates(text):
            position = match.start()
            space = max([text.rfind(c, at, position) for c in WHITESPACE])
            start = space + 1 if space > at else word
            if last is not None and at <= start and self._is_break(text, word, last):
                pieces.append((begun, last.end()))
                begun = last.start("next") if last["next"] else last.end()
            last, word, at = match, start, position
        if last is not None and self._is_break(text, word, last):
            pieces.append((begun, last.end()))
            begun = last.start("next") if last["next"] else last.end()
        return [*pieces, (begun, len(text.rstrip()))]

    def _candidates(self, text: str) -> Iterator[re.Match[str]]:
        if not self.keep_newlines:
            yield from CANDIDATE.finditer(text)
            return
        # A match may begin at a word or at the end of the match before: searching elsewhere takes quadratic
        # time in long words.
        at = 0
        while match := KEEPING.match(text, at) or KEEPING_AT_WORD.search(text, at):
            yield match
            at = match.end()

    def _is_break(self, text: str, start: int, match: re.Match[str]) -> bool:
        """Whether a candidate ends a sentence. start: of the word before it."""
        before = text[start : match.end()]
        word = before.rstrip()
        clean = match["next"] is None or len(word) < len(before) or not self.keep_newlines
        if clean and match["after"].strip():
            if word[-1] != ".":
                return True
            plain = word[:-1]
            if len(plain) > 1 and plain.isalpha() and plain.lower() not in self._ambiguous:
                return True
        return self._breaks(before + match["after"])

    def _decide(self, context: str) -> bool:
        """Whether a sentence ends inside a context of a few words, at any token but the last one."""
        tokens = [token for line in context.split("\n") if line.strip() for token in WORD.findall(line)]
        return any(map(self._ends, tokens, tokens[1:]))

    def _ends(self, token: str, following: str) -> bool:
        """Whether a sentence ends at a token, by its type and the following token (sections 3 and 4)."""
        ends, abbreviation = self._by_type(token)
        if token[-1] != ".":
            return ends
        kind, next_kind = _type(token), _type(following)
        kind = _without_period(kind)
        if self._by_type(following)[0]:
            next_kind = _without_period(next_kind)
        if (kind, next_kind) in self.collocations:
            return False
        initial = INITIAL.match(token) is not None
        starts = self._starts(following, next_kind)
        if (
            abbreviation
            and not initial
            and (starts is True or (following[0].isupper() and next_kind in self.starters))
        ):
            return True
        if initial or kind == "##number##":
            if starts is False:
                return False
            if (
                starts is None
                and initial
                and following[0].isupper()
                and not self.contexts.get(next_kind, 0) & LOWER
            ):
                return False
        return ends

    def _by_type(self, token: str) -> tuple[bool, bool]:
        """(ends a sentence, is an abbreviation or an ellipsis), from the token alone (section 3)."""
        if token in (".", "?", "!"):
            return True, False
        if token[-1] != "." or token.endswith(".."):
            return False, len(token) > 1 and not token.strip(".")
        word = token[:-1].lower()
        known = word in self.abbreviations or word.split("-")[-1] in self.abbreviations
        return not known, known

    def _starts(self, token: str, kind: str) -> bool | None:
        """Whether a token starts a sentence, from the cases in which its type occurred; None if undecided."""
        if token in PUNCTUATION:
            return False
        contexts = self.contexts.get(kind, 0)
        if token[0].isupper() and contexts & LOWER and not contexts & MID_UPPER:
            return True
        if token[0].islower() and (contexts & UPPER or not contexts & BEGIN_LOWER):
            return False
        return None


def _type(token: str) -> str:
    """The type of a token: lower case, numbers as `##number##`."""
    return NUMBER.sub("##number##", token.lower())


def _without_period(kind: str) -> str:
    return kind[:-1] if len(kind) > 1 and kind[-1] == "." else kind


def _rows(path: Path) -> list[str]:
    if not path.exists():
        raise UserError(f"{path}: no such file; a folder of Punkt parameters holds {', '.join(FILES)}")
    text = read_text(path).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def find_parameters(language: str, given: str | None) -> Path:
    """The folder of a language's parameters: in `given`, or where NLTK looks for them.

    Raises UserError that says how to get them if there are none.
    """
    if given is not None:
        folders = [Path(given) / language, Path(given)]
    else:
        roots = [Path(root) for root in os.environ.get("NLTK_DATA", "").split(os.pathsep) if root]
        roots += [Path.home() / "nltk_data", Path("/usr/share/nltk_data"), Path("/usr/local/share/nltk_data")]
        folders = [root / "tokenizers" / "punkt_tab" / language for root in roots]
    for folder in folders:
        if (folder / FILES[0]).exists():
            return folder
    raise UserError(
        f"split_sentences: no Punkt parameters for {language!r} (looked in {', '.join(map(str, folders))});"
        " download them with `python -m nltk.downloader punkt_tab`, or train them with `mt data train-punkt"
        " --input FILES --output DIR` and pass --punkt DIR"
    )


@configuration()
class TrainPunktConfig(InputOptions):
    """The settings of `mt data train-punkt`."""

    input: tuple[str, ...] = option(
        help="files, folders or globs: .jsonl(.gz .zst), .parquet, .txt", role="input"
    )
    output: str = option(help="directory for the parameters, the value of --punkt", role="output")
    lang: str = option("english", "name of the folder inside it")
    text_key: str = option("text", "the record's key of the text")
    sample_bytes: int = option(
        10_000_000, "train on about this many bytes of the input, spread evenly; memory grows with it"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self) -> None:
        check(
            *self.input_rules,
            (self.sample_bytes >= 1, f"sample_bytes = {self.sample_bytes} must be at least 1"),
            (self.lang.isidentifier(), f"lang = {self.lang!r} must be one word"),
        )


def train_punkt(config: TrainPunktConfig) -> dict[str, Any]:
    """Trains Punkt's parameters on documents with NLTK's trainer; OUTPUT/LANG/ gets the four files."""
    shards = config.plan(config.input, key=config.text_key, output=config.output)
    run = shards.begin("data train-punkt", config)
    if run.finished:
        return run.manifest
    from nltk.tokenize.punkt import PunktTrainer

    trainer = PunktTrainer()
    counts = {"documents": 0, "text_bytes": 0, "rejected": 0}
    rejects = Rejects()
    try:
        for text in sample_texts(shards, config.sample_bytes, rejects, counts, "train-punkt: reading"):
            trainer.train(text, finalize=False)
        if not counts["text_bytes"]:
            raise UserError(f"{', '.join(config.input)}: contains no text to train on; check the input")
    except UserError:
        run.release()  # nothing is written yet, and the remedy changes the input or a setting
        raise
    trainer.finalize_training()
    learned = trainer.get_params()
    rows = {
        "abbrev_types.txt": sorted(learned.abbrev_types),
        "collocations.tab": sorted(map("\t".join, learned.collocations)),
        "sent_starters.txt": sorted(learned.sent_starters),
        "ortho_context.tab": sorted(f"{word}\t{bits}" for word, bits in learned.ortho_context.items()),
    }
    counts |= {
        "rejected": len(rejects),
        "abbreviations": len(learned.abbrev_types),
        "collocations": len(learned.collocations),
        "sentence_starters": len(learned.sent_starters),
    }
    written = [run.output / config.lang / name for name in rows]
    for path, lines in zip(written, rows.values()):
        with manifest.atomic_write(path, "w") as file:
            file.write("\n".join(lines))
    if rejects:
        written.append(run.output / "rejects.jsonl")
        rejects.write(written[-1])
    return run.finish(
        [{**manifest.record(path, run.output), "documents": False} for path in written],
        counts,
    )
