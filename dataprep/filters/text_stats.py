"""Statistics of a text that the rules need: words, line counts and repeated n-grams, by compiled loops.

`TextStats` has a text and its statistics, each computed on first use and shared by all rules. Words are
arrays of positions and 64-bit hashes, never Python strings: the loops process some hundred MB/s, and building
the list of words alone would take longer. There are two word splitters:

    space   split at whitespace, as in the Gopher paper
    apart   also split punctuation from letters and clitics from their word, as in
            `do|n't|stop|,|it|'s|well|-|known|.`; similar to spaCy's English tokenizer, on which FineWeb's
            thresholds were set (docs/performance.md has the differences)

The hash of a word is a polynomial of its code points modulo 2^64, so that the hash of a joined n-gram can be
computed from those of its words. The probability that two different n-grams of one text have the same hash is
about 1e-14.
"""

from __future__ import annotations

import functools
import secrets
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from ...core.numba_loops import compile_loop
from .language import language

# Unicode's property Sentence_Terminal (15.0, with the Khmer signs), which no Python module has: the
# characters that end a line for datatrove's FineWeb filter. Hexadecimal; `a-b` is a range.
TERMINAL = """
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6
17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049
2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb
fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143
111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642
1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5
16b37-16b38 16b44 16e98 1bc9f 1da88
"""
# Characters that do not make a word for datatrove's Gopher filter, in addition to TERMINAL and CONTROLS.
SYMBOLS = "\"#$%&'()*+,-/:;<=>@[\\]^_`{|}~«´»–—’“”„…∶━►、〈〉《》「」【】％（），１：；～"
INNER_PUNCTUATION = "/-@.\\^|~+"  # stays with the letters that follow it
CONTROLS = [*range(9), 11, 12, *range(13, 32), *range(127, 160)]

# Bits of a character's class. PUNCT: punctuation and symbols of Unicode. SYMBOL: datatrove's symbols. ENDS: a
# line should end with it. BREAK: a line break of str.splitlines.
SPACE, ALPHA, PUNCT, SYMBOL, ENDS, UPPER, LOWER, BREAK = 1, 2, 4, 8, 16, 32, 64, 128
LAST_CODE = 0x32400  # Unicode has no letters, spaces or punctuation beyond it, only variation selectors
PRIME = np.uint64(0x9E3779B97F4A7C15)
# Slots of the n-gram hash table per word, for texts of fewer than LARGE words; with 2 slots it takes
# 1.5 times as long.
SPARSE, LARGE = 8, 1 << 16
LEAST_LONG = 5  # words of the n-grams that are joined without spaces
PREFIX_CHARS = 8
ONE, BLANK, BITS, BYTE = np.uint64(1), np.uint64(33), np.uint64(64), np.uint64(8)
BYTE_MASK = np.uint64(0xFF)
# PRIME to the power of 0, 1, 2 ...: the lengths of almost all words
POWERS = np.array([pow(int(PRIME), k, 2**64) for k in range(32)], np.uint64)
NO_CODES, NO_STARTS = np.empty(0, np.uint32), np.empty(0, np.int32)


