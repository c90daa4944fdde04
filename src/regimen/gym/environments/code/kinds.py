"""The kinds of function that are asked for: what it shall do, how it is done, what it is called with.

In: a source of chance. Out: a `Question`: a text, the source of a solution, and a Python function of ours that computes
the expected values. The two are written apart, so that each checks the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

WORDS = (
    "amber", "basil", "cedar", "delta", "ember", "fable", "grove", "hazel", "inlet", "jasper", "kettle", "lemon",
    "maple", "noble", "olive", "pebble", "quartz", "river", "saddle", "timber", "umbra", "velvet", "willow",
    "yonder", "zephyr",
)  # fmt: skip


class Step(msgspec.Struct, frozen=True):
    """A part of a function: in words, as Python over `x`, and as a function of ours."""

    text: str
    source: str
    apply: Callable[[Any], Any]


class Question(msgspec.Struct, frozen=True):
    """A function to write. `inputs` makes the arguments of a call."""

    kind: str
    text: str
    name: str
    parameters: str
    source: str
    apply: Callable[..., Any]
    inputs: Callable[[random.Random], list[Any]]

    @property
    def key(self) -> str:
        """What is asked is what the solution does."""
        return self.source


def lists(generator: random.Random) -> Question:
    """A list of numbers through some steps, and perhaps one number of it."""
    steps = [make(generator) for make in generator.sample(_LIST_STEPS, generator.randint(2, 3))]
    if generator.random() < 0.6:
        steps.append(generator.choice(_LIST_ENDS))
    text = "Write a function `process(numbers)` that takes a list of integers and does the following, in this order"
    return _of_steps("lists", text, "process", "numbers", steps, _integers)


def texts(generator: random.Random) -> Question:
    """A text through some steps."""
    steps = [make(generator) for make in generator.sample(_TEXT_STEPS, generator.randint(2, 3))]
    text = "Write a function `rewrite(text)` that takes a string and does the following, in this order"
    return _of_steps("texts", text, "rewrite", "text", steps, _words)


def recurrences(generator: random.Random) -> Question:
    """A sequence in which each number follows from the two before it."""
    first, second, p, q, constant = (generator.randint(low, 5) for low in (0, 1, 1, 1, 0))
    modulus = generator.choice((97, 101, 1000, 9973))

    def apply(n: int) -> int:
        values = [first, second]
        while len(values) <= n:
            values.append((p * values[-1] + q * values[-2] + constant) % modulus)
        return values[n]

    text = (
        f"Write a function `term(n)` that returns the number f(n) of the sequence with f(0) = {first}, f(1) = {second} "
        f"and f(n) = ({p} * f(n - 1) + {q} * f(n - 2) + {constant}) mod {modulus} for n of at least 2. "
        "n is an integer from 0 to 1000."
    )
    source = (
        f"def term(n):\n    a, b = {first}, {second}\n    for _ in range(n):\n"
        f"        a, b = b, ({p} * b + {q} * a + {constant}) % {modulus}\n    return a\n"
    )

    def inputs(chance: random.Random) -> list[Any]:
        return [chance.choice((0, 1, 2, 1000)) if chance.random() < 0.2 else chance.randint(2, 60)]

    return Question("recurrences", text, "term", "n", source, apply, inputs)


def counts(generator: random.Random) -> Question:
    """A dictionary of how often something stands in a text."""
    shortest, least, letter = generator.randint(2, 5), generator.randint(1, 2), generator.choice("aeilmnrtv")
    contains = generator.random() < 0.3
    folds, by_length = generator.random() < 0.5, generator.random() < 0.4

    def apply(text: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for word in (text.lower() if folds else text).split(" "):
            if len(word) >= shortest and (word.find(letter) >= 0) is contains:
                key = str(len(word)) if by_length else word
                found[key] = found.get(key, 0) + 1
        return {key: number for key, number in found.items() if number >= least}

    key = "the length of a word, as a string," if by_length else "a word"
    text = (
        "Write a function `count(text)` that takes a string of words with single spaces between them and returns a "
        f"dictionary from {key} to the number of such words. "
        f"{'Words are counted in lower case. ' if folds else 'Upper and lower case are different. '}"
        f"Leave out words of fewer than {shortest} letters and words that {'lack' if contains else 'have'} a "
        f"lower-case {letter}"
        f"{'' if least == 1 else f', and then entries whose number is less than {least}'}."
    )
    source = (
        "from collections import Counter\n\n\ndef count(text):\n"
        f"    words = [w for w in text{'.lower()' if folds else ''}.split() if len(w) >= {shortest}]\n"
        f"    words = [w for w in words if '{letter}' {'in' if contains else 'not in'} w]\n"
        f"    found = Counter({'str(len(w)) for w in words' if by_length else 'words'})\n"
        f"    return {{key: n for key, n in found.items() if n >= {least}}}\n"
    )
    return Question("counts", text, "count", "text", source, apply, _words)


def _of_steps(
    kind: str,
    text: str,
    name: str,
    parameter: str,
    steps: list[Step],
    inputs: Callable[[random.Random], list[Any]],
) -> Question:
    def apply(value: Any) -> Any:
        for step in steps:
            value = step.apply(value)
        return value

    listed = "\n".join(f"{number}. {step.text}" for number, step in enumerate(steps, 1))
    body = "\n".join(f"    x = {step.source}" for step in steps)
    source = f"def {name}({parameter}):\n    x = {parameter}\n{body}\n    return x\n"
    whole = f"{text}:\n{listed}\nIt returns the result of the last step."
    return Question(kind, whole, name, parameter, source, apply, inputs)


def _integers(generator: random.Random) -> list[Any]:
    size = generator.choice((0, 1)) if generator.random() < 0.1 else generator.randint(4, 12)
    return [[generator.randint(-20, 40) for _ in range(size)]]


def _words(generator: random.Random) -> list[Any]:
    size = 1 if generator.random() < 0.1 else generator.randint(3, 9)
    chosen = generator.choices(generator.sample(WORDS, 6), k=size)
    return [" ".join(word.capitalize() if generator.random() < 0.3 else word for word in chosen)]


def _keep_divisible(generator: random.Random) -> Step:
    k = generator.randint(2, 5)
    return Step(
        f"Keep only the numbers that are divisible by {k}.",
        f"[n for n in x if n % {k} == 0]",
        lambda x: [n for n in x if not n % k],
    )


def _keep_larger(generator: random.Random) -> Step:
    k = generator.randint(-5, 15)
    return Step(
        f"Keep only the numbers that are larger than {k}.",
        f"[n for n in x if n > {k}]",
        lambda x: [*filter(k.__lt__, x)],
    )


def _scale(generator: random.Random) -> Step:
    k, c = generator.randint(2, 9), generator.randint(1, 9)
    return Step(
        f"Multiply every number by {k} and add {c}.",
        f"[{k} * n + {c} for n in x]",
        lambda x: [n * k + c for n in x],
    )


def _every_nth(generator: random.Random) -> Step:
    k = generator.randint(2, 3)
    return Step(
        f"Keep the first of every {k} numbers: those at the indices 0, {k}, {2 * k} and so on.",
        f"x[::{k}]",
        lambda x: [n for index, n in enumerate(x) if not index % k],
    )


def _running(_generator: random.Random) -> Step:
    def apply(x: list[int]) -> list[int]:
        total, sums = 0, list[int]()
        for n in x:
            total += n
            sums.append(total)
        return sums

    return Step(
        "Replace every number by the sum of all numbers up to it, itself included.",
        "[sum(x[:i + 1]) for i in range(len(x))]",
        apply,
    )


def _without_repeats(_generator: random.Random) -> Step:
    return Step(
        "Remove every number that stood in the list before, keeping the first of each.",
        "[n for i, n in enumerate(x) if n not in x[:i]]",
        lambda x: list(dict.fromkeys(x)),
    )


def _sorted(generator: random.Random) -> Step:
    if generator.random() < 0.5:
        return Step("Sort the numbers from the largest to the smallest.", "sorted(x, reverse=True)", _descending)
    return Step("Sort the numbers from the smallest to the largest.", "sorted(x)", lambda x: _descending(x)[::-1])


def _descending(x: list[int]) -> list[int]:
    return [-n for n in sorted(-n for n in x)]


def _drop_ends(generator: random.Random) -> Step:
    k = generator.randint(1, 2)
    plural = "number" if k == 1 else f"{k} numbers"
    return Step(
        f"Remove the first {plural} and the last {plural}; a list that is too short becomes empty.",
        f"x[{k}:-{k}]",
        lambda x: [n for index, n in enumerate(x) if k <= index < len(x) - k],
    )


_LIST_STEPS = (
    _keep_divisible, _keep_larger, _scale, _every_nth, _running, _without_repeats, _sorted, _drop_ends,
)  # fmt: skip
_LIST_ENDS = (
    Step("Take the sum of the numbers; of an empty list it is 0.", "sum(x)", lambda x: int(sum(x, start=0))),
    Step("Take the largest number minus the smallest; of an empty list it is 0.", "max(x) - min(x) if x else 0",
         lambda x: _descending(x)[0] - _descending(x)[-1] if x else 0),
    Step("Take the number of different numbers.", "len(set(x))", lambda x: len(dict.fromkeys(x))),
    Step("Take the sum of the squares of the numbers.", "sum(n * n for n in x)", lambda x: int(sum(n**2 for n in x))),
)  # fmt: skip


def _reverse_words(_generator: random.Random) -> Step:
    return Step(
        "Reverse the order of the words, which are separated by single spaces.",
        '" ".join(x.split(" ")[::-1])',
        lambda x: " ".join(reversed(x.split(" "))),
    )


def _reverse_letters(_generator: random.Random) -> Step:
    return Step("Reverse the whole string.", "x[::-1]", lambda x: "".join(reversed(x)))


def _replace(generator: random.Random) -> Step:
    old, new = generator.sample("aeiou", 2)
    return Step(
        f"Replace every lower-case {old} by {new}.", f'x.replace("{old}", "{new}")', lambda x: new.join(x.split(old))
    )


def _double(generator: random.Random) -> Step:
    letters = "".join(sorted(generator.sample("aeioulrst", 3)))
    return Step(
        f"Double every letter that is one of {', '.join(letters)}, in lower case only.",
        f'"".join(c * 2 if c in "{letters}" else c for c in x)',
        lambda x: "".join(c + c if c in set(letters) else c for c in x),
    )


def _swap_case(_generator: random.Random) -> Step:
    return Step(
        "Turn lower-case letters into upper-case ones, and upper-case into lower-case ones.",
        "x.swapcase()",
        lambda x: "".join(c.lower() if c.isupper() else c.upper() for c in x),
    )


def _shift(generator: random.Random) -> Step:
    k = generator.randint(1, 12)
    letters = "abcdefghijklmnopqrstuvwxyz"
    table = str.maketrans(letters, letters[k:] + letters[:k])
    return Step(
        f"Move every lower-case letter {k} places on in the alphabet, from z on to a again; leave all else as it is.",
        f'"".join(chr((ord(c) - 97 + {k}) % 26 + 97) if "a" <= c <= "z" else c for c in x)',
        lambda x: x.translate(table),
    )


def _keep_words(generator: random.Random) -> Step:
    k = generator.randint(5, 6)
    return Step(
        f"Keep only the words, separated by single spaces, that have fewer than {k + 1} letters.",
        f'" ".join(w for w in x.split(" ") if len(w) <= {k})',
        lambda x: " ".join(w for w in x.split(" ") if len(w) < k + 1),
    )


def _initials(generator: random.Random) -> Step:
    k = generator.randint(2, 3)
    return Step(
        f"Cut every word, separated by single spaces, to its first {k} letters.",
        f'" ".join(w[:{k}] for w in x.split(" "))',
        lambda x: " ".join("".join(c for index, c in enumerate(w) if index < k) for w in x.split(" ")),
    )


_TEXT_STEPS = (
    _reverse_words, _reverse_letters, _replace, _double, _swap_case, _shift, _keep_words, _initials,
)  # fmt: skip

KINDS: dict[str, Callable[[random.Random], Question]] = {
    kind.__name__: kind for kind in (lists, texts, recurrences, counts)
}
