"""Which HTML pages a parser of the HTML standard would take quadratic time for.

A parser keeps the elements that are open on a stack. For most tags it looks through that stack, and it opens
formatting elements such as `<b id=1>` again in each following paragraph. A page whose elements are closed is
parsed in linear time; 300,000 unclosed tags take half a minute. `quadratic_markup` reads the tags alone and
counts what is open, in linear time. Its count may be too high where tags are not nested, and is not too low:
a tag closes an element here only if it surely closes it in the tree. Every extractor of HTML asks it first.
Source: the HTML standard, sections 13.2.5 (tokenization) and 13.2.6 (tree construction).
"""

from __future__ import annotations

import math
import re
from collections import Counter

# A page of N tags has at most N levels, and at most (N / 2)^2 nodes, which is quick enough for a small N.
LARGE_TAGS = 8000
MAX_MEAN_DEPTH = 2000  # open elements at a tag, on average over a page
FARTHEST = 64  # levels up to an element that an end tag closes, in what is certain
MAX_NODES = 20_000_000  # of the tree of a page: 2 GB
# The parser takes quadratic time in the attributes of a tag and in the options of a list.
MAX_ATTRIBUTES, MAX_OPTIONS = 2000, 10_000

_SPACE = r"[ \t\n\f\r]"
_ATTRIBUTE = (
    rf"[^ \t\n\f\r/>][^ \t\n\f\r/>=]*+"
    rf"(?:{_SPACE}*+={_SPACE}*+(?:\"[^\"]*+(?:\"|\Z)|'[^']*+(?:'|\Z)|[^ \t\n\f\r>\"'][^ \t\n\f\r>]*+)?+)?+"
)
ATTRIBUTE = re.compile(_ATTRIBUTE)
TOKEN = re.compile(
    rf"<(?:(?P<end>/?)(?P<name>[a-zA-Z][^ \t\n\f\r/>]*+)"
    rf"(?P<attributes>(?:[ \t\n\f\r/]++|{_ATTRIBUTE})*+)(?:>|\Z)"
    r"|!--(?:-?>|.*?--!?>|.*\Z)|(?P<cdata>!\[CDATA\[)|[!?/][^>]*+(?:>|\Z))",
    re.DOTALL,
)
SCRIPT_MARK = re.compile(r"<!--(?:-*>)?|-->|<(/?)script(?=[ \t\n\f\r/>])", re.IGNORECASE | re.ASCII)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FORMATS = _words("a b big code em font i nobr s small strike strong tt u")
VOID = _words(
    "area base basefont bgsound br col embed frame hr image img input keygen link meta param source track wbr"
)
RAW_TEXT = _words("script style xmp iframe noembed noframes textarea title")
HEADINGS = _words("h1 h2 h3 h4 h5 h6")
CLOSES_P = HEADINGS | _words(
    "address article aside blockquote center details dialog dir div dl fieldset figcaption figure footer"
    " header hgroup main menu nav ol p search section summary ul pre listing form plaintext li dd dt"
)
# Elements whose end tag also closes what is open in them.
BLOCKS = (CLOSES_P - HEADINGS - _words("form li p plaintext")) | _words("applet button marquee object")
# Elements that end the search for an element to close, of each kind.
SCOPE = _words("applet caption marquee object table td template th")
TABLE_SCOPE = _words("table template")
CELLS, ROW_GROUPS = _words("td th"), _words("tbody tfoot thead")
TABLE_PARTS = CELLS | ROW_GROUPS | _words("caption colgroup tr")  # are ignored outside tables
SPECIAL = (
    SCOPE
    | CLOSES_P
    | ROW_GROUPS
    | _words("button colgroup frameset iframe noembed noframes noscript select tr xmp")
)
STAYS_OPEN = SPECIAL - {"dialog", "search"}  # when a formatting element around it ends
# Start tags that end SVG and MathML, and elements in them that have HTML inside.
BREAKOUT = (
    HEADINGS
    | (FORMATS - {"a", "font"})
    | _words(
        "blockquote body br center dd div dl dt embed head hr img li listing menu meta ol p pre ruby span sub"
        " sup table ul var"
    )
)
# Foreign elements have an asterisk before their names.
HTML_INSIDE = _words("*foreignobject *desc *title *mi *mo *mn *ms *mtext *annotation-xml")
BARRIERS = SCOPE | _words("math svg")  # may hide the end tag of a formatting element


def quadratic_markup(page: str) -> bool:
    """Whether the markup of a page would take quadratic time or memory."""
    tags = page.count("<")
    if len(page) > 2 * MAX_ATTRIBUTES and any(
        len(tag["attributes"]) > 2 * MAX_ATTRIBUTES
        and sum(1 for _ in ATTRIBUTE.finditer(tag["attributes"])) > MAX_ATTRIBUTES
        for tag in TOKEN.finditer(page)
        if tag["name"]
    ):
        return True
    if tags <= LARGE_TAGS:
        return False
    elements = OpenElements()
    elements.read(page, MAX_MEAN_DEPTH * tags)
    return (
        elements.options > MAX_OPTIONS
        or elements.total_depth > MAX_MEAN_DEPTH * tags
        or elements.most_formats * tags > MAX_NODES
    )