class TextStats:
    """A text and its statistics."""

    def __init__(self, text: str):
        self.text = text
        self.original = text
        self._line_counts: dict[tuple[str, int], list[int]] = {}

    @functools.cached_property
    def language(self) -> tuple[str, float]:
        """(code, score) of the most likely language."""
        return language(self.text)

    @functools.cached_property
    def codes(self) -> np.ndarray:
        """(chars,) uint32 code points."""
        return np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), np.uint32)

    @functools.cached_property
    def lines(self) -> list[str]:
        """The lines, split at newlines, that are not blank."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @functools.cached_property
    def _words_at_spaces(self) -> WordStats:
        return WordStats(self.codes, False)

    @functools.cached_property
    def _words_apart(self) -> WordStats:
        return WordStats(self.codes, True)

    def words(self, splitter: str) -> WordStats:
        """splitter: `space` or `apart`."""
        return self._words_apart if splitter == "apart" else self._words_at_spaces

    def has_words(self, count: int, splitter: str) -> bool:
        """Whether there are at least `count` words, one or more."""
        # a word between spaces is one or more of `apart`, and `split` stops after `count`
        return len(self.text.split(None, count - 1)) >= count or self.words(splitter).count >= count

    def line_counts(self, ends: str, short_line_chars: int) -> list[int]:
        """Six counts of lines.

        Of the lines of str.splitlines: all, those that begin with a bullet, those that end with an ellipsis.
        Of `self.lines`: all, those that end with a character of `ends` ("" stands for TERMINAL), those of at
        most short_line_chars characters.
        """
        key = ends, short_line_chars
        if key not in self._line_counts:
            self._line_counts[key] = compile_loop(_line_counts)(
                self.codes, character_classes(ends), short_line_chars
            ).tolist()
        return self._line_counts[key]

    def distinct(self, listed: str, enough: int, splitter: str) -> int:
        """How many of the listed words, separated by commas, occur; may stop counting at `enough`."""
        return self.words(splitter).distinct(_hashes(listed), enough)


class WordStats:
    """The words of a text: their positions, hashes and counts.

    starts, ends: int32 (W,). hashes, powers: uint64 (W,), polynomial hash, and PRIME to the power of the
    length. count: W, where words are whole. symbols: words of symbols only. plain_chars: characters of all
    other words. unlettered: words without a letter.
    """

    def __init__(self, codes: np.ndarray, apart: bool):
        classes = character_classes("")
        self.codes = codes
        self.symbols: int
        self.plain_chars: int
        self.unlettered: int
        if apart:
            (
                (self.starts, self.ends, self.hashes, self.powers),
                (self.symbols, self.plain_chars, self.unlettered),
            ) = compile_loop(_split_apart)(codes, classes)
        else:
            self.starts, self.ends = compile_loop(_split_at_spaces)(codes, classes)
            self._hash(codes, classes)
        self.count: float = len(self.starts)

    def _hash(self, codes: np.ndarray, classes: np.ndarray) -> None:
        """Sets the hashes of the words, and the counts by classes of characters."""
        self.hashes, self.powers, (self.symbols, self.plain_chars, self.unlettered) = compile_loop(_measure)(
            codes, classes, self.starts, self.ends
        )

    def of(self, text: str) -> list[str]:
        """The words as strings. text: the text that they come from."""
        return [text[a:b] for a, b in zip(self.starts.tolist(), self.ends.tolist())]

    def distinct(self, wanted: np.ndarray, enough: int) -> int:
        """How many of the words with the hashes `wanted` occur here; stops counting at `enough`."""
        count: int = compile_loop(_distinct)(self.hashes, wanted, enough)
        return count

    @functools.cached_property
    def repetition(self) -> list[int]:
        """Nine numbers of characters in repeated n-grams, n = 2 to 10.

        For 2- to 4-grams: the characters in all occurrences of the most frequent n-gram (the first one if
        several are equally frequent), spaces inside it included. For 5- to 10-grams: the characters in words
        of n-grams that have occurred before, without spaces, each word counted once.
        """
        sizes = self.ends - self.starts
        return repetition(self.hashes, self.powers, sizes, self.stride, self.codes, self.starts)

    @property
    def stride(self) -> int:
        """The pieces of which a word of an n-gram consists."""
        return 1


def repetition(
    hashes: np.ndarray,
    powers: np.ndarray,
    sizes: np.ndarray,
    stride: int,
    codes: np.ndarray = NO_CODES,
    starts: np.ndarray = NO_STARTS,
) -> list[int]:
    """The numbers of `WordStats.repetition`, for words of `stride` pieces each.

    hashes, powers, sizes: (W,) of the pieces; int32 sizes in characters. codes, starts: the text, and where
    each piece begins; they save time and change nothing.
    """
    if stride > 1:
        hashes, powers = of_pieces(hashes, powers, stride)
    chars: list[int] = compile_loop(_repetition)(
        hashes, powers, sizes, stride, codes, starts, _spread()
    ).tolist()
    return chars


@functools.cache
def _spread() -> np.uint64:
    """The odd number that multiplies the hash of an n-gram to give its slot; the same in a whole process.

    No result depends on it. If it were known, a text could be written whose n-grams all have one slot, and
    half a megabyte of it took two seconds, twice as much eight.
    """
    return np.uint64(secrets.randbits(64) | 1)


def of_pieces(hashes: np.ndarray, powers: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, powers) of the words of `stride` pieces that begin at each piece, one overlapping the next."""
    if stride == 1:
        return hashes, powers
    joined = hashes.copy()
    for k in range(1, min(stride, len(hashes))):
        joined[:-k] = joined[:-k] * powers[k:] + hashes[k:]
    products = powers.copy()
    for k in range(1, min(stride, len(powers))):
        products[:-k] *= powers[k:]
    return joined, products


@functools.cache
def _hashes(listed: str) -> np.ndarray:
    return word_hashes(listed.split(","))


