"""Unicode: byte-order marks, and normalization in time linear in the text.

`without_mark` drops the byte-order mark at the beginning of a file in UTF-8, which programs on Windows write.
Every reader of text files that a user may have saved calls it, or decodes by UTF-8 after it.

Normalization is linear also where thousands of marks follow one letter.
`unicodedata.normalize` sorts the marks after a letter by their combining class with an insertion sort, which
takes quadratic time: 4 s for 40,000 marks. Here, a run of more than MAX_MARKS is decomposed and sorted first.
The sorted text is canonically equivalent, so its normal forms are the same (Unicode 16.0, section 3.11, D108
to D117). Unicode's Stream-Safe Text Format (UAX 15, section 13) instead inserts U+034F after 30 marks, which
changes the text. No orthography has more than a few marks on a letter, so nearly no text is sorted.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Literal

MARK = b"\xef\xbb\xbf"  # the byte-order mark U+FEFF in UTF-8
Form = Literal["NFC", "NFKC", "NFD", "NFKD"]
MAX_MARKS = 120
# A longer run has a mark at this many consecutive multiples of STEP, which are fast to look at.
SAMPLES = 4
STEP = MAX_MARKS // SAMPLES
FIRST_MARK = "\u0300"  # no character below it is a mark or decomposes into marks alone
MAYBE_MARKS = re.compile(f"[{FIRST_MARK}-\U0010ffff]{{{SAMPLES}}}")  # much faster than the exact expression


def without_mark(data: bytes) -> bytes:
    """The bytes of a file, or its first ones, without a byte-order mark of UTF-8 at the beginning."""
    return data.removeprefix(MARK)


def normalize(form: Form, text: str) -> str:
    """The same as unicodedata.normalize(form, text)."""
    if not text.isascii():
        samples, long_run = _patterns("K" in form)
        sampled = text[::STEP]
        if MAYBE_MARKS.search(sampled) and samples.search(sampled):
            text = long_run.sub(functools.partial(_sorted_marks, "K" in form), text)
    return unicodedata.normalize(form, text)


@functools.cache
def _patterns(compatible: bool) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Expressions for SAMPLES and for more than MAX_MARKS marks, or characters that decompose into marks.

    compatible: by compatibility decomposition (forms NFKC and NFKD), else by canonical decomposition.
    """
    form: Form = "NFKD" if compatible else "NFD"
    marks = [
        code
        for code in range(ord(FIRST_MARK), 0x20000)  # beyond it, no character has a combining class
        if unicodedata.combining(chr(code))
        or (
            unicodedata.decomposition(chr(code))
            and unicodedata.combining(unicodedata.normalize(form, chr(code))[0])
        )
    ]
    breaks = [i for i in range(1, len(marks)) if marks[i] != marks[i - 1] + 1]
    spans = zip([0, *breaks], [*breaks, len(marks)])
    members = "".join(f"{chr(marks[a])}-{chr(marks[b - 1])}" for a, b in spans)
    return re.compile(f"[{members}]{{{SAMPLES}}}"), re.compile(f"[{members}]{{{MAX_MARKS + 1},}}")


def _sorted_marks(compatible: bool, run: re.Match[str]) -> str:
    """The marks of a run, decomposed and sorted by combining class; those of one class keep their order."""
    form: Form = "NFKD" if compatible else "NFD"
    marks = "".join(unicodedata.normalize(form, mark) for mark in run[0])
    return "".join(sorted(marks, key=unicodedata.combining))