class OpenElements:
    """The stack of open elements, or more than it has."""

    def __init__(self) -> None:
        self.stack: list[str] = []
        self.count: Counter[str] = Counter()  # of the stack, by name
        self.floor = 0  # elements of the stack below this may have been closed
        self.foreign = 0  # elements of SVG or MathML in the stack
        self.blind = False  # what is a tag is no longer certain: nothing is closed
        self.options = self.total_depth = self.deepest = 0
        # Formatting elements: (stack's length, start tag) since the last barrier, by name; how many may be
        # open, and how many of them are opened again in each paragraph, of equal ones three.
        self.formats: dict[str, list[tuple[int, str]]] = {name: [] for name in FORMATS}
        self.equal: Counter[str] = Counter()
        self.open_formats = self.repeated = self.most_formats = 0

    def read(self, page: str, most: float = math.inf) -> None:
        """Reads the tags of a page, until the sum of the depths at them is above `most`."""
        at = 0
        while self.total_depth <= most and (token := TOKEN.search(page, at)) is not None:
            at = token.end()
            if token["cdata"]:
                at = self._after_cdata(page, at)
            if not token["name"]:
                continue
            name = token["name"]
            name = name.lower() if name.isascii() else name
            if token["end"]:
                if not self.blind:
                    self._end(name)
            elif name in RAW_TEXT and not self._in_foreign():
                at = self._after_raw_text(page, at, name)
            else:
                closed = token["attributes"].endswith("/")
                self._start(name, token[0], closed)
            depth = len(self.stack) + self.open_formats
            self.total_depth += depth
            self.deepest = max(self.deepest, depth)

    def _certain(self) -> bool:
        """Whether the top of the stack is the parser's current element."""
        return not self.blind and (len(self.stack) > self.floor or not self.stack)

    def _in_foreign(self) -> bool:
        return (
            self._certain()
            and bool(self.stack)
            and self.stack[-1][0] == "*"
            and (self.stack[-1] not in HTML_INSIDE)
        )

    def _push(self, name: str) -> None:
        self.stack.append(name)
        self.count[name] += 1
        self.foreign += name[0] == "*"

    def _pop_to(self, place: int) -> None:
        """Removes the elements from `place` on."""
        for name in self.stack[place:]:
            self.count[name] -= 1
            self.foreign -= name[0] == "*"
        del self.stack[place:]
        self.floor = min(self.floor, place)

    def _uncertain(self) -> None:
        self.floor = len(self.stack)

    def _find(self, names: frozenset[str] | set[str], barriers: frozenset[str]) -> int | None:
        """The place of the topmost of some elements; None where a barrier is above it, or there is none.

        If it may be among the elements that are not certain, nothing on the stack is from now on.
        """
        if not any(self.count[name] for name in names):
            return None
        for place in range(len(self.stack) - 1, max(self.floor, len(self.stack) - FARTHEST) - 1, -1):
            name = self.stack[place]
            if name in names:
                return place
            if name in barriers or name in HTML_INSIDE:
                return None
        self._uncertain()
        return None

    def _close(self, names: frozenset[str] | set[str], barriers: frozenset[str]) -> None:
        if not self.blind and (place := self._find(names, barriers)) is not None:
            self._pop_to(place)

    def _close_top(self, names: frozenset[str] | set[str]) -> None:
        """Closes the current element if it has one of the names."""
        if self._certain() and self.stack and self.stack[-1] in names:
            if self.open_formats:  # one of them may be the current element
                self._uncertain()
            else:
                self._pop_to(len(self.stack) - 1)

    def _start(self, name: str, tag: str, closed: bool) -> None:
        if self._in_foreign():
            if name not in BREAKOUT and not (name == "font" and len(tag) > len("<font>")):
                if not closed:
                    self._push(f"*{name}")
                return
            place = len(self.stack)
            while (
                place > self.floor
                and self.stack[place - 1][0] == "*"
                and (self.stack[place - 1] not in HTML_INSIDE)
            ):
                place -= 1
            self._pop_to(place)
        foreign = self.foreign > 0 and not self._certain()
        if name in FORMATS:
            self._start_format(name, tag)
        elif name in ("html", "head", "body"):
            pass
        elif name in VOID:
            if foreign and not closed:  # in SVG it would be open
                self._push(f"*{name}")
        elif name in ("svg", "math"):
            self._barrier()
            if not closed:
                self._push(f"*{name}")
        elif name not in TABLE_PARTS or foreign or self.count["table"] or self.count["template"]:
            if name in BARRIERS:
                self._barrier()
            self.options += name == "option"
            self.blind = self.blind or name == "frameset"  # hides most tags
            self._close_implied(name)
            self._push(name)
        if foreign:  # it may be one of SVG
            self._uncertain()

    def _close_implied(self, name: str) -> None:
        """Closes the elements that a start tag closes."""
        if name == "li":
            self._close({"li"}, SPECIAL - {"li", "address", "div", "p"})
        elif name in ("dd", "dt"):
            self._close({"dd", "dt"}, SPECIAL - {"dd", "dt", "address", "div", "p"})
        if name in CLOSES_P:
            self._close({"p"}, SCOPE | {"button"})
        if name in HEADINGS:
            self._close_top(HEADINGS)
        elif name in ("option", "optgroup"):
            self._close_top({"option"})
        elif name == "button":
            self._close({"button"}, SCOPE)
        elif self.count["template"]:
            pass  # parts of tables may be ignored in it
        elif name in CELLS:
            self._close(CELLS, TABLE_SCOPE | {"tr"})
        elif name == "tr":
            self._close({"tr"}, TABLE_SCOPE | ROW_GROUPS)
        elif name in ROW_GROUPS:
            self._close(ROW_GROUPS, TABLE_SCOPE)

    def _end(self, name: str) -> None:
        if self.count["select"] and name not in ("select", "option", "optgroup"):
            return  # most tags are ignored in it
        if self._in_foreign():
            if name in ("p", "br"):
                self._uncertain()
                return
            for place in range(len(self.stack) - 1, max(self.floor, len(self.stack) - FARTHEST) - 1, -1):
                if self.stack[place] == f"*{name}":
                    self._pop_to(place)
                    return
                if self.stack[place][0] != "*":
                    break
        if name in FORMATS:
            self._end_format(name)
            if self.foreign:
                self._uncertain()
        elif name in VOID or name in ("html", "head", "body"):
            pass
        elif name == "p":
            self._close({"p"}, SCOPE | {"button"})
        elif name == "li":
            self._close({"li"}, SCOPE | {"ol", "ul"})
        elif name in HEADINGS:
            self._close(HEADINGS, SCOPE)
        elif name in CELLS or name in ROW_GROUPS or name in ("caption", "table", "tr"):
            self._close({name}, TABLE_SCOPE - {name})
        elif name == "form":
            if (form := self._find({"form"}, SCOPE)) is not None:
                del self.stack[form]
                self.count["form"] -= 1
                self.floor = min(self.floor, len(self.stack))
        elif name in BLOCKS:
            self._close({name}, SCOPE - {name})
        else:
            self._close({name, f"*{name}"}, SPECIAL - {name})

    def _start_format(self, name: str, tag: str) -> None:
        self.formats[name].append((len(self.stack), tag))
        self.equal[tag] += 1
        self.open_formats += 1
        self.repeated += self.equal[tag] <= 3
        self.most_formats = max(self.most_formats, self.repeated)

    def _end_format(self, name: str) -> None:
        """Ends a formatting element if no other that is open could hide its end tag."""
        if not self.open_formats:
            return
        if (started := self.formats[name]) and len(self.stack) - started[-1][0] < 8:
            height, tag = started.pop()
            if any(inner not in STAYS_OPEN for inner in self.stack[height:]):
                self._uncertain()
            self.open_formats -= 1
            self.repeated -= self.equal[tag] <= 3
            self.equal[tag] -= 1
        else:
            self._uncertain()

    def _barrier(self) -> None:
        for started in self.formats.values():
            started.clear()

    def _after_cdata(self, page: str, at: int) -> int:
        """A section in SVG ends with `]]>`; elsewhere it is a comment, which ends with `>`."""
        comment = page.find(">", at) + 1 or len(page)
        if self.blind or not self.foreign:
            return comment
        section = page.find("]]>", at) + 3
        section = section if section > 2 else len(page)
        if section != comment and not self._in_foreign():
            self.blind = True
            return at
        return section

    def _after_raw_text(self, page: str, at: int, name: str) -> int:
        """The end of the content of an element in which no tags are known but its own end tag."""
        if self.blind:
            self._push(name)
            return at
        end = end_of_script(page, at) if name == "script" else _end_of_raw_text(page, at, name)
        uncertain = (self.foreign and not self._certain()) or self.count["select"] or self.count["frameset"]
        if uncertain and page.find("<", at, end) >= 0:
            self.blind = True
        if self.blind:
            self._push(name)
            return at
        return end


def _end_of_raw_text(page: str, at: int, name: str) -> int:
    found = RAW_ENDS[name].search(page, at)
    return found.start() if found else len(page)


RAW_ENDS = {
    name: re.compile(rf"</{name}(?=[ \t\n\f\r/>])", re.IGNORECASE | re.ASCII)
    for name in RAW_TEXT - {"script"}
}


def end_of_script(page: str, at: int) -> int:
    """The end tag of a script; in `<!-- <script>` the next end tag is that of the inner one."""
    in_comment = inner = False
    for mark in SCRIPT_MARK.finditer(page, at):
        text = mark[0]
        if text == "-->":
            in_comment = inner = False
        elif text == "<!--":
            in_comment = True
        elif text.startswith("<!--"):  # is over at once
            continue
        elif not mark[1]:
            inner = inner or in_comment
        elif inner:
            inner = False
        else:
            return mark.start()
    return len(page)