def word_hashes(words: Iterable[str]) -> np.ndarray:
    """uint64: the hashes in `WordStats` of some words, without duplicates."""
    return np.array(
        [
            functools.reduce(lambda h, c: (h * int(PRIME) + ord(c) + 1) % 2**64, word, 0)
            for word in dict.fromkeys(words)
        ],
        np.uint64,
    )


def duplicates(items: Sequence[str]) -> tuple[int, int]:
    """(number of items that equal an earlier one, their characters)."""
    distinct = set(items)
    if len(distinct) == len(items):
        return 0, 0
    return len(items) - len(distinct), sum(map(len, items)) - sum(map(len, distinct))


def terminal() -> frozenset[str]:
    """The characters of TERMINAL."""
    spans = (span.partition("-") for span in TERMINAL.split())
    return frozenset(
        chr(c) for first, _, last in spans for c in range(int(first, 16), int(last or first, 16) + 1)
    )


@functools.cache
def character_classes(ends: str) -> np.ndarray:
    """uint8 (0x110000,): the bits SPACE to BREAK of every code point.

    ends: the characters with the bit ENDS; "" stands for TERMINAL.
    """
    bits = {"L": ALPHA, "Lu": ALPHA | UPPER, "Ll": ALPHA | LOWER, "P": PUNCT, "S": PUNCT}
    categories = [unicodedata.category(chr(code)) for code in range(LAST_CODE)]
    of_category = {c: bits.get(c, bits.get(c[0], 0)) for c in set(categories)}
    table = np.zeros(0x110000, np.uint8)
    table[:LAST_CODE] = np.fromiter(map(of_category.__getitem__, categories), np.uint8, LAST_CODE)
    table[[c for c in range(0x3001) if chr(c).isspace()]] |= SPACE
    table[[c for c in range(0x3001) if len(f"a{chr(c)}b".splitlines()) > 1]] |= BREAK
    table[[ord(c) for c in INNER_PUNCTUATION]] &= 0xFF ^ PUNCT
    table[[*CONTROLS, *map(ord, {*SYMBOLS, *terminal()})]] |= SYMBOL
    table[[ord(c) for c in ends or terminal()]] |= ENDS
    return table


