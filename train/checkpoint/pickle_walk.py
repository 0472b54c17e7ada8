"""Walks over a pickle before it is unpickled, and refuses what would cost more than the file's length.

A pickle may hold one value many times. t = (t, t), 40 levels deep, is 160 bytes long; its hash visits 2^40
values, and Python computes it as soon as t is a key of a mapping or a member of a set. Numbers and tuples can
also be chosen so that all have the same hash. So each value has a weight here: what hashing it costs.

    0               a text, bytes, None, a bool, a number of 32 bits, an object
    1 + bytes // 8  another number
    1 + n + sum     a tuple or frozenset of n members

`Walk` is for pickles whose objects are all inert records. `TorchWalk` is for those of torch.save, in which
some functions are called. It accepts those that torch.save writes, with arguments that cost no more than
their place in the file.
"""

from __future__ import annotations

import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from typing import Any

import torch

MOST_WEIGHT = 4096  # of all keys and members of sets
HEAVY = 1 << 20  # a tuple at least as heavy is as good as infinite
MOST_WORK = 4  # times the length of the pickle: entries and bytes that calls go through
LONG_TEXT = 64  # bytes; the length of longer texts is kept

# Opcode -> bytes of its argument, of those that push a value of weight 0.
_PLAIN = {
    pickle.NONE: 0, pickle.NEWTRUE: 0, pickle.NEWFALSE: 0, pickle.BININT: 4, pickle.BININT1: 1,
    pickle.BININT2: 2,
}  # fmt: skip
# Opcode -> bytes of the length of its argument, of those that push a text or bytes.
_TEXTS = {
    pickle.SHORT_BINUNICODE: 1, pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8, pickle.SHORT_BINBYTES: 1,
    pickle.BINBYTES: 4, pickle.BINBYTES8: 8, pickle.BYTEARRAY8: 8, pickle.SHORT_BINSTRING: 1,
    pickle.BINSTRING: 4,
}  # fmt: skip
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
_GETS = {pickle.BINGET: 1, pickle.LONG_BINGET: 4}
_PUTS = {pickle.BINPUT: 1, pickle.LONG_BINPUT: 4}
_LONGS = {pickle.LONG1: 1, pickle.LONG4: 4}


def _by_number(table: dict[bytes, int]) -> dict[int, int]:
    return {opcode[0]: width for opcode, width in table.items()}


class _Container:
    """A list, mapping or set: the weight of its members or keys, and their number."""

    __slots__ = ("kind", "number", "weight")

    def __init__(self, kind: type, weight: int = 0, number: int = 0):
        self.kind, self.weight, self.number = kind, weight, number


class _Tuple(tuple[Any, ...]):
    """A tuple of values of which some are more than a weight."""


class _Object:
    """An object of a program's class, whose attributes its state becomes."""


class _Text(int):
    """The length of a long text, or of bytes that are made of a text; 1 for short ones."""


class _Latin1:
    """The text `latin1`, an argument of the functions that make bytes of texts."""


