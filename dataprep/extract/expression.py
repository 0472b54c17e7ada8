"""Evaluate an expression as MediaWiki's `{{#expr: ...}}` does: `1 / 3 round 2` is 0.33.

The grammar, the precedences and the way numbers are written are those of the extension ParserFunctions
(ExprParser.php): all numbers are floats, operators of one precedence go from left to right, `mod` cuts its
numbers to integers, `round` takes halves away from zero, comparisons give 1 or 0, and a result has 14 digits.
"""

from __future__ import annotations

import decimal
import math
import re
from collections.abc import Callable

MAX_CHARS = 10_000
MAX_DECIMALS = 400  # more digits than a float has
TOKEN = re.compile(r"\s*+(?:([0-9.]+)|([a-z]+)|(<=|>=|<>|!=|[-+*/^()=<>\u2212]))")
END = re.compile(r"\s*+\Z")
# An exact float has up to 309 digits before the point, and up to MAX_DECIMALS are asked for behind it.
EXACT = decimal.Context(prec=2 * MAX_DECIMALS, rounding=decimal.ROUND_HALF_UP)


class ExpressionError(ValueError):
    """MediaWiki shows an error in place of the expression."""


def evaluate(text: str) -> str:
    """The value of an expression as MediaWiki writes it, "" for an empty one; raises ExpressionError."""
    found = value(text)
    return "" if found is None else written(found)


def value(text: str) -> float | None:
    """The value of an expression, None for an empty one; raises ExpressionError."""
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"has more than {MAX_CHARS:,} characters")
    operands: list[float] = []
    waiting: list[str] = []  # operators and open brackets
    wants_operand = True
    place = 0
    text = text.lower()
    while not END.match(text, place):
        token = TOKEN.match(text, place)
        if token is None:
            raise ExpressionError(f"has the character {text[place : place + 8].strip()[:1]!r}")
        place = token.end()
        number, name = token[1], token[2] or token[3]
        if wants_operand:
            if number or name in CONSTANTS:
                operands.append(_number(number) if number else CONSTANTS[name])
                wants_operand = False
            elif name == "(" or name in UNARY:
                waiting.append(name)
            elif name in SIGNS:
                waiting.append(SIGNS[name])
            else:
                raise ExpressionError(f"{name} has no number before it")
        elif name in BINARY:
            while waiting and waiting[-1] != "(" and PRECEDENCE[name] <= PRECEDENCE[waiting[-1]]:
                _apply(waiting.pop(), operands)
            waiting.append(name)
            wants_operand = True
        elif name == ")":
            while waiting and waiting[-1] != "(":
                _apply(waiting.pop(), operands)
            if not waiting:
                raise ExpressionError("closes a bracket that it does not open")
            waiting.pop()
        else:
            raise ExpressionError(f"{number or name} follows a number")
    if wants_operand and (waiting or operands):
        raise ExpressionError("ends with an operator")
    while waiting:
        if waiting[-1] == "(":
            raise ExpressionError("does not close a bracket")
        _apply(waiting.pop(), operands)
    return operands[0] if operands else None


def written(number: float) -> str:
    """A float as PHP writes it: 14 digits, with an exponent from 1.0E+15 on and below 0.0001."""
    text = f"{number:.14G}"
    if "E" not in text:
        return text
    digits, exponent = text.split("E")
    return f"{digits if '.' in digits else digits + '.0'}E{int(exponent):+d}"


def _number(text: str) -> float:
    match = re.match(r"[0-9]*\.?[0-9]*", text)  # PHP reads 1.2.3 as 1.2, and a dot alone as 0
    digits = match[0] if match else ""
    return float(digits) if digits.strip(".") else 0.0


def _apply(name: str, operands: list[float]) -> None:
    """Replaces the last operands by the result of an operator."""
    try:
        if name in BINARY:
            right = operands.pop()
            result = BINARY[name](operands.pop(), right)
        else:
            result = UNARY[name](operands.pop())
    except (ArithmeticError, ValueError) as error:
        raise ExpressionError(f"{name}: {error}") from None
    if isinstance(result, complex) or not math.isfinite(result):
        raise ExpressionError(f"{name} gives no number")
    operands.append(float(result))


def _round(number: float, decimals: float) -> float:
    places = max(-MAX_DECIMALS, min(MAX_DECIMALS, int(decimals)))
    exact = decimal.Decimal(repr(number))
    return float(exact.quantize(decimal.Decimal(1).scaleb(-places), context=EXACT))


CONSTANTS = {"pi": math.pi, "e": math.e}
SIGNS = {"-": "negative", "\u2212": "negative", "+": "positive"}
UNARY: dict[str, Callable[[float], float]] = {
    "negative": lambda x: -x, "positive": lambda x: x, "not": lambda x: not x, "abs": abs,
    "ceil": math.ceil, "floor": math.floor, "trunc": math.trunc, "sqrt": math.sqrt, "exp": math.exp,
    "ln": math.log, "sin": math.sin, "cos": math.cos, "tan": math.tan, "asin": math.asin,
    "acos": math.acos, "atan": math.atan,
}  # fmt: skip
BINARY: dict[str, Callable[[float, float], float]] = {
    "e": lambda x, y: x * 10.0**y, "^": lambda x, y: x**y, "*": lambda x, y: x * y,
    "/": lambda x, y: x / y, "div": lambda x, y: x / y, "fmod": math.fmod,
    "mod": lambda x, y: math.fmod(int(x), int(y)), "+": lambda x, y: x + y, "-": lambda x, y: x - y,
    "\u2212": lambda x, y: x - y, "round": _round, "=": lambda x, y: x == y, "<>": lambda x, y: x != y,
    "!=": lambda x, y: x != y, "<": lambda x, y: x < y, ">": lambda x, y: x > y,
    "<=": lambda x, y: x <= y, ">=": lambda x, y: x >= y, "and": lambda x, y: bool(x and y),
    "or": lambda x, y: bool(x or y),
}  # fmt: skip
PRECEDENCE = {
    **dict.fromkeys(UNARY, 9), "negative": 10, "positive": 10, "e": 10, "^": 8,
    **dict.fromkeys(("*", "/", "div", "mod", "fmod"), 7), **dict.fromkeys(("+", "-", "\u2212"), 6),
    "round": 5, **dict.fromkeys(("=", "<>", "!=", "<", ">", "<=", ">="), 4), "and": 3, "or": 2,
}  # fmt: skip
