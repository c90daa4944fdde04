"""Arithmetic as a pocket calculator reads it: text in, exact value out; nothing is ever evaluated as Python.

Takes ASCII numbers (`12`, `3.5`), `+ - * /`, parentheses and unary minus. Refuses everything else (`×`, `^`, `=`,
words, thousands separators), and what is too long, too deep or has too many digits, with an `ExpressionError` whose
text tells the caller what to write instead.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from fractions import Fraction

MAX_LENGTH = 200
MAX_DEPTH = 32
MAX_DIGITS = 15
SIGNIFICANT_DIGITS = 12

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_HINTS = {
    "×": "use * for multiplication",
    "x": "use * for multiplication",
    "X": "use * for multiplication",
    "·": "use * for multiplication",
    "÷": "use / for division",
    ":": "use / for division",
    "−": "use - for subtraction",
    "–": "use - for subtraction",
    "^": "powers are not supported, multiply instead",
    "%": "percentages are not supported, divide by 100 instead",
    ",": "write numbers without separators, like 1081",
    "=": "write only the left side",
    "?": "write only the expression",
    "[": "use ( ) for grouping",
    "{": "use ( ) for grouping",
    "$": "write numbers without units",
    "€": "write numbers without units",
    ".": "a digit must stand on both sides of the decimal point",
}


class ExpressionError(ValueError):
    """The expression cannot be read or has no value; the text says where and what to write instead."""


def calculate(expression: str) -> str:
    """The value of `expression` as a person reads it: `1081`, `-24`, `2.5`, `0.333333333333`."""
    return format_value(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """The exact value of `expression`; raises `ExpressionError`."""
    if not expression.strip():
        raise ExpressionError("empty expression; write one like 12 + 7")
    if len(expression) > MAX_LENGTH:
        raise ExpressionError(f"expression of {len(expression)} characters; at most {MAX_LENGTH} are allowed")
    parser = _Parser(expression)
    value = parser.sum(0)
    parser.expect_end()
    return value


def format_value(value: Fraction) -> str:
    """Whole values as integers, others as decimals of 12 significant digits without trailing zeros."""
    if value.denominator == 1:
        return str(value.numerator)
    context = Context(prec=SIGNIFICANT_DIGITS)
    text = format(context.divide(Decimal(value.numerator), Decimal(value.denominator)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class _Parser:
    """Recursive descent over the text; each method reads one level of precedence and returns its value."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while (operator := self.peek()) in ("+", "-"):
            self.position += 1
            right = self.product(depth)
            value = value + right if operator == "+" else value - right
        return value

    def product(self, depth: int) -> Fraction:
        value = self.signed(depth)
        while (operator := self.peek()) in ("*", "/"):
            at = self.position
            self.position += 1
            right = self.signed(depth)
            if operator == "/" and right == 0:
                raise ExpressionError(f"division by zero at position {at + 1}")
            value = value * right if operator == "*" else value / right
        return value

    def signed(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:
            raise ExpressionError(f"nested more than {MAX_DEPTH} deep at position {self.position + 1}")
        if self.peek() == "-":
            self.position += 1
            return -self.signed(depth + 1)
        return self.operand(depth)

    def operand(self, depth: int) -> Fraction:
        if self.peek() != "(":
            return self.number()
        self.position += 1
        value = self.sum(depth + 1)
        if self.peek() is None:
            raise ExpressionError("missing ) at the end")
        if self.peek() != ")":
            raise self.unexpected()
        self.position += 1
        return value

    def number(self) -> Fraction:
        if self.peek() is None:
            raise ExpressionError("expression ends too early; a number is missing at the end")
        match = _NUMBER.match(self.text, self.position)
        if match is None:
            raise self.unexpected()
        if len(match.group().replace(".", "")) > MAX_DIGITS:
            raise ExpressionError(f"number of more than {MAX_DIGITS} digits at position {self.position + 1}")
        self.position = match.end()
        return Fraction(match.group())

    def expect_end(self) -> None:
        if self.peek() is not None:
            raise self.unexpected()

    def peek(self) -> str | None:
        """The next character that is no space, or None at the end."""
        while self.position < len(self.text) and self.text[self.position].isspace():
            self.position += 1
        return self.text[self.position] if self.position < len(self.text) else None

    def unexpected(self) -> ExpressionError:
        """The error for what stands at the current position."""
        found = self.text[self.position]
        at = f"at position {self.position + 1}"
        if found.isascii() and (found.isdigit() or found == "("):
            return ExpressionError(f"missing operator before '{found}' {at}; use one of + - * /")
        word = re.match(r"[^\W\d_]{2,}", self.text[self.position :])
        if word:
            return ExpressionError(f"unexpected word '{word.group()[:20]}' {at}; use only numbers, + - * / and ( )")
        hint = _HINTS.get(found, "use only numbers, + - * / and ( )")
        return ExpressionError(f"unexpected character '{found}' {at}; {hint}")