class Walk:
    """The walk over one pickle. A value is its weight, or one of the classes above.

    `check` raises ValueError that says what is wrong.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.weight = self.work = 0

    def check(self) -> None:
        try:
            self._walk()
        except (IndexError, KeyError, UnicodeDecodeError):
            raise ValueError("it takes values that it has not made") from None

    # What the walk is told of calls. None: they do nothing, and make objects.
    named: Callable[[str], Any] | None = None  # the value that stands for a class or function
    text: Callable[[int, int], Any] | None = None  # the value that stands for a text, by its place
    called: Callable[[Any, Any], Any] | None = None  # (function, arguments) -> what stands for the result
    built: Callable[[Any, Any], None] | None = None  # (object, state) when an object gets its state
    stored: Callable[[Any], None] | None = None  # a value outside of the pickle is asked for

    def hash(self, weight: int) -> None:
        """Counts keys of mappings or members of sets."""
        self.weight += weight
        if self.weight > MOST_WEIGHT:
            raise ValueError("it has keys of mappings or members of sets that are large or nested")

    def _walk(self) -> None:
        data, position, end = self.data, 0, len(self.data)
        plain, texts, tuples = _by_number(_PLAIN), _by_number(_TEXTS), _by_number(_TUPLES)
        gets, puts = _by_number(_GETS), _by_number(_PUTS)
        values = dict.fromkeys(plain, 0)
        plain[pickle.EMPTY_TUPLE[0]], values[pickle.EMPTY_TUPLE[0]] = 0, 1
        inert = self.called is None
        if inert:  # nobody asks what is in a container
            plain |= _by_number(dict.fromkeys(_EMPTY, 0))
            values |= _by_number(dict.fromkeys(_EMPTY, 0))
        memoize, mark, stop, set_items = pickle.MEMOIZE[0], pickle.MARK[0], pickle.STOP[0], pickle.SETITEMS[0]
        reduce, new, build = pickle.REDUCE[0], pickle.NEWOBJ[0], pickle.BUILD[0]
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        # Most frequent opcodes first. A large checkpoint has tens of millions of them.
        while position < end:
            opcode = data[position]
            position += 1
            if opcode == memoize:
                memo[len(memo)] = stack[-1]
            elif opcode in plain:
                position += plain[opcode]
                stack.append(values[opcode])
            elif opcode in gets:
                start, position = position, position + gets[opcode]
                stack.append(memo[int.from_bytes(data[start:position], "little")])
            elif opcode in tuples:
                width = tuples[opcode]
                items = stack[-width:]
                stack[-width:] = (_made(items) if any(items) else 1 + width,)
            elif opcode in (reduce, new):
                arguments = stack.pop()
                stack[-1] = 0 if self.called is None else self.called(stack[-1], arguments)
            elif opcode == mark:
                marks.append(len(stack))
            elif opcode == build:
                state = stack.pop()
                if self.built is not None:
                    self.built(stack[-1], state)
            elif opcode == set_items and inert:
                start = marks.pop()
                if any(keys := stack[start::2]):
                    self.hash(_weight(keys))
                del stack[start:]
            elif opcode in texts:
                start = position + texts[opcode]
                position = start + int.from_bytes(data[position:start], "little")
                stack.append(0 if self.text is None else self.text(start, position))
            elif opcode in puts:
                start, position = position, position + puts[opcode]
                number = int.from_bytes(data[start:position], "little")
                if number > end:
                    # the memo of Python's unpickler is an array, and grows to twice the number, up to 64 GB
                    raise ValueError("it numbers more values than it has bytes")
                memo[number] = stack[-1]
            elif opcode == stop:
                break
            else:
                position = self._rare(opcode, position, stack, marks)
        if position != end or data[-1:] != pickle.STOP:
            raise ValueError("it is cut short, or has more behind its end")

    def _rare(self, opcode: int, position: int, stack: list[Any], marks: list[int]) -> int:
        """Acts on one of the other opcodes; returns the position behind it."""
        data, code = self.data, bytes([opcode])
        items: list[Any] = []
        if code in _TO_MARK:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
        if code == pickle.TUPLE:
            stack.append(_made(items))
        elif code in _EMPTY:
            stack.append(_Container(_EMPTY[code]))
        elif code in (pickle.APPENDS, pickle.APPEND):
            items = items if code == pickle.APPENDS else [stack.pop()]
            _fill(stack[-1], _weight(items), len(items))
        elif code in (pickle.SETITEMS, pickle.SETITEM):
            items = items if code == pickle.SETITEMS else [stack.pop(-2), stack.pop()]
            self.hash(_weight(items[::2]))
            _fill(stack[-1], _weight(items[::2]), len(items) // 2)
        elif code in (pickle.ADDITEMS, pickle.FROZENSET):
            self.hash(_weight(items))
            if code == pickle.FROZENSET:
                stack.append(_made(items))
            else:
                _fill(stack[-1], _weight(items), len(items))
        elif code == pickle.BINFLOAT:
            position += 8
            stack.append(1)
        elif code in _LONGS:
            length = int.from_bytes(data[position : position + _LONGS[code]], "little")
            position += _LONGS[code] + length
            stack.append(1 + length // 8)
        elif code == pickle.GLOBAL:
            first = data.index(b"\n", position)
            second = data.index(b"\n", first + 1)
            pair = data[position:first].decode(), data[first + 1 : second].decode()
            position = second + 1
            pair = NAME_MAPPING.get(pair) or (IMPORT_MAPPING.get(pair[0], pair[0]), pair[1])
            stack.append(0 if self.named is None else self.named(".".join(pair)))
        elif code == pickle.STACK_GLOBAL:
            stack[-2:] = [0]
        elif code == pickle.NEWOBJ_EX:
            stack[-3:] = [0]
        elif code == pickle.BINPERSID:
            if self.stored is not None:
                self.stored(stack[-1])
            stack[-1] = 0
        elif code == pickle.POP:
            stack.pop()
        elif code in (pickle.PROTO, pickle.FRAME):
            position += 1 if code == pickle.PROTO else 8
        elif code != pickle.POP_MARK:
            raise ValueError(f"it has the opcode {opcode:#x}, of another writer than torch")
        return position


_TO_MARK = (
    pickle.TUPLE, pickle.APPENDS, pickle.SETITEMS, pickle.ADDITEMS, pickle.FROZENSET, pickle.POP_MARK,
)  # fmt: skip
_EMPTY: dict[bytes, type] = {pickle.EMPTY_LIST: list, pickle.EMPTY_DICT: dict, pickle.EMPTY_SET: set}


def _weight(items: Iterable[Any]) -> int:
    """The weight of some values together; those that have no hash, and functions, weigh nothing."""
    return min(HEAVY, sum(i if type(i) is int else i[0] for i in items if type(i) in (int, _Tuple)))


def _made(items: list[Any]) -> Any:
    """A tuple of values. Its own weight stands before them, if they are kept."""
    weight = min(HEAVY, 1 + len(items) + _weight(items))
    return weight if all(type(item) is int for item in items) else _Tuple((weight, *items))


def _fill(container: Any, weight: int, number: int) -> None:
    """Adds members to a container. Other values take none, as the unpickler will say."""
    if isinstance(container, _Container):
        container.weight = min(HEAVY, container.weight + weight)
        container.number += number


# Functions of torch whose cost does not depend on the values of their arguments.
_REBUILD = re.compile(
    r"torch\._utils\._rebuild_(tensor|tensor_v[23]|parameter|parameter_with_state)$"
    r"|torch\.serialization\._get_layout$|torch\.device$|builtins\.complex$"
)
_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"  # (function, class of tensors, arguments, state)
_TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter")
_BYTEARRAY = "builtins.bytearray"  # also (), (bytes,)
_OF_TEXT = ("_codecs.encode", _BYTEARRAY)  # (text, `latin1`)
_OF_MEMBERS = ("builtins.set", "torch.Size")
_MAPPING = "collections.OrderedDict"
_STORAGE = re.compile(r"torch\.\w*Storage$|torch\.storage\.(Untyped|Typed)Storage$")


def is_torch_name(name: str) -> bool:
    """Whether torch.save writes a name beside the classes of a program."""
    known = (_FROM_TYPE, *_TENSORS, *_OF_TEXT, *_OF_MEMBERS, _MAPPING)
    dtype = vars(torch).get(name.removeprefix("torch."))
    return (
        name in known or bool(_REBUILD.match(name) or _STORAGE.match(name)) or isinstance(dtype, torch.dtype)
    )


class TorchWalk(Walk):
    """The walk over a pickle of torch.save.

    classes: the names of those of which objects are made. Objects of other classes than these and torch's
    become empty placeholders. `names` holds all names after `check`.
    """

    def __init__(self, data: bytes, classes: Iterable[str]):
        super().__init__(data)
        self.classes = frozenset(classes)
        self.names: set[str] = set()
        self.named, self.text, self.called = self._named, self._text, self._called
        self.built, self.stored = self._built, self._stored

    def _named(self, name: str) -> Any:
        self.names.add(name)
        return name

    def _text(self, start: int, end: int) -> Any:
        if end - start > LONG_TEXT:
            return _Text(end - start)
        text = self.data[start:end]
        if text == b"__setstate__":  # torch would call this attribute of an object, whatever it is
            raise ValueError("it sets __setstate__")
        return _Latin1 if text in (b"latin1", b"latin-1") else 0

    def _stored(self, place: Any) -> None:
        self.hash(_weight(place[1:]) if isinstance(place, _Tuple) else 0)  # torch keeps storages by their key

    def _called(self, function: Any, arguments: Any) -> Any:
        self._pass(arguments)
        inside = arguments[1:] if isinstance(arguments, _Tuple) else ()
        weight = _weight([arguments]) if type(arguments) in (int, _Tuple) else HEAVY
        if function in self.classes:
            return _Object()
        if type(function) is str and (_REBUILD.match(function) or not is_torch_name(function)):
            return 0
        if function == _FROM_TYPE and len(inside) == 4 and inside[1] in _TENSORS:
            if type(inside[0]) is str and _REBUILD.match(inside[0]):
                return self._called(inside[0], inside[2])
        elif function in _OF_TEXT and (
            (function == _BYTEARRAY and (weight == 1 or (len(inside) == 1 and isinstance(inside[0], _Text))))
            or (len(inside) == 2 and inside[1] is _Latin1)
        ):
            return inside[0] if inside and isinstance(inside[0], _Text) else _Text(1)
        elif function in _OF_MEMBERS:
            given = inside[0] if len(inside) == 1 else None
            members = given.weight + given.number if isinstance(given, _Container) else weight
            if function == "torch.Size":
                return min(HEAVY, 1 + members)
            self.hash(members - given.number if isinstance(given, _Container) else members)
            return _Container(set, members, given.number if isinstance(given, _Container) else weight)
        elif function == _MAPPING and weight == 1:
            return _Container(dict)
        raise ValueError(f"it calls {function if type(function) is str else 'a value'} as torch does not")

    def _built(self, instance: Any, state: Any) -> None:
        self._pass((0, state) if not isinstance(state, _Tuple) else state)
        if isinstance(instance, _Object | _Container):
            halves = state[1:] if isinstance(state, _Tuple) and len(state) == 3 else (state,)
            if not all(half == 0 or (isinstance(half, _Container) and half.kind is dict) for half in halves):
                raise ValueError("it has no attributes in place of an object's")

    def _pass(self, arguments: Any) -> None:
        """Counts what a call goes over: tuples, the entries of containers, the bytes of texts."""
        self.work += arguments if type(arguments) is int else 0
        for value in arguments if isinstance(arguments, tuple) else ():
            for inner in (value, *(value[1:] if isinstance(value, _Tuple) else ())):
                if isinstance(inner, _Container):
                    self.work += inner.weight + inner.number
                elif isinstance(inner, int):
                    self.work += inner
        if self.work > MOST_WORK * len(self.data) + HEAVY:
            raise ValueError("it goes over the same values again and again")
