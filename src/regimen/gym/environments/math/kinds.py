"""The kinds of questions: each a function from a random generator to a question with its answer in LaTeX.

The answers come from exact arithmetic on the numbers drawn, never from reading the question.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from fractions import Fraction

import msgspec

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kofi", "Lina")
THINGS = ("apples", "books", "cards", "coins", "marbles", "pens", "stamps", "stickers", "tickets")


class Question(msgspec.Struct, frozen=True):
    """A question, its answer, and `key`: what is asked, without the wording."""

    kind: str
    text: str
    answer: str
    key: str


def latex(value: Fraction) -> str:
    """A whole number, or a fraction in lowest terms."""
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def arithmetic(generator: random.Random) -> Question:
    """One operation on whole numbers."""
    operator = generator.choice("+-*")
    a, b = (generator.randint(12, 99), generator.randint(3, 40)) if operator == "*" else (
        generator.randint(100, 999), generator.randint(100, 999)
    )  # fmt: skip
    value = {"+": a + b, "-": a - b, "*": a * b}[operator]
    shown = f"{a} {operator} {b}".replace("*", r"\times")
    text = generator.choice(("What is ${}$?", "Calculate ${}$.", "Compute ${}$.")).format(shown)
    first, second = (a, b) if operator == "-" else sorted((a, b))
    return Question("arithmetic", text, str(value), f"{first} {operator} {second}")


def fractions(generator: random.Random) -> Question:
    """A sum, a difference, a product or a quotient of two fractions."""
    b, d = generator.sample(range(2, 13), 2)
    a, c = generator.randint(1, b - 1), generator.randint(1, d - 1)
    x, y = Fraction(a, b), Fraction(c, d)
    operator, value = generator.choice((("+", x + y), ("-", x - y), (r"\times", x * y), (r"\div", x / y)))
    shown = rf"\frac{{{a}}}{{{b}}} {operator} \frac{{{c}}}{{{d}}}"
    asked = generator.choice(("What is ${}$ in lowest terms?", "Compute ${}$ and write the result as a fraction."))
    operands = (x, y) if operator in ("-", r"\div") else tuple(sorted((x, y)))
    return Question("fractions", asked.format(shown), latex(value), f"{operands[0]} {operator} {operands[1]}")


def equations(generator: random.Random) -> Question:
    """A linear equation with one unknown."""
    a, b, c = generator.randint(2, 12), generator.randint(1, 40), generator.randint(1, 90)
    letter = generator.choice("xyzt")
    sign = generator.choice("+-")
    value = Fraction(c - b if sign == "+" else c + b, a)
    shown = f"{a}{letter} {sign} {b} = {c}"
    text = generator.choice(("Solve ${}$ for ${}$.", "If ${}$, what is ${}$?")).format(shown, letter)
    return Question("equations", text, latex(value), f"{a} {sign} {b} = {c}")


def percentages(generator: random.Random) -> Question:
    """A share of a number, or a price that changes."""
    percent, number = generator.choice(range(5, 100, 5)), generator.choice(range(20, 1000, 20))
    share = Fraction(percent * number, 100)
    shape = generator.choice(("of", "more", "less"))
    texts = {
        "of": (f"What is {percent}% of {number}?", share),
        "more": (
            f"A price of {number} dollars goes up by {percent}%. What is it now, in dollars?",
            number + share,
        ),
        "less": (
            f"A price of {number} dollars goes down by {percent}%. What is it now, in dollars?",
            number - share,
        ),
    }
    text, value = texts[shape]
    return Question("percentages", text, latex(value), f"{shape} {percent} {number}")


def geometry(generator: random.Random) -> Question:
    """Areas, perimeters, circles, right triangles."""
    a, b = generator.randint(2, 40), generator.randint(2, 40)
    m, n = sorted(generator.sample(range(1, 9), 2))
    legs = sorted((n * n - m * m, 2 * m * n))
    shapes = {
        f"rectangle {min(a, b)} {max(a, b)}": (
            f"A rectangle is {a} cm long and {b} cm wide. What is its area, in square centimetres?", str(a * b)),
        f"perimeter {min(a, b)} {max(a, b)}": (
            f"A rectangle is {a} m long and {b} m wide. What is its perimeter, in metres?", str(2 * (a + b))),
        f"triangle {min(a, b)} {max(a, b)}": (
            f"A triangle has a base of {a} cm and a height of {b} cm. What is its area, in square centimetres?",
            latex(Fraction(a * b, 2))),
        f"circle {a}": (f"What is the area of a circle with radius {a}? Give it as a multiple of $\\pi$.",
                        rf"{a * a}\pi"),
        f"circumference {b}": (
            f"What is the circumference of a circle with radius {b}? Give it as a multiple of $\\pi$.", rf"{2 * b}\pi"),
        f"hypotenuse {legs[0]} {legs[1]}": (
            f"The legs of a right triangle are {legs[0]} and {legs[1]} long. How long is its hypotenuse?",
            str(m * m + n * n)),
    }  # fmt: skip
    key = generator.choice(list(shapes))
    text, answer = shapes[key]
    return Question("geometry", text, answer, key)


def sequences(generator: random.Random) -> Question:
    """A term or a sum of an arithmetic or a geometric sequence."""
    first, step, place = generator.randint(1, 20), generator.randint(2, 12), generator.randint(8, 40)
    ratio, power = generator.randint(2, 4), generator.randint(4, 7)
    terms = ", ".join(str(first + step * i) for i in range(4))
    growing = ", ".join(str(first * ratio**i) for i in range(3))
    total = place * (2 * first + (place - 1) * step) // 2
    shape = generator.choice(("term", "sum", "geometric"))
    made = {
        "term": (
            f"The sequence {terms}, ... goes on in equal steps. What is its term number {place}?",
            first + step * (place - 1),
            f"{first} {step} {place}",
        ),
        "sum": (
            f"The sequence {terms}, ... goes on in equal steps. What is the sum of its first {place} terms?",
            total,
            f"{first} {step} {place}",
        ),
        "geometric": (
            f"In the sequence {growing}, ... each term is {ratio} times the one before. What is term number {power}?",
            first * ratio ** (power - 1),
            f"{first} {ratio} {power}",
        ),
    }
    text, value, key = made[shape]
    return Question("sequences", text, str(value), f"{shape} {key}")


def quadratics(generator: random.Random) -> Question:
    """The two whole solutions of a quadratic equation, as a set."""
    low, high = sorted(generator.sample([n for n in range(-12, 13) if n], 2))
    linear, constant = -(low + high), low * high
    middle = "" if not linear else f" {'-' if linear < 0 else '+'} {'' if abs(linear) == 1 else abs(linear)}x"
    shown = f"x^2{middle} {'-' if constant < 0 else '+'} {abs(constant)} = 0"
    text = f"Find all solutions of ${shown}$. Write them as a set, like $\\{{a, b\\}}$."
    return Question("quadratics", text, rf"\{{{low}, {high}\}}", shown)


def inequalities(generator: random.Random) -> Question:
    """The solutions of a linear inequality, as an interval."""
    a, b, bound = generator.randint(2, 9), generator.randint(1, 30), generator.randint(-12, 12)
    sign = generator.choice((r"\le", "<", r"\ge", ">"))
    intervals = {
        r"\le": rf"(-\infty, {bound}]", "<": rf"(-\infty, {bound})",
        r"\ge": rf"[{bound}, \infty)", ">": rf"({bound}, \infty)",
    }  # fmt: skip
    shown = f"{a}x + {b} {sign} {a * bound + b}"
    text = f"Solve ${shown}$. Give the solutions as an interval, like $[a, b)$ or $(a, \\infty)$."
    return Question("inequalities", text, intervals[sign], shown)


def roots(generator: random.Random) -> Question:
    """A square root in simplest form."""
    outside, inside = generator.randint(2, 25), generator.choice((2, 3, 5, 6, 7, 10, 11, 13, 14, 15, 17, 19))
    number = outside * outside * inside
    return Question("roots", rf"Simplify $\sqrt{{{number}}}$.", rf"{outside}\sqrt{{{inside}}}", str(number))


def counting(generator: random.Random) -> Question:
    """A story with two steps."""
    name, things = generator.choice(NAMES), generator.choice(THINGS)
    boxes, each, given = generator.randint(3, 15), generator.randint(4, 30), generator.randint(2, 11)
    text = (
        f"{name} has {boxes} boxes with {each} {things} each, and gives away {given} {things}. "
        f"How many {things} are left?"
    )
    return Question("counting", text, str(boxes * each - given), f"{boxes} {each} {given}")


def divisors(generator: random.Random) -> Question:
    """Greatest common divisors and least common multiples."""
    common = generator.randint(2, 15)
    a, b = (common * n for n in generator.sample(range(2, 20), 2))
    largest = generator.random() < 0.5
    asked = "greatest common divisor" if largest else "least common multiple"
    value = math.gcd(a, b) if largest else math.lcm(a, b)
    return Question("divisors", f"What is the {asked} of {a} and {b}?", str(value), f"{asked} {min(a, b)} {max(a, b)}")


KINDS: dict[str, Callable[[random.Random], Question]] = {
    kind.__name__: kind
    for kind in (
        arithmetic, fractions, equations, percentages, geometry, sequences,
        quadratics, inequalities, roots, counting, divisors,
    )
}  # fmt: skip
