"""Texts that repeat one unit, on which bad algorithms take quadratic time, and a measure of cost.

A regular expression that begins a match at every space of a run, a parser that reads on to the end from every
open bracket, a sort of combining marks by insertion: they are fast on prose, and take hours on a long text of
one repeated unit. `builders` makes such texts of any length; `excess`
compares the CPU time of two lengths.
"""

import functools
import gc
import itertools
import time
from collections.abc import Callable

from mt.core.config import UserError

# fmt: off
SIMPLE = [
    # white space and line ends
    ' ', '\t', '\n', '\r', '\r\n', ' \n', '\n ', '\n\n ', 'a ', 'a  ', 'a\n', ' a', '\x0b', '\x1f', '\x85',
    '\xa0', '\u2028', '\u3000', ' \t', '\ufeff',
    # combining marks, joiners and variation selectors
    '\u0301', '\u0301\u0327', '\u0345\u0315\u0301\u0327\u05b0', 'e\u0301', '\u0308', '\u3099\u0301',
    '\uff9e\u0301', '\u0f73\u0301', '\u094d', '\u0e38\u0e48', '\u1161', '\u1100\u1161', '\u200d', '\u200b',
    '\ufe0f', '\xad', '\U0001f469\u200d', '\U0001f44d\U0001f3fd', '\U0001f1e9',
    # brackets and quotes
    '(', ')', '[', ']', '{', '}', '<', '>', '()', '( ', ' )', '(,', '[1', '[[1]', '[1]', "'", '"', '`',
    '``', "''", " '", '" ', "' ", '\u2018', '\u2019', '\u201c', '\u201d', '("', '."', '.) ', '\xab', "''' ",
    '(a ', 's "',
    # HTML
    '<div>', '</div>', '<p>', '<b>', '<b><p>', '<i>a', '<a href=x>', '<a href=', '<a href="', '<table>',
    '<tr><td>', '<ul><li>', '<li>', '<!--', '-->', '<!', '<![CDATA[', '<script>', '<title>', '<form>',
    '<font color=red>', '<br>', '<span a=', '<svg>', '<math>', '<select>', '<textarea>', '<h1>', '<pre>',
    '<td>a', '<article>', '<section><p>a', '<div class=a>b', '<a>', '<button>', '<nobr>', '<!doctype ',
    '<?', '<a b', '<div\n', '<p>a</p>', '<div></div>', '</', '</a', '<template>', '<noscript>',
    '<table><a>', '<base>',
    # wikitext
    '{{', '}}', '[[', ']]', '{{{', '}}}', '{|', '|}', '{|\n|', '\n|-', '\n||', '\n|a', "'''''", "'''a",
    '==', '\n==', '\n==a==\n', '= ', '=', '*', '\n*', '\n:', '\n;', '\n#', ';a:', '[http://a ', 'http://',
    '[http://', 'http://a.b/', '<ref>', '<ref', '<ref name=', '<nowiki>', '{{a|', '[[a|', '[[a', '{{a}}',
    '[[a]]', '[[a|b]] ', '{{a|b=', '{{a|{{b}}', '__A', '__', '~~~~', '-{', '!!', '|', '||', '<br/',
    '\n----', '[[File:a|', '<math>a', '[[:a', '{{#if:',
    # entities and mojibake
    '&', '&amp;', '&amp', 'amp;', '&#', '&#x', '&#65;', '&lt;', '&nbsp;', '&a', '&semi', '&#2;', ';',
    '\xc3', '\xc2', '\xc3\xa9', '\xc2\xb3', '\xe2\u20ac\u0153', '\xc2\xc3', '\xc3 ', '\x80', '\xc3\x83',
    '\xb3\xc2', '\u0432\u0402', '\u251c\xed',
    # digits, dots, addresses
    '1', '1.', '1,', '1 ', '1-', '+1', '+1 ', '+', '-', '--', '- ', '(1', '123-456-', '1.1.1.1.', ':', '1:',
    'a:', '::', 'f:', ': ', '0', '00', '(212) ', '+1234567890123456789012345678901234567890',
    '+1-23-45-67-89-', '@', 'a@', '@a', 'a@a.', 'x@a-', 'a.', '.', '. ', '..', '...', '.a', ' . ', '!', '?',
    '?!', '!"', '!)', 'a. ', 'A. ', 'A.', 'Mr. ', 'a! ', 'a.) ', ', ', ',', '; ', ' ,', ' ;a', '/', '//',
    '\\', 'a/', '%', '%20', '%C3', '%%', 'https://a.b/', 'www.', 'a_', '_', '\\u', '\\ud800', '\ud800',
    '\udc00', '~', '#', '# ', '$', '$ 1', '*a*', '^', '\x00', '\x07', '\x1b[', '\x1b[1;', '\x1b[m', '\x02',
    '\x7f',
    # words and letters
    'a', 'A', 'aA', 'Aa', 'ab', '\xe9', 'a\xe9', '\u4e2d', '\u3042\u30a2', '\u03a3', '\u03a3.', '\u0130',
    '\xdf', '\ufb01', '\uff41', '\u0e01', '\u0627', '\uac00', '\ufffd', '\uffff', '\U00020000', 'acgt',
    "can't ", "n't", " n't", "'s", 'I ', 'A b', 'the ', "don't ", ' @-@ ', '= = ', ' \xb0 ', '<unk>',
    '<|endoftext|>', '[MASK]', '##', '\u2581', '\u262f', ' \u262f', 'javascript ', 'lorem ipsum ', 'b\xfcc',
    "do n't ", " '' ", '\x1a', '<~>',
]
# fmt: on
# (before the repeated units, after them): a run at the end, a run inside a word, a run inside a line.
FRAMES = (("", ""), ("a", "a"), ("Aa ", " a \n"))


