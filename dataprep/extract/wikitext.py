"""The text of a page of Wikipedia: what a reader sees of its wikitext, one line for each paragraph.

The steps are MediaWiki's: comments and tags (wikitext_tags.py), templates and links (mwparserfromhell, after
wikitext_markup.py has hidden what would take it quadratic time), then quotes and lines. Kept as they are
written: `<math>`, `<code>`, `<nowiki>`, `<pre>`, `<syntaxhighlight>`. Templates that carry words are expanded
(templates.py), and functions of what is in the article are evaluated (parser_functions.py). Other templates,
tables, references, files, categories and links to other languages are dropped and counted by kind, and so are
headings without text under them.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import editions, parser_functions, templates, wikitext_markup
from .template_call import Call, normalize_name
from .wikitext_tags import BREAK, CONTROLS, HIDDEN, KEPT, REMOVED, SHOWN, decode, resolve

if TYPE_CHECKING:
    from mwparserfromhell.nodes import Argument, Tag, Template, Wikilink
    from mwparserfromhell.wikicode import Wikicode

# Changes whenever another text is made of the same page: part of the key of an output.
TEXT_RULES = "expanded templates and functions, code and poems as written"
# Prefixes that every Wikipedia accepts in addition to those in its own language, and the kind of their pages.
PREFIXES = {"file": "file", "image": "file", "media": "file", "category": "category", "template": "template"}
OTHER_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*|simple")
_SPACES = str.maketrans({BREAK: "\n", "\u00a0": " ", "\u202f": " "})
HEADING = "\x02"  # marks a heading, repeated as often as its level
MAX_KINDS = 1_000  # of dropped things that are counted by their names
# Characters of all templates of a page after their expansion; MediaWiki allows two million bytes.
MAX_EXPANDED = 8 << 20
MAX_NAME = 80  # characters of a template's name in a count
OTHERS = "template:(others)"
_PAGE_NAMES = frozenset(("PAGENAME", "FULLPAGENAME", "BASEPAGENAME", "SUBPAGENAME"))
# -{...}- of the language converter, with no markup of its own kind inside.
CONVERTED = re.compile(r"-\{(?!\{)((?:[^{}]|\{\{[^{}]*+\}\})*+)\}-")
CONVERSION_FLAGS = re.compile(r"[A-Z;\- ]*|[a-z;\- ]+")
CONVERSION = re.compile(r"(?:^|;)\s*+(?:[^;:=>]*+=>\s*+)?+([a-zA-Z]{2,3}(?:-[a-zA-Z]+)?+)\s*+:([^;]*+)")
_QUOTES = re.compile("('{2,})")
# Lines of tables and templates that are not closed, or that another template closes.
_REMAINS = re.compile(r"\{\{|\{\||\}\}|\|\}|\|[-+]|\|(?!\|)[^|]*\|\||!(?!!)[^!]*!!|\| *[\w -]+= *")


class ExpansionTooLong(ValueError):
    """The templates of a page become far more text than MediaWiki expands."""


def plain_text(
    wikitext: str,
    prefixes: dict[str, str] = PREFIXES,
    *,
    language: str = editions.DEFAULT,
    title: str = "",
    dropped: Counter[str] | None = None,
) -> str:
    """What a reader sees of a page: one line for each paragraph, heading and list item.

    prefixes: {lower-case prefix of a page's name: "file", "category" or "template"}. language: the edition
    of Wikipedia. title: of the page. dropped: gets the counts, by kind, of what is left out.

    Raises ExpansionTooLong: a short page could name its own long title a million times.
    """
    page = _Page(prefixes, editions.edition(language), title, Counter() if dropped is None else dropped)
    text = page.text(resolve(wikitext, page.kept, page.dropped))
    bound(page.dropped)
    return text


def text_rules() -> str:
    """Identifies the rules by which a text is made, the tables of templates included."""
    return f"{TEXT_RULES}, {editions.rules_digest()}"


def bound(dropped: Counter[str], kinds: int = MAX_KINDS, left: int = MAX_KINDS // 2) -> None:
    """Adds up the rarest templates of a count that has more than so many kinds; `left` kinds are left.

    What is no template is one of few kinds, and stays.
    """
    if len(dropped) <= kinds:
        return
    ranked = sorted(dropped.items(), key=lambda item: (":" in item[0], -item[1], item[0]))
    for name, count in ranked[left:]:
        if ":" in name and name != OTHERS:
            del dropped[name]
            dropped[OTHERS] += count


class _Page:
    """A page while its text is made. kept: texts set aside. dropped: counts by kind."""

    def __init__(
        self, prefixes: dict[str, str], edition: editions.Edition, title: str, dropped: Counter[str]
    ):
        self._prefixes, self._edition, self._title = prefixes, edition, title
        self.kept: list[str] = []
        self.dropped = dropped
        self._expanded = 0  # characters of templates so far, those inside of others more than once

    def text(self, wikitext: str) -> str:
        """The text of wikitext without tags."""
        import mwparserfromhell

        pieces: list[str] = []
        if self._edition.variants:
            wikitext = CONVERTED.sub(self._variant, wikitext)
        if "{{#" in wikitext:  # the parser takes no `>` in the name of a template, so in no condition
            wikitext = wikitext.replace(">", ">".translate(HIDDEN))
        for piece in wikitext_markup.split(self._shorter(wikitext)):
            self._flatten(mwparserfromhell.parse(piece, skip_style_tags=True), pieces)
        text = "".join(pieces)
        if "''" in text:
            text = "\n".join(map(without_quotes, text.split("\n")))
        if "__" in text:
            text = editions.magic_words().sub(self._magic_word, text)
        text = without_remains(text.translate(_SPACES))
        lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n")]
        text = self._drop_empty_sections(lines).translate(SHOWN)
        text = KEPT.sub(lambda number: self.kept[int(number[1])], text)
        return text.encode("utf-8", "replace").decode()  # half a pair of surrogates is no character

    def _variant(self, markup: re.Match[str]) -> str:
        """The text of `-{zh-hans:a; zh-hant:b}-`, of which a reader sees one variant of the writing."""
        whole: str = markup[1]
        flags, bar, rule = whole.partition("|")
        if not bar or not CONVERSION_FLAGS.fullmatch(flags):
            flags, rule = "", whole  # no flags, or the bar of a template or a link
        if set(flags) & set("HT-"):
            self.dropped["language_conversion"] += 1
            return ""
        texts: dict[str, str] = {code.lower(): text.strip() for code, text in CONVERSION.findall(rule)}
        for code in self._edition.variants:
            if code in texts:
                return texts[code]
        return rule

    def _shorter(self, wikitext: str) -> str:
        """The wikitext without the tables and templates that are dropped in any case."""
        pieces: list[str] = []
        place = 0
        for start, end in wikitext_markup.outermost(wikitext, self._is_dropped):
            pieces.append(wikitext[place:start])
            if wikitext[start + 1] == "|":
                self._drop("table", pieces)
            else:
                self._drop_template(re.split(r"\||\}\}", wikitext[start + 2 : end], maxsplit=1)[0], pieces)
            place = end
        return "".join([*pieces, wikitext[place:]])

    def _is_dropped(self, written: str) -> bool:
        """Whether a template is dropped, whatever its arguments are."""
        if ":" in written or "\x0e" in written or written.strip() in _PAGE_NAMES:
            return False
        return not templates.is_known(normalize_name(written), self._edition.code)

    def _drop_template(self, written: str, pieces: list[str]) -> None:
        name = normalize_name(written)
        self._drop(f"template:{name[:1].upper()}{name[1:MAX_NAME]}", pieces)

    def _magic_word(self, word: re.Match[str]) -> str:
        self.dropped["magic_word"] += 1
        return ""

    def _drop(self, kind: str, pieces: list[str]) -> None:
        self.dropped[kind.translate(SHOWN).translate(CONTROLS)] += 1
        pieces.append(REMOVED)

    def _flatten(self, code: Wikicode, pieces: list[str]) -> None:
        """Appends the visible text of parsed wikitext."""
        from mwparserfromhell import nodes

        for node in code.nodes:
            if isinstance(node, nodes.Text):
                pieces.append(node.value)
            elif isinstance(node, nodes.Wikilink):
                self._flatten_link(node, pieces)
            elif isinstance(node, nodes.Template):
                self._flatten_template(node, pieces)
            elif isinstance(node, nodes.ExternalLink):
                if not node.brackets:
                    pieces.append(str(node.url))
                elif node.title is not None:
                    self._flatten(node.title, pieces)
                else:
                    pieces.append(REMOVED)  # a number in brackets
            elif isinstance(node, nodes.HTMLEntity):
                pieces.append(decode(str(node)).replace("\n", " ").translate(HIDDEN))
            elif isinstance(node, nodes.Heading):
                pieces.append(HEADING * node.level)
                pieces.append(self._string(node.title).replace(BREAK, " "))
            elif isinstance(node, nodes.Tag):
                self._flatten_tag(node, pieces)
            elif isinstance(node, nodes.Argument):
                self._flatten_argument(node, pieces)

    def _string(self, code: Wikicode) -> str:
        pieces: list[str] = []
        self._flatten(code, pieces)
        return "".join(pieces)

    def _flatten_tag(self, node: Tag, pieces: list[str]) -> None:
        """Tables, marks of lists and horizontal lines: other tags are resolved before the parser runs."""
        if node.tag == "table":
            self._drop("table", pieces)
        elif node.wiki_markup == ":" and pieces and pieces[-1][-1:] not in ("\n", ""):
            pieces.append(BREAK)  # a definition behind its term
        elif node.contents is not None and not node.wiki_markup:
            self._flatten(node.contents, pieces)

    def _flatten_argument(self, node: Argument, pieces: list[str]) -> None:
        """`{{{name|default}}}` has its default where no template is."""
        if node.default is not None:
            self._flatten(node.default, pieces)
        else:
            self._drop("argument", pieces)

    def _flatten_link(self, node: Wikilink, pieces: list[str]) -> None:
        """Appends the label of `[[page|label]]`; nothing for files, categories and other languages."""
        target = str(node.title).strip()
        prefix, colon, _ = target.partition(":")
        if colon and prefix:
            kind = self._prefixes.get(prefix.strip().lower())
            if kind in ("file", "category"):
                self._drop(kind, pieces)
                return
            if OTHER_LANGUAGE.fullmatch(prefix):
                self._drop("interlanguage_link", pieces)
                return
        if node.text is not None:
            self._flatten(node.text, pieces)
        else:
            label = self._string(node.title)
            pieces.append(label.lstrip().removeprefix(":") if target.startswith(":") else label)

    def _flatten_template(self, node: Template, pieces: list[str]) -> None:
        """Appends the words of a template, or drops it and counts it by its name."""
        name = self._string(node.name)
        written = name.strip()
        prefix, colon, rest = written.partition(":")
        prefix = prefix.strip().lower()
        if colon and parser_functions.is_function(prefix):
            # not of `written`: strip takes the mark of what is removed too
            text = self._function(prefix, name.partition(":")[2], node)
            if text is None:
                self._drop(f"function:{prefix}", pieces)
            else:
                self._append_expansion(text, pieces)
            return
        if colon and (prefix in ("subst", "safesubst") or self._prefixes.get(prefix) == "template"):
            written = rest
        if written in _PAGE_NAMES and not node.params:
            self._append_expansion(self._title, pieces)
            return
        arguments = {
            str(parameter.name).strip(): functools.partial(self._string, parameter.value)
            for parameter in node.params
        }
        shown = templates.expand(Call(written, arguments, self._edition))
        if shown is not None:
            self._append_expansion(shown, pieces)
        elif written.startswith("#") or (colon and prefix.upper() == written.partition(":")[0]):
            self._drop(f"function:{written.partition(':')[0][:MAX_NAME]}", pieces)
        else:
            self._drop_template(written, pieces)

    def _append_expansion(self, text: str, pieces: list[str]) -> None:
        self._expanded += len(text)
        if self._expanded > MAX_EXPANDED:
            raise ExpansionTooLong(f"templates become more than {MAX_EXPANDED:,} characters")
        pieces.append(text)

    def _function(self, name: str, first: str, node: Template) -> str | None:
        """The text of a function of MediaWiki, or None if the article does not tell it."""
        arguments = [
            parser_functions.Argument(
                functools.partial(self._string, parameter.name) if parameter.showkey else None,
                functools.partial(self._string, parameter.value),
            )
            for parameter in node.params
        ]
        return parser_functions.call(name, first, arguments, self._edition)

    def _drop_empty_sections(self, lines: list[str]) -> str:
        """Joins lines; drops remains of tables and templates, and headings without text under them."""
        kept: list[str] = []
        pending: list[str] = []  # headings, outermost first, under which there is no text yet
        empty = 0
        in_unclosed = False  # after a table or template that is not closed, of which rows follow
        for line in lines:
            if line.startswith(HEADING):
                level = len(line) - len(line.lstrip(HEADING))
                above = [h for h in pending if len(h) - len(h.lstrip(HEADING)) < level]
                empty += len(pending) - len(above)
                pending = [*above, line]
                in_unclosed = False
            elif line and (_REMAINS.match(line) or line.endswith("}}") or (in_unclosed and line[0] in "|!")):
                self.dropped["unclosed_markup"] += 1
                in_unclosed = in_unclosed or line.startswith(("{{", "{|"))
            elif line:
                kept += [h.lstrip(HEADING).strip() for h in pending] + [line]
                pending = []
        if empty := empty + len(pending):
            self.dropped["empty_section"] += empty
        return "\n".join(kept)


def without_quotes(line: str) -> str:
    """A line without the apostrophes of italics and bold type, by MediaWiki's rules (Parser::doQuotes).

    Four are one and bold type, more than five are some and both. If a line has an odd number of both kinds,
    one of those of bold type is an apostrophe and italics: `l'''Iliade''` is l'Iliade.
    """
    parts = _QUOTES.split(line)
    if len(parts) == 1:
        return line
    num_italics = num_bold = 0
    for i in range(1, len(parts), 2):
        length = len(parts[i])
        spare = 1 if length == 4 else max(0, length - 5)
        parts[i - 1] += "'" * spare
        parts[i] = "'" * (length - spare)
        num_italics += length - spare in (2, 5)
        num_bold += length - spare in (3, 5)
    if num_italics % 2 and num_bold % 2:
        bold = [i for i in range(1, len(parts), 2) if len(parts[i]) == 3]
        before = [parts[i - 1] for i in bold]
        of_one_letter = [i for i, text in zip(bold, before, strict=True) if text[-2:-1] == " " != text[-1:]]
        of_more = [i for i, text in zip(bold, before, strict=True) if text[-1:] != " " and text[-2:-1] != " "]
        if chosen := [*of_one_letter[:1], *of_more[:1], *bold[:1]]:
            parts[chosen[0] - 1] += "'"
    return "".join(parts[::2])


def without_remains(text: str) -> str:
    """Tidies what removed templates and references leave: "( ; born 1912)", "word ( )", "word , word".

    Only where `REMOVED` marks them: brackets and spaces of the author stay.
    """
    if REMOVED not in text:
        return text
    # A match begins only where a run of such characters begins, so that each is read once.
    text = re.sub(rf"(?:(?<![ \t])[ \t]++)?\([\s,;:{REMOVED}]*+\)", _without_mark(REMOVED), text)
    text = re.sub(rf"\([\s{REMOVED}]*+[,;:][\s,;:{REMOVED}]*+", _without_mark("("), text)
    text = re.sub(rf"(?<![\s,;:{REMOVED}])[\s,;:{REMOVED}]++\)", _without_mark(")"), text)
    text = re.sub(rf"([,;])[ \t]*+{REMOVED}[ \t{REMOVED}]*+[,;]", r"\1", text)
    text = re.sub(
        rf"(?<![ \t{REMOVED}])[ \t{REMOVED}]++(?=[,.;:)](?:\s|$|{REMOVED}))", _without_mark(""), text
    )
    return text.replace(REMOVED, "")


def _without_mark(rest: str) -> Callable[[re.Match[str]], str]:
    """The replacement of a match in which something was removed; other matches stay."""
    return lambda match: rest if REMOVED in match[0] else match[0]
