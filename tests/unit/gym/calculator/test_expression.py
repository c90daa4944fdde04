from __future__ import annotations

from fractions import Fraction

import pytest

from regimen.gym.environments.calculator.expression import (
    MAX_DEPTH,
    MAX_LENGTH,
    ExpressionError,
    calculate,
    evaluate,
    format_value,
)


@pytest.mark.parametrize(
    "expression, value",
    [
        ("47 * 23", "1081"),
        ("47*23", "1081"),
        ("12 + 7 * 3", "33"),
        ("(12 + 7) * 3", "57"),
        ("100 - 10 - 1", "89"),
        ("100 / 10 / 2", "5"),
        ("2 * (3 + (4 - 1)) / 3", "4"),
        ("-5 + 3", "-2"),
        ("3 * -2", "-6"),
        ("3 - -2", "5"),
        ("--2", "2"),
        ("-(2 + 3)", "-5"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3", "0.333333333333"),
        ("2 / 3", "0.666666666667"),
        ("1 / 3 * 3", "1"),
        ("7 / 2", "3.5"),
        ("-7 / 2", "-3.5"),
        ("1000000 * 1000000", "1000000000000"),
        ("1 / 1000000", "0.000001"),
        ("100.50", "100.5"),
        ("10 / 4 * 4", "10"),
        ("007", "7"),
        ("  8  ", "8"),
    ],
)
def test_values(expression, value):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression, message",
    [
        ("", "empty expression; write one like 12 + 7"),
        ("   ", "empty expression; write one like 12 + 7"),
        ("47 × 23", "unexpected character '×' at position 4; use * for multiplication"),
        ("47 x 23", "unexpected character 'x' at position 4; use * for multiplication"),
        ("84 ÷ 7", "unexpected character '÷' at position 4; use / for division"),
        ("5 − 3", "unexpected character '−' at position 3; use - for subtraction"),
        ("2 ^ 3", "unexpected character '^' at position 3; powers are not supported, multiply instead"),
        ("2 ** 3", "unexpected character '*' at position 4; use only numbers, + - * / and ( )"),
        ("1,081 + 2", "unexpected character ',' at position 2; write numbers without separators, like 1081"),
        ("2 + 3 =", "unexpected character '=' at position 7; write only the left side"),
        ("47 times 23", "unexpected word 'times' at position 4; use only numbers, + - * / and ( )"),
        ("sum(1)", "unexpected word 'sum' at position 1; use only numbers, + - * / and ( )"),
        ("__import__('os')", "unexpected character '_' at position 1; use only numbers, + - * / and ( )"),
        ("2 +", "expression ends too early; a number is missing at the end"),
        ("(2 + 3", "missing ) at the end"),
        ("2 + 3)", "unexpected character ')' at position 6; use only numbers, + - * / and ( )"),
        ("()", "unexpected character ')' at position 2; use only numbers, + - * / and ( )"),
        ("2 3", "missing operator before '3' at position 3; use one of + - * /"),
        ("2(3)", "missing operator before '(' at position 2; use one of + - * /"),
        (".5", "unexpected character '.' at position 1; a digit must stand on both sides of the decimal point"),
        ("5.", "unexpected character '.' at position 2; a digit must stand on both sides of the decimal point"),
        ("1e5", "unexpected character 'e' at position 2; use only numbers, + - * / and ( )"),
        ("+5", "unexpected character '+' at position 1; use only numbers, + - * / and ( )"),
        ("5 / 0", "division by zero at position 3"),
        ("5 / (3 - 3)", "division by zero at position 3"),
        ("\uff11 + 2", "unexpected character '\uff11' at position 1; use only numbers, + - * / and ( )"),
        ("1" * 16, "number of more than 15 digits at position 1"),
        ("1+" * 100 + "1", "expression of 201 characters; at most 200 are allowed"),
        ("(" * 40 + "1" + ")" * 40, "nested more than 32 deep at position 34"),
    ],
)
def test_refusals_say_what_to_write(expression, message):
    with pytest.raises(ExpressionError) as caught:
        calculate(expression)
    assert str(caught.value) == message


def test_the_limits_themselves_are_allowed():
    assert calculate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) == "1"
    assert calculate("-" * MAX_DEPTH + "1") == "1"
    assert calculate("1" + " " * (MAX_LENGTH - 1)) == "1"
    assert calculate("9" * 15) == "9" * 15


def test_values_are_exact():
    assert evaluate("0.1 + 0.2") == Fraction(3, 10)
    assert evaluate("1 / 3") == Fraction(1, 3)
    assert format_value(Fraction(10**20, 1)) == "1" + "0" * 20