def _nested(left: str, right: str) -> Callable[[int], str]:
    return lambda chars: left * (count := chars // len(left + right)) + right * count


def _numbered(pattern: str) -> Callable[[int], str]:
    """The pattern with the numbers 0, 1, ... for `%d`: units that are all different."""
    return lambda chars: "".join(pattern % i for i in range(chars // (len(pattern) + 3)))


def _random_word(alphabet: str) -> Callable[[int], str]:
    """One word of letters in no order, in which few pairs repeat."""
    step = 0x9E3779B97F4A7C15
    return lambda chars: "".join(
        alphabet[((i * i * step) >> 40) % len(alphabet)] for i in range(1, chars + 1)
    )


SHAPES: dict[str, Callable[[int], str]] = {
    **{
        f"nested {left}{right}": _nested(left, right)
        for left, right in (
            *itertools.pairwise("()[]{}"),
            ("<div>", "</div>"),
            ("<b>", "</b>"),
            ("<ul><li>", "</li></ul>"),
            ("<table><tr><td>", "</td></tr></table>"),
            ("<p><a href=x>", "</a></p>"),
            ("[[", "]]"),
            ("[[a|", "]]"),
            ("{{", "}}"),
            ("{{a|", "}}"),
            ("{{{", "}}}"),
            ("{|\n|", "\n|}\n"),
            ("[http://a ", "]"),
            ("<ref>", "</ref>"),
            ("''", "''"),
            ("'''a", "'''"),
            ("\u201c", "\u201d"),
            ('" ', ' "'),
            ("\xc2", "\xb3"),
            ("Ã", "\xb3"),
        )
    },
    "open, then closed once [[": lambda chars: "[[" * (chars // 2) + "]]",
    "open, then closed once {{": lambda chars: "{{" * (chars // 2) + "}}",
    "open, then closed once <b>": lambda chars: "<b>" * (chars // 3) + "</b>",
    "chain of &amp;": lambda chars: "&" + "amp;" * (chars // 4) + "lt;",
    "chain of &semi;": lambda chars: "&amp" + "&semi" * (chars // 5) + ";",
    "chain of mojibake": lambda chars: "\xc2" * (chars - 1) + "\xb3",
    "different tags": _numbered("<b id=%d>"),
    "different tags, then paragraphs": lambda chars: (
        _numbered("<b id=%d>")(chars // 2) + "<p>a" * (chars // 8)
    ),
    "different paragraphs": _numbered("<p id=%d>a"),
    "different unknown tags": _numbered("<x%d>"),
    "different attributes": lambda chars: "<a " + _numbered("a%d=1 ")(chars),
    "different links": _numbered("[[a%d|b"),
    "different entities": _numbered("&a%d;"),
    "different words": _numbered("w%d "),
    "different lines": _numbered("line %d\n"),
    "different digits": _numbered("%d."),
    "one base, many marks": lambda chars: "e" + "\u0315\u0301\u0327" * (chars // 3),
    "marks in falling order": lambda chars: (
        "e" + "\u0315" * (chars // 3) + "\u0301" * (chars // 3) + "\u0327" * (chars // 3)
    ),
    "a word of letters": _random_word("abcdefghijklmnopqrstuvwxyz"),
    "a word of DNA": _random_word("ACGT"),
    "a word of digits": _random_word("0123456789"),
    "Chinese without spaces": _random_word("".join(map(chr, range(0x4E00, 0x5600)))),
    "symbols without spaces": _random_word("!#$%&*+/=?@^|~"),
    "brackets in no order": _random_word("()[]{}<>"),
    "wikitext in no order": _random_word("[]{}|=<>'\n"),
}


@functools.cache
def builders(frames: tuple[tuple[str, str], ...] = FRAMES) -> dict[str, Callable[[int], str]]:
    """{name: function of a number of characters that returns a text of about this length}."""
    found = dict(SHAPES)
    for unit in SIMPLE:
        for before, after in frames:
            found[f"{before!r} {unit!r} {after!r}"] = functools.partial(_framed, unit, before, after)
    return found


def _framed(unit: str, before: str, after: str, chars: int) -> str:
    return before + unit * (chars // len(unit)) + after


def cost(function: Callable[[str], object], text: str, repeats: int = 1) -> float:
    """The least CPU time of some calls, in seconds, of all threads of this process.

    Half a pair of surrogates is no text for some functions, which may refuse it. The garbage collector is
    off meanwhile: it visits all objects of the process, so its time depends on the tests that ran before.
    """
    least = float("inf")
    gc.disable()
    try:
        for _ in range(repeats):
            start = time.process_time()
            try:
                function(text)
            except (UnicodeError, TypeError, RuntimeError, UserError):
                assert not text.isascii()
            least = min(least, time.process_time() - start)
    finally:
        gc.enable()
    return least


def excess(
    function: Callable[[str], object], text: Callable[[int], str], chars: int, negligible: float
) -> str | None:
    """Figures if the CPU time grows too fast from chars / 4 to chars characters, otherwise None.

    Too fast is more than threefold when the text doubles, so ninefold here: linear time grows fourfold,
    quadratic time sixteenfold. Less than `negligible` seconds at `chars` is not measured further. A busy
    machine can slow one measurement, so three lengths have to agree, and each is measured three times.
    """
    if cost(function, text(chars)) < negligible:
        return None
    figures = []
    for n in (chars, 2 * chars, 4 * chars):
        less, more = (cost(function, text(count), 3) for count in (n // 4, n))
        figures.append(f"{n // 4:,}: {less:.4f} s, {n:,}: {more:.4f} s")
        if more < 9 * less:
            return None
    return "; ".join(figures)
