"""The compiled loops of html_blocks.py: the tags of a page, and then its elements and blocks.

A page is an array of its code points, so that places in it are those of the string. Both loops read it once
from the left to the right; only the search for the end of a script or a style reads on by itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..core.numba_loops import compile_loop

# What is to be done at the tag of an element.
BLOCK, VOID, RAW, SCRIPT, NO_TEXT, PARAGRAPH, BREAK, LINK, BOLD = (1 << bit for bit in range(9))
CLOSES, ENDS_SEARCH = 1, 2
STYLE, HIDDEN, ARIA_HIDDEN = 4, 5, 6  # rows of the names of attributes
RECENT_WORDS = 4096
BLOCK_END, LINE_END = 1, 2  # code points in the text
LONGEST_NAME = 10  # characters of which a key is made
EXCLAMATION, QUOTE, APOSTROPHE, DASH, SLASH, LESS, EQUAL, GREATER, QUESTION = map(ord, "!\"'-/<=>?")
KELVIN = 0x212A  # the sign whose lower case is k


class Names(NamedTuple):
    """The N known names of elements; number 0 is any other name.

    keys: (N,) int64 by name_key. table: (M,) int16 number of the name whose key is this place modulo M.
    actions: (N,) int64 bits. tag, context: (N,) int64, of html_blocks.TAGS and CONTEXTS.
    implied: (N, N) uint8, what the element of the second name is to a start tag of the first: CLOSES,
    ENDS_SEARCH or 0. implies: (N,) bool, whether a row of it is not empty.
    """

    keys: np.ndarray
    table: np.ndarray
    actions: np.ndarray
    tag: np.ndarray
    context: np.ndarray
    implied: np.ndarray
    implies: np.ndarray


@compile_loop
def _symbol(code: Any) -> Any:
    """1 to 36 for letters and digits, without case; 0 for other characters."""
    if 97 <= code <= 122:
        return code - 96
    if 65 <= code <= 90:
        return code - 64
    if 48 <= code <= 57:
        return code - 21
    return 11 if code == KELVIN else 0


@compile_loop
def _is_space(code: Any) -> Any:
    return code == 32 or code == 10 or code == 9 or code == 13 or code == 12


@compile_loop
def _ends_name(code: Any) -> Any:
    return code in (GREATER, SLASH) or _is_space(code)


@compile_loop
def name_key(codes: Any, at: Any) -> Any:
    """The key of the name that begins at a place, six bits a character, and the end of what was read of it.

    It is 0 for names of other characters, and for long ones, which are not read to their end.
    """
    key = np.int64(0)
    place = at
    while place < len(codes) and not _ends_name(codes[place]):
        symbol = np.int64(_symbol(codes[place]))
        if symbol == 0 or place - at == LONGEST_NAME:
            return np.int64(0), place
        key = key << 6 | symbol
        place += 1
    return key, place


@compile_loop
def _find(codes: Any, at: Any, code: Any) -> Any:
    """The first place of a code point, or the end of the page."""
    while at < len(codes) and codes[at] != code:
        at += 1
    return at


@compile_loop
def _after_attribute(codes: Any, at: Any) -> Any:
    """The end of the attribute whose name begins at a place."""
    count = len(codes)
    at += 1
    while at < count and codes[at] != EQUAL and not _ends_name(codes[at]):
        at += 1
    value = at
    while value < count and _is_space(codes[value]):
        value += 1
    if value >= count or codes[value] != EQUAL:
        return at
    value += 1
    while value < count and _is_space(codes[value]):
        value += 1
    if value < count and (codes[value] == QUOTE or codes[value] == APOSTROPHE):
        return min(_find(codes, value + 1, codes[value]) + 1, count)
    while value < count and codes[value] != GREATER and not _is_space(codes[value]):
        value += 1
    return value


@compile_loop
def _after_comment(codes: Any, at: Any) -> Any:
    """The end of the comment whose `<!--` ends at a place."""
    count = len(codes)
    if at < count and codes[at] == GREATER:
        return at + 1
    if at + 1 < count and codes[at] == DASH and codes[at + 1] == GREATER:
        return at + 2
    for place in range(at, count - 2):
        if codes[place] == DASH and codes[place + 1] == DASH:
            if codes[place + 2] == GREATER:
                return place + 3
            if codes[place + 2] == EXCLAMATION and place + 3 < count and codes[place + 3] == GREATER:
                return place + 4
    return count


@compile_loop
def _begins_with(codes: Any, at: Any, text: Any) -> Any:
    if at + len(text) > len(codes):
        return False
    place = 0
    while place < len(text) and codes[at + place] == text[place]:
        place += 1
    return place == len(text)


@compile_loop
def _end_of_raw_text(codes: Any, at: Any, key: Any) -> Any:
    """The end tag of an element in which no other tags are known."""
    count = len(codes)
    while True:
        at = _find(codes, at, LESS)
        if at + 1 >= count:
            return count
        if codes[at + 1] == SLASH:
            found, end = name_key(codes, at + 2)
            if found == key and end < count:
                return at
        at += 1


@compile_loop
def _end_of_script(codes: Any, at: Any, key: Any) -> Any:
    """The same as html_limits.end_of_script."""
    count = len(codes)
    in_comment = inner = False
    while at < count:
        code = codes[at]
        if code == DASH and _begins_with(codes, at, (DASH, DASH, GREATER)):
            in_comment = inner = False
            at += 2
        elif code == LESS and _begins_with(codes, at, (LESS, EXCLAMATION, DASH, DASH)):
            end = at + 4
            while end < count and codes[end] == DASH:
                end += 1
            if end < count and codes[end] == GREATER:  # is over at once
                at = end
            else:
                in_comment = True
                at += 3
        elif code == LESS and at + 1 < count:
            closing = codes[at + 1] == SLASH
            found, end = name_key(codes, at + 1 + closing)
            if found == key and end < count:
                if closing and not inner:
                    return at
                inner = not closing and (inner or in_comment)
        at += 1
    return count


@compile_loop
def read_tags(codes: Any, names: Names, tags: Any) -> Any:
    """The number of tags and comments in a page, and for each a row of tags.

    codes: (n,) uint32. tags: (T, 6) int64, at least as many rows as `<` in the page, and one: start, end
    (of raw text, after a start tag of it), number of the name, whether it is an end tag, start and end of the
    attributes. The last row is the end of the page.
    """
    count = len(codes)
    at = found = 0
    while True:
        at = _find(codes, at, LESS)
        row = tags[found]
        row[:] = 0
        row[0] = row[1] = at
        if at + 1 >= count:
            row[0] = row[1] = count
            return found + 1
        closing = codes[at + 1] == SLASH
        first = codes[at + 2] if closing and at + 2 < count else codes[at + 1]
        if 97 <= first <= 122 or 65 <= first <= 90:
            key, end = name_key(codes, at + 1 + closing)
            while end < count and not _ends_name(codes[end]):
                end += 1
            row[4] = end
            while end < count and codes[end] != GREATER:
                if codes[end] == SLASH or _is_space(codes[end]):
                    end += 1
                else:
                    end = _after_attribute(codes, end)
            row[5] = end
            end = min(end + 1, count)
            number = int(names.table[key % len(names.table)])
            if names.keys[number] != key:
                number = 0
            action = names.actions[number]
            if action & RAW and not closing:
                number = 0
                if action & SCRIPT:
                    end = _end_of_script(codes, end, key)
                else:
                    end = _end_of_raw_text(codes, end, key)
            row[2], row[3] = number, closing
        elif _begins_with(codes, at + 1, (EXCLAMATION, DASH, DASH)):
            end = _after_comment(codes, at + 4)
        elif _begins_with(codes, at + 1, (33, 91, 67, 68, 65, 84, 65, 91)):  # ![CDATA[
            end = at + 9
        elif closing or first in (EXCLAMATION, QUESTION):
            end = min(_find(codes, at + 2, GREATER) + 1, count)
        else:
            at += 1
            continue
        row[1] = at = end
        found += 1


@compile_loop
def _stripped(codes: Any, start: Any, end: Any, spaces: Any) -> Any:
    """The length of a text without space at its ends."""
    while start < end and codes[start] < len(spaces) and spaces[codes[start]]:
        start += 1
    while end > start and codes[end - 1] < len(spaces) and spaces[codes[end - 1]]:
        end -= 1
    return end - start


@compile_loop
def _close(stack: Any, size: Any, place: Any, actions: Any) -> Any:
    """How many of the elements from a place on have no text."""
    count = 0
    for closed in range(place, size):
        count += (actions[stack[closed, 0]] & NO_TEXT) > 0
    return count


@compile_loop
def _place_to_close(stack: Any, size: Any, number: Any, names: Names, levels: Any) -> Any:
    """The place of the element that a start tag closes, or the size of the stack."""
    if not names.implies[number]:
        return size - 1 if names.actions[stack[size - 1, 0]] & PARAGRAPH else size
    for place in range(size - 1, max(0, size - levels), -1):
        kind = names.implied[number, stack[place, 0]]
        if kind == CLOSES:
            return place
        if kind == ENDS_SEARCH:
            break
    return size


@compile_loop
def _place_of(stack: Any, size: Any, number: Any, levels: Any) -> Any:
    """The place of the element that an end tag closes, or the size of the stack."""
    for place in range(size - 1, max(0, size - levels), -1):
        if stack[place, 0] == number:
            return place
    return size


@compile_loop
def read_elements(
    codes: Any, tags: Any, names: Names, spaces: Any, levels: Any, text: Any, blocks: Any, elements: Any
) -> Any:
    """How many characters of text, blocks and elements there are. In the text BLOCK_END is after each block.

    tags: (T, 6) by read_tags. spaces: bool, of the first characters. levels: how many elements may be open,
    how many a start tag looks at, how many an end tag. text: (n + 2,) uint32. blocks: (T + 1, 4) int64,
    element, characters of links, of bold text, links. elements: (T + 1, 6) int64, parent, tag, context,
    depth, start and end of the attributes; row 0 is the root.
    """
    max_open, implied_levels, farthest = levels
    stack = np.zeros((max_open, 2), np.int64)  # number of the name, element
    size, num_elements = 1, 1
    at = written = num_blocks = without_text = links = link_chars = bold_chars = 0
    in_link = in_bold = any_text = False
    elements[0] = 0
    for tag in range(len(tags)):
        start, end, number, closing = tags[tag, 0], tags[tag, 1], tags[tag, 2], tags[tag, 3]
        is_last = tag == len(tags) - 1
        if start > at and without_text == 0:
            text[written : written + start - at] = codes[at:start]
            written += start - at
            any_text = True
            if (in_link or in_bold) and not is_last:
                length = _stripped(codes, at, start, spaces)
                link_chars += length * in_link
                bold_chars += length * in_bold
        at = end
        action = names.actions[number]
        if action & BLOCK or is_last:
            if any_text:
                text[written] = BLOCK_END
                written += 1
                row = blocks[num_blocks]
                row[0], row[1], row[2], row[3] = stack[size - 1, 1], link_chars, bold_chars, links
                num_blocks += 1
            any_text = in_link = in_bold = False
            link_chars = bold_chars = links = 0
            if is_last or (action & VOID and not closing):
                continue
            if closing:
                place = _place_of(stack, size, number, farthest)
            else:
                place = _place_to_close(stack, size, number, names, implied_levels)
            without_text -= _close(stack, size, place, names.actions)
            size = place
            if closing or size >= max_open:
                continue
            around = stack[size - 1, 1]
            element = elements[num_elements]
            element[0], element[1] = around, names.tag[number]
            element[2] = elements[around, 2] | names.context[number]
            element[3] = elements[around, 3] + 1
            element[4], element[5] = tags[tag, 4], tags[tag, 5]
            stack[size, 0], stack[size, 1] = number, num_elements
            size += 1
            num_elements += 1
            without_text += (action & NO_TEXT) > 0
        elif action & LINK:
            in_link = not closing
            links += not closing
        elif action & BOLD:
            in_bold = not closing
        elif action & BREAK and not closing:
            text[written] = LINE_END
            written += 1
    return written, num_blocks, num_elements


@compile_loop
def _lower(code: Any) -> Any:
    return code + 32 if 65 <= code <= 90 else code


@compile_loop
def _in_word(code: Any) -> Any:
    """Whether a character of ASCII matches [\\w-]."""
    return 97 <= code <= 122 or 65 <= code <= 90 or 48 <= code <= 57 or code == DASH or code == 95


@compile_loop
def _attribute_at(codes: Any, at: Any, end: Any, attributes: Any) -> Any:
    """The row of attributes whose name stands at a place, and the end of the name; else -1."""
    first = _lower(codes[at])
    for row in range(len(attributes)):
        name = attributes[row]
        if name[0] != first:
            continue
        place = 1
        while place < len(name) and name[place] and at + place < end:
            if _lower(codes[at + place]) != name[place]:
                break
            place += 1
        if place == len(name) or name[place] == 0:
            return row, at + place
    return -1, at


@compile_loop
def _value_after(codes: Any, at: Any, end: Any, spaces: Any) -> Any:
    """Start and end of the value after an attribute's name, and the end of all; at three times if none."""
    start = at
    while start < end and spaces[codes[start]]:
        start += 1
    if start == end or codes[start] != EQUAL:
        return at, at, at
    start += 1
    while start < end and spaces[codes[start]]:
        start += 1
    if start == end:
        return at, at, at
    if codes[start] == QUOTE or codes[start] == APOSTROPHE:
        stop = start + 1
        while stop < end and codes[stop] != codes[start]:
            stop += 1
        if stop == end or (stop + 1 < end and _in_word(codes[stop + 1])):
            return at, at, at
        return start + 1, stop, stop + 1
    stop = start
    while stop < end and not (
        spaces[codes[stop]] or codes[stop] == GREATER or codes[stop] == QUOTE or codes[stop] == APOSTROPHE
    ):
        stop += 1
    return (start, stop, stop) if stop > start else (at, at, at)