def _split_at_spaces(codes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends), int32 each, of the words between whitespace."""
    n = len(codes)
    # the operating system allocates only the pages that are written
    starts, ends = np.empty((n + 1) // 2, np.int32), np.empty((n + 1) // 2, np.int32)
    count = i = 0
    while i < n:
        if classes[codes[i]] & SPACE:
            i += 1
            continue
        starts[count] = i
        while i < n and not classes[codes[i]] & SPACE:
            i += 1
        ends[count] = i
        count += 1
    return starts[:count], ends[:count]


def _split_apart(
    codes: np.ndarray, classes: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[int, int, int]]:
    """((starts, ends, hashes, powers), (symbols, plain_chars, unlettered)) of the words of `WordStats`.

    Punctuation is split off: each punctuation mark at either end of a chunk between spaces is a word
    (consecutive dots are one word); the rest of the chunk is split at punctuation between letters.
    """
    n = len(codes)
    # the operating system allocates only the pages that are written
    starts, ends = np.empty(n, np.int32), np.empty(n, np.int32)
    hashes, powers = np.empty(n, np.uint64), np.empty(n, np.uint64)
    symbols = plain_chars = unlettered = 0
    count = i = end = tail = 0
    while i < n:
        if i >= end:  # a chunk [i, end) begins
            if classes[codes[i]] & SPACE:
                i += 1
                continue
            # Most chunks are letters, or letters and a mark: they are split and hashed at once.
            value, j = np.uint64(0), i
            while j < n and classes[codes[j]] & ALPHA:
                value = value * PRIME + np.uint64(codes[j]) + ONE
                j += 1
            if j > i:
                marks = int(j < n and not classes[codes[j]] & SPACE)
                if not marks or (
                    (j + 1 == n or classes[codes[j + 1]] & SPACE)
                    and (
                        classes[codes[j]] & PUNCT or (codes[j] == 0x2E and not classes[codes[j - 1]] & UPPER)
                    )
                ):
                    starts[count], ends[count], hashes[count] = i, j, value
                    power = ONE
                    if j - i < len(POWERS):
                        power = POWERS[j - i]
                    else:
                        for _ in range(j - i):
                            power *= PRIME
                    powers[count] = power
                    plain_chars += j - i
                    count += 1
                    if marks:
                        starts[count], ends[count] = j, j + 1
                        hashes[count], powers[count] = np.uint64(codes[j]) + ONE, PRIME
                        if classes[codes[j]] & SYMBOL:
                            symbols += 1
                        else:
                            plain_chars += 1
                        unlettered += 1
                        count += 1
                    i = j + marks
                    continue
            end = max(i + 1, j)
            while end < n and not classes[codes[end]] & SPACE:
                end += 1
            tail = end  # where the punctuation at its end begins
            while tail > i + 1:
                last, before = codes[tail - 1], classes[codes[tail - 2]]
                # a full stop, but not that of `U.S.` and `J.`
                stop = last == 0x2E and (
                    not before & UPPER or (tail > i + 2 and classes[codes[tail - 3]] & UPPER)
                )
                if not (stop or classes[last] & PUNCT):
                    break
                tail -= 1
        code, left = codes[i], classes[codes[i - 1]] if i > 0 else 0
        quote = code == 0x27 or code == 0x2019
        j = i + 1
        if (
            i >= tail
            or (classes[code] & PUNCT and not quote)
            or (code == 0x2E and j < end and codes[j] == 0x2E)
        ):
            while code == 0x2E and j < end and codes[j] == 0x2E:
                j += 1
        elif quote and tail > i + 3 and not left & ALPHA:
            pass  # an opening quote, not a clitic
        elif left & ALPHA and (code == 0x2D or code == 0x2C or code == 0x2E or code == 0x7E or code == 0x2F):
            while j < tail and code == 0x2D and codes[j] == 0x2D:  # - , . ~ / at which the loop below stopped
                j += 1
        else:
            while j < tail:
                mark = codes[j]
                if classes[mark] & ALPHA:  # quick: nothing below splits at a letter
                    j += 1
                    continue
                before, after = classes[codes[j - 1]], classes[codes[j + 1]] if j + 1 < tail else 0
                first = codes[j + 1] | 0x20 if j + 1 < tail else 0
                second = codes[j + 2] | 0x20 if j + 2 < tail else 0
                if mark == 0x3A and before & ALPHA and first == 0x2F and second == 0x2F:  # a URL
                    j = tail
                    break
                if mark == 0x2E:
                    if first == 0x2E or (before & LOWER and after & UPPER):  # `well...so`, `end.Next`
                        break
                elif mark == 0x27 or mark == 0x2019:
                    if j + 2 == tail and first == 0x74 and codes[j - 1] | 0x20 == 0x6E:  # n't
                        if j - 1 > i:
                            j -= 1
                            break
                    elif j + 2 == tail and (first == 0x73 or first == 0x6D or first == 0x64):  # 's 'm 'd
                        break
                    elif j + 3 == tail and (
                        (first == 0x6C and second == 0x6C)
                        or ((first == 0x72 or first == 0x76) and second == 0x65)
                    ):
                        break  # 'll 're 've
                elif before & ALPHA and mark == 0x2D and first == 0x2D:
                    break  # `one--two`
                elif (
                    before & ALPHA
                    and after & ALPHA
                    and (
                        mark == 0x2C
                        or mark == 0x2D
                        or mark == 0x7E
                        or mark == 0x2F
                        or mark == 0x3A
                        or 0x3C <= mark <= 0x3E
                        or 0x2013 <= mark <= 0x2014
                    )
                ):  # , - ~ / : < = > and dashes
                    break
                j += 1
        value, power = np.uint64(0), ONE
        kinds_all, kinds_any = 0xFF, 0
        for k in range(i, j):
            value = value * PRIME + np.uint64(codes[k]) + ONE
            power *= PRIME
            kinds_all &= classes[codes[k]]
            kinds_any |= classes[codes[k]]
        if kinds_all & SYMBOL:
            symbols += 1
        else:
            plain_chars += j - i
        unlettered += int(not kinds_any & ALPHA)
        starts[count], ends[count], hashes[count], powers[count] = i, j, value, power
        count += 1
        i = j
    words = starts[:count], ends[:count], hashes[:count], powers[:count]
    return words, (symbols, plain_chars, unlettered)


def _measure(
    codes: np.ndarray, classes: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """(hashes, powers, (symbols, plain_chars, unlettered)) of `WordStats`."""
    hashes, powers = np.empty(len(starts), np.uint64), np.empty(len(starts), np.uint64)
    symbols = plain_chars = unlettered = 0
    for w in range(len(starts)):
        value, power = np.uint64(0), ONE
        kinds_all, kinds_any = 0xFF, 0
        for i in range(starts[w], ends[w]):
            value = value * PRIME + np.uint64(codes[i]) + ONE
            power *= PRIME
            kinds_all &= classes[codes[i]]
            kinds_any |= classes[codes[i]]
        hashes[w], powers[w] = value, power
        if kinds_all & SYMBOL:
            symbols += 1
        else:
            plain_chars += ends[w] - starts[w]
        if not kinds_any & ALPHA:
            unlettered += 1
    return hashes, powers, (symbols, plain_chars, unlettered)


def _line_counts(codes: np.ndarray, classes: np.ndarray, short_line_chars: int) -> np.ndarray:
    """int64 (6,): the counts of `TextStats.line_counts`."""
    out = np.zeros(6, np.int64)
    n = len(codes)
    start = begin = 0  # where the line of str.splitlines and the line of split("\n") begin
    blank = True  # whether the line of split("\n") is blank up to the current line of str.splitlines
    i = 0
    while i <= n:
        while i < n and not classes[codes[i]] & BREAK:
            i += 1
        code = codes[i] if i < n else 0x0A
        # the first and last character of the line that are not spaces
        first, last = start, i - 1
        while first < i and classes[codes[first]] & SPACE:
            first += 1
        while last > first and classes[codes[last]] & SPACE:
            last -= 1
        blank = blank and first == i
        # "\r\n" is one break
        if (i < n or start < n) and not (code == 0x0A and i > 0 and i < n and codes[i - 1] == 0x0D):
            out[0] += 1
            if first < i:
                out[1] += codes[first] == 0x2D or codes[first] == 0x2022
                out[2] += codes[last] == 0x2026 or (
                    last - start >= 2
                    and codes[last] == 0x2E
                    and codes[last - 1] == 0x2E
                    and codes[last - 2] == 0x2E
                )
        start = i + 1
        if code == 0x0A:
            if not blank:
                out[3] += 1
                out[4] += classes[codes[i - 1]] & ENDS != 0
                out[5] += i - begin <= short_line_chars
            begin, blank = i + 1, True
        i += 1
    return out


def _distinct(hashes: np.ndarray, wanted: np.ndarray, enough: int) -> int:
    found = np.zeros(len(wanted), np.bool_)
    count = 0
    for value in hashes:
        if count >= enough:
            break
        for w in range(len(wanted)):
            if value == wanted[w] and not found[w]:
                found[w] = True
                count += 1
    return count


def _repetition(
    hashes: np.ndarray,
    powers: np.ndarray,
    sizes: np.ndarray,
    stride: int,
    codes: np.ndarray,
    starts: np.ndarray,
    spread: np.uint64,
) -> np.ndarray:
    """int64 (9,): the numbers of `WordStats.repetition`.

    hashes, powers: of the words that begin at each piece. sizes: int32 (W,), characters of the pieces.
    stride: the pieces of a word. codes, starts: see `repetition`. spread: see _spread.
    """
    out = np.zeros(9, np.int64)
    words = len(hashes)
    sparse, bits = SPARSE if words < LARGE else 2, 4
    while 1 << bits < sparse * words:
        bits += 1
    all_bits = bits
    # hashes of the n-gram that begins at each word, joined with spaces and without
    joined, grams = np.empty(words, np.uint64), np.empty(words, np.uint64)
    counts = np.empty(words, np.int32)  # occurrences of an n-gram, at the position of the first one
    first = np.empty(words, np.int32)  # this position, for each n-gram
    places = np.empty(1 << bits, np.int32)  # a hash table: position of the first occurrence, or -1 if empty
    # The positions of n-grams, n = 2 to 4, that may occur twice: those whose n-gram of a word less does.
    # Longer n-grams are joined without spaces and may equal those of other words: they are left out only
    # where no two begin with the same characters.
    candidates, num_candidates = np.empty(words, np.int32), 0
    for n in range(2, 5):
        pieces, last = n * stride, (n - 1) * stride
        end = words - pieces + 1
        if n == 2:
            for i in range(end):
                candidates[i] = i
                joined[i] = hashes[i]
            num_candidates = max(0, end)
        while bits > 4 and 1 << (bits - 1) >= sparse * num_candidates:
            bits -= 1
        shift, mask = BITS - np.uint64(bits), np.uint64((1 << bits) - 1)
        places[: 1 << bits] = -1
        while num_candidates > 0 and candidates[num_candidates - 1] >= end:
            num_candidates -= 1
        top, most, repeated = np.int64(0), np.int64(1), 0
        for c in range(num_candidates):
            place = np.int64(candidates[c])
            at, behind = np.uint64(place), np.uint64(place + last)  # without a sign they need no test for it
            key = (joined[at] * PRIME + BLANK) * powers[behind] + hashes[behind]
            joined[at], counts[at] = key, 0
            slot = (key * spread) >> shift
            while places[slot] >= 0 and joined[np.uint64(places[slot])] != key:
                slot = (slot + ONE) & mask
            if places[slot] < 0:
                places[slot] = place
            first[at] = places[slot]
            counts[np.uint64(places[slot])] += 1
        for c in range(num_candidates):
            place = np.int64(candidates[c])
            at = np.uint64(place)
            if counts[at] > most:
                top, most = place, np.int64(counts[at])
            candidates[repeated] = place
            repeated += int(counts[np.uint64(first[at])] > 1)
        num_candidates = repeated
        if end > 0:
            chars = n - 1
            for k in range(top, top + pieces):
                chars += sizes[k]
            out[n - 2] = chars * most
    # The candidates begin as another n-gram does: in as many characters as every n-gram has, PREFIX_CHARS
    # at most. These are bytes of a number for each piece, the first one the highest.
    pieces = LEAST_LONG * stride
    end = max(0, words - pieces + 1)
    num_candidates = end
    for i in range(end):
        candidates[i] = i
    if len(starts) > 0 and end > 0:
        prefixes = joined  # the place is not needed any more
        window = np.int64(0)  # characters of an n-gram
        for k in range(pieces):
            window += np.int64(sizes[k])
        least = min(np.int64(PREFIX_CHARS), window)
        for i in range(pieces, words):
            window += np.int64(sizes[i]) - np.int64(sizes[i - pieces])
            least = min(least, window)
        prefix = np.uint64(0)
        for i in range(words - 1, -1, -1):
            at = np.uint64(i)
            begin, size = np.int64(starts[at]), np.int64(sizes[at])
            if size < PREFIX_CHARS:
                prefix >>= BYTE * np.uint64(size)
            else:
                size, prefix = np.int64(PREFIX_CHARS), np.uint64(0)
            for k in range(size):
                byte = np.uint64(codes[np.uint64(begin + k)]) & BYTE_MASK
                prefix |= byte << (BYTE * np.uint64(PREFIX_CHARS - 1 - k))
            prefixes[at] = prefix
        unused = BYTE * np.uint64(PREFIX_CHARS - least)
        shift, mask = BITS - np.uint64(all_bits), np.uint64((1 << all_bits) - 1)
        places[:] = -1
        for i in range(end):
            at = np.uint64(i)
            key = prefixes[at] >> unused
            prefixes[at], counts[at] = key, 0
            slot = (key * spread) >> shift
            while places[slot] >= 0 and prefixes[np.uint64(places[slot])] != key:
                slot = (slot + ONE) & mask
            if places[slot] < 0:
                places[slot] = i
            else:
                counts[at] = 1
                counts[np.uint64(places[slot])] = 1
        num_candidates = 0
        for i in range(end):
            candidates[num_candidates] = i
            num_candidates += int(counts[np.uint64(i)])
    bits = all_bits
    while bits > 4 and 1 << (bits - 1) >= sparse * num_candidates:
        bits -= 1
    shift, mask = BITS - np.uint64(bits), np.uint64((1 << bits) - 1)
    for n in range(LEAST_LONG, 11):
        pieces, last = n * stride, (n - 1) * stride
        end = words - pieces + 1
        for c in range(num_candidates):
            place = np.int64(candidates[c])
            if n == LEAST_LONG:
                gram = hashes[place]
                for k in range(place + stride, place + pieces, stride):
                    gram = gram * powers[k] + hashes[k]
                grams[place] = gram
            elif place < end:
                grams[place] = grams[place] * powers[place + last] + hashes[place + last]
        places[: 1 << bits] = -1
        free = np.int64(0)  # the place behind the last repeated n-gram
        for c in range(num_candidates):
            place = np.int64(candidates[c])
            if place < free or place >= end:
                continue
            slot = (grams[place] * spread) >> shift
            while places[slot] >= 0 and grams[places[slot]] != grams[place]:
                slot = (slot + ONE) & mask
            if places[slot] >= 0:
                for k in range(place, place + pieces):
                    out[n - 2] += sizes[k]
                free = place + pieces
            else:
                places[slot] = place
    return out
