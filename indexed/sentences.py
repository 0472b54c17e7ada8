"""sentence boundaries: Punkt, as NLTK decides them, and training its parameters on one's own documents.

Punkt (Kiss and Strunk, "Unsupervised multilingual sentence boundary detection", 2006) asks of every `.`, `?`
and `!` that something follows whether it ends a sentence, by the words around it and four tables learnt from
text. `SentenceSplitter` gives the sentences that `nltk.tokenize.sent_tokenize` gives, without importing NLTK
(which takes a second in every process), and some six times faster: most periods end a plain word that no
table knows, and need no further look.

The tables are four text files, NLTK's `punkt_tab` layout, in a folder named for the language:

    abbrev_types.txt     an abbreviation a line, without its last period: `mr`, `u.s`
    collocations.tab     two types a line, tab between, that belong together over a period
    sent_starters.txt    a frequent first word a line
    ortho_context.tab    type, tab, a sum of bits: where it was seen, and in which case
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import xxhash

from ..core import manifest
from ..core.config import UserError, check, configuration, option
from ..documents import reader, sources
from ..tokenizer.train import sample_texts

SLAB_CHARACTERS = 1_000_000  # Megatron-LM cuts longer texts before it splits them
FILES = ("abbrev_types.txt", "collocations.tab", "sent_starters.txt", "ortho_context.tab")
# Bits of ortho_context: seen with an upper or lower case letter at the beginning of a sentence, inside one,
# or either.
BEGIN_UPPER, MID_UPPER, UNKNOWN_UPPER, BEGIN_LOWER, MID_LOWER, UNKNOWN_LOWER = (1 << i for i in range(1, 7))
UPPER, LOWER = BEGIN_UPPER | MID_UPPER | UNKNOWN_UPPER, BEGIN_LOWER | MID_LOWER | UNKNOWN_LOWER

WHITESPACE = " \t\n\r\x0b\x0c"
# NLTK compiles its expressions with the package regex, to which the separators U+001C to U+001F are no white
# space.
_SPACE, _SOLID = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
_NON_WORD = "[)\";}\\]*:@'({\\[\u2018\u2019\u201c\u201d\xab\xbb?!]"
_MULTIPLE = rf"(?:\-{{2,}}|\.{{2,}}|(?:\.{_SPACE}){{2,}}\.)"
_WORD_END = rf"(?:{_SPACE}|$|{_NON_WORD}|{_MULTIPLE}|,(?=$|{_SPACE}|{_NON_WORD}|{_MULTIPLE}))"
WORD = re.compile(rf"({_MULTIPLE}|(?=[^(\"`{{\[:;&#*@)}}\]\-,]){_SOLID}+?(?={_WORD_END})|{_SOLID})")
CANDIDATE = re.compile(rf"[.?!](?=(?P<after>{_NON_WORD}|{_SPACE}+(?P<next>{_SOLID}+)))")
# With newlines kept, the white space after a sentence is its own, and the word before it is part of the
# match.
KEEPING = re.compile(rf"{_SOLID}*[.?!]{_SPACE}*(?=(?P<after>{_NON_WORD}|(?P<next>{_SOLID}+)))")
KEEPING_AT_WORD = re.compile(rf"(?<!{_SOLID}){KEEPING.pattern}")
CLOSING = re.compile(f"[\"')\\]}}\u2018\u2019\u201c\u201d\xab\xbb]+?(?:{_SPACE}+|(?=--)|$)", re.MULTILINE)
NUMBER = re.compile(r"^-?[.,]?\d[\d,.-]*\.?$")
INITIAL = re.compile(r"[^\W\d]\.$")
PUNCTUATION = frozenset(";:,.!?")


class SentenceSplitter:
    """`splitter(text)` -> its sentences, white space around them dropped unless `keep_newlines`.

    folder: a language's four files.
    """

    def __init__(self, folder: str | Path, keep_newlines: bool = False):
        self.folder, self.keep_newlines = Path(folder), keep_newlines
        rows = {name: _rows(self.folder / name) for name in FILES}
        digest = xxhash.xxh3_128("".join(f"{name}\n{rows[name]}\n" for name in FILES).encode())
        self.fingerprint = digest.hexdigest()
        self.abbreviations, self.starters = (
            frozenset(rows["abbrev_types.txt"]),
            frozenset(rows["sent_starters.txt"]),
        )
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
        self._peculiar = self.abbreviations | {first for first, _ in self.collocations}
        # Contexts return: a table of the last 65536 saves half of the work that is left.
        self._breaks = functools.lru_cache(1 << 16)(self._decide)

    def __reduce__(self):
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
        """The pieces between breaks, and closing quotes and brackets back to the sentence that they close."""
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
        """(start, stop) between breaks.

        A candidate whose word reaches back over the one before replaces it: `what?!`.
        """
        pieces, begun, last = [], 0, None
        word, at = 0, 0  # where the word before the last candidate starts, and the candidate itself
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

    def _candidates(self, text: str) -> Iterator[re.Match]:
        if not self.keep_newlines:
            yield from CANDIDATE.finditer(text)
            return
        # A match may begin at a word or where the one before it ended: searching elsewhere takes squared time
        # in long words.
        at = 0
        while match := KEEPING.match(text, at) or KEEPING_AT_WORD.search(text, at):
            yield match
            at = match.end()

    def _is_break(self, text: str, start: int, match: re.Match) -> bool:
        before = text[start : match.end()]
        word = before.rstrip()
        clean = match["next"] is None or len(word) < len(before) or not self.keep_newlines
        if clean and match["after"].strip():
            if word[-1] != ".":
                return True
            plain = word[:-1]
            if len(plain) > 1 and plain.isalpha() and plain.lower() not in self._peculiar:
                return True
        return self._breaks(before + match["after"])

    def _decide(self, context: str) -> bool:
        """Whether a sentence ends in a few words: at any of their tokens but the last."""
        tokens = [token for line in context.split("\n") if line.strip() for token in WORD.findall(line)]
        return any(map(self._ends, tokens, tokens[1:]))

    def _ends(self, token: str, following: str) -> bool:
        """Whether a sentence ends at a token, by its type and by what follows (sections 3 and 4 of the
        paper).
        """
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
        """(ends a sentence, is an abbreviation or an ellipsis), as far as the token alone tells."""
        if token in (".", "?", "!"):
            return True, False
        if token[-1] != "." or token.endswith(".."):
            return False, len(token) > 1 and not token.strip(".")
        word = token[:-1].lower()
        known = word in self.abbreviations or word.split("-")[-1] in self.abbreviations
        return not known, known

    def _starts(self, token: str, kind: str) -> bool | None:
        """Whether a token starts a sentence, by the cases in which its type was seen; None where they do not
        tell.
        """
        if token in PUNCTUATION:
            return False
        seen = self.contexts.get(kind, 0)
        if token[0].isupper() and seen & LOWER and not seen & MID_UPPER:
            return True
        if token[0].islower() and (seen & UPPER or not seen & BEGIN_LOWER):
            return False
        return None


def _type(token: str) -> str:
    return NUMBER.sub("##number##", token.lower())


def _without_period(kind: str) -> str:
    return kind[:-1] if len(kind) > 1 and kind[-1] == "." else kind


def _rows(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; a folder of Punkt parameters holds {', '.join(FILES)}"
        ) from None
    return text.removesuffix("\n").split("\n") if text else []


def find_parameters(language: str, given: str | None) -> Path:
    """The folder of a language's parameters: in `given`, else where NLTK looks; raises UserError that says
    how to get them.
    """
    if given is not None:
        folders = [Path(given) / language, Path(given)]
    else:
        roots = [
            *filter(None, os.environ.get("NLTK_DATA", "").split(os.pathsep)),
            Path.home() / "nltk_data",
            "/usr/share/nltk_data",
            "/usr/local/share/nltk_data",
        ]
        folders = [Path(root) / "tokenizers" / "punkt_tab" / language for root in roots]
    for folder in folders:
        if (folder / FILES[0]).exists():
            return folder
    raise UserError(
        f"split_sentences: no Punkt parameters for {language!r} (looked in {', '.join(map(str, folders))});"
        " bring them with `python -m nltk.downloader punkt_tab`, or train them with `mt data train-punkt"
        " --input FILES --output DIR` and pass --punkt DIR"
    )


@configuration()
class TrainPunktConfig:
    """The settings of `mt data train-punkt`."""

    input: tuple[str, ...] = option(
        help="files, folders or globs: .jsonl(.gz .zst), .parquet, .txt", role="input"
    )
    output: str = option(help="directory for the parameters, to be given to --punkt", role="output")
    lang: str = option("english", "name of the folder inside it")
    text_key: str = option("text", "the record's key that holds the text")
    sample_bytes: int = option(
        10_000_000, "learn from about this many bytes of input, spread evenly; memory grows with it"
    )
    on_error: Literal["fail", "skip"] = option(
        "fail", "a record that cannot be read: stop, or set it aside", role="runtime"
    )
    overwrite: bool = option(False, "replace another run in the output directory", role="runtime")

    def __post_init__(self):
        check(
            (self.sample_bytes >= 1, f"sample_bytes = {self.sample_bytes} must be at least 1"),
            (self.lang.isidentifier(), f"lang = {self.lang!r} must be one word"),
        )


def train_punkt(config: TrainPunktConfig) -> dict:
    """Learns Punkt's parameters from documents with NLTK's trainer; OUTPUT/LANG/ holds the four files."""
    shards = reader.plan(config.input, key=config.text_key, on_error=config.on_error, output=config.output)
    run = manifest.begin(
        "data train-punkt", config, dict.fromkeys(s.path for s in shards), identify=sources.identity
    )
    if run.finished:
        return run.manifest
    from nltk.tokenize.punkt import PunktTrainer

    trainer = PunktTrainer()
    counts, rejects = {"documents": 0, "text_bytes": 0, "rejected": 0}, []
    try:
        for text in sample_texts(shards, config.sample_bytes, rejects, counts, "train-punkt: reading"):
            trainer.train(text, finalize=False)
        if not counts["text_bytes"]:
            raise UserError(f"{', '.join(config.input)}: holds no text to learn from; check the input")
    except UserError:
        run.release()  # nothing is written yet, and the remedy changes the input or a setting
        raise
    trainer.finalize_training()
    learnt = trainer.get_params()
    rows = {
        "abbrev_types.txt": sorted(learnt.abbrev_types),
        "collocations.tab": sorted(map("\t".join, learnt.collocations)),
        "sent_starters.txt": sorted(learnt.sent_starters),
        "ortho_context.tab": sorted(f"{word}\t{bits}" for word, bits in learnt.ortho_context.items()),
    }
    counts |= {
        "rejected": len(rejects),
        "abbreviations": len(learnt.abbrev_types),
        "collocations": len(learnt.collocations),
        "sentence_starters": len(learnt.sent_starters),
    }
    for name, lines in rows.items():
        with manifest.atomic_write(run.output / config.lang / name, "w") as file:
            file.write("\n".join(lines))
    return run.finish(
        [
            {**manifest.record(run.output / config.lang / name, run.output), "documents": False}
            for name in rows
        ],
        counts,
    )