@compile_loop
def _number_of_word(
    codes: Any, start: Any, end: Any, is_style: Any, recent: Any, words: Any, count: Any
) -> Any:
    """The number of a word among the `count` so far, or that of the next one, which is added.

    recent: (2^k,) the number of the last word of each hash value. So a word may come twice, but none takes a
    search.
    """
    value = np.int64(is_style)
    for place in range(start, end):
        value = (value ^ np.int64(codes[place])) * np.int64(0x100000001B3)
    slot = (value ^ (value >> 32)) & (len(recent) - 1)
    number = recent[slot]
    word = words[number]
    if number < count and word[2] == is_style and word[1] - word[0] == end - start:
        place = 0
        while place < end - start and codes[start + place] == codes[word[0] + place]:
            place += 1
        if place == end - start:
            return number
    words[count, 0], words[count, 1], words[count, 2] = start, end, is_style
    recent[slot] = count
    return count


@compile_loop
def read_attributes(
    codes: Any, places: Any, attributes: Any, spaces: Any, own: Any, bits: Any, uses: Any, words: Any
) -> Any:
    """How often words and styles are in attributes that tell what an element is, and how many there are.

    places: (2, E) start and end of the attributes of each element. attributes: (7, L) the code points of the
    names, zeros after them: those of words, then style, hidden, aria-hidden. own: (E,) int64, what is known
    without the words, -1 where there are characters that are not ASCII. bits: of hidden and aria-hidden.
    uses: (U, 2) int64, element and number of a word. words: (U, 3) int64, start, end, whether it is a style.
    """
    recent = np.zeros(RECENT_WORDS, np.int64)
    num_uses = num_words = 0
    for element in range(len(own)):
        at, end = places[0, element], places[1, element]
        own[element] = 0
        for place in range(at, end):
            if codes[place] > 127:
                own[element] = -1
                break
        in_word = own[element] < 0
        while at < end and own[element] >= 0:
            row, stop = -1, at
            if not in_word:
                row, stop = _attribute_at(codes, at, end, attributes)
            if row < 0:
                in_word = _in_word(codes[at])
                at += 1
                continue
            start, last, stop = _value_after(codes, stop, end, spaces)
            if stop < end and last == stop == start and _in_word(codes[stop]):
                in_word = True  # the name goes on
                at += 1
                continue
            if row == ARIA_HIDDEN:
                if last - start == 4 and _begins_with(codes, start, (116, 114, 117, 101)):  # true
                    own[element] |= bits[1]
            elif row == HIDDEN:
                own[element] |= bits[0]
            while start < last and row <= STYLE:
                first = start
                if row == STYLE:
                    start = last
                elif spaces[codes[start]]:
                    start += 1
                    continue
                while start < last and not spaces[codes[start]]:
                    start += 1
                number = _number_of_word(codes, first, start, row == STYLE, recent, words, num_words)
                num_words = max(num_words, number + 1)
                uses[num_uses, 0], uses[num_uses, 1] = element, number
                num_uses += 1
            in_word = _in_word(codes[stop - 1])
            at = stop
    return num_uses, num_words


@compile_loop
def add_words(own: Any, uses: Any, bits: Any) -> None:
    """Adds the bits of words to those of the elements that have them."""
    for use in range(len(uses)):
        own[uses[use, 0]] |= bits[uses[use, 1]]


@compile_loop
def add_to_inner(parent: Any, bits: Any) -> None:
    """Adds the bits of each element to those of all elements in it."""
    for element in range(1, len(bits)):
        bits[element] |= bits[parent[element]]
