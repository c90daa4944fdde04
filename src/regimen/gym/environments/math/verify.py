"""Which answer a text gives to a question: the last box, else what follows "the answer is", else its last statement.

In: the final text, the question. Out: the answer as it was written, or None where there is none, or a choice is left.
A text with a box is judged by its box alone. Several values that are stated at once are one answer, a set: a list of
candidates is never one of them.
"""

from __future__ import annotations

import re

from regimen.gym.answers import behind_answer, boxed, names_box, squeezed, statements, without_thinking

MAX_VALUES = 20
REPEATED_WORDS = 3  # fewer may be an answer that the question names

_MATH = re.compile(r"\$([^$\n]{1,400})\$|\\\(([^\n]{1,400}?)\\\)")
_MARKER = re.compile(
    r"=(?!=)|→|⇒|=>|\b(?:is|are|was|equals?|gives?|get|makes?|has|have|costs?|left|total|result|sum|solution|be)\b:?|:",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w.,/])(?:(?<![\w)])[-−])?[$€£]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+|(?<=[0-9]))"
    r"(?:\s+[0-9]+\s*/\s*[0-9]+|\s*/\s*[0-9]+)?(?:\s*\\?%)?(?![\w/])"
)
_CORRECTION = re.compile(r"^(?:no|wait|actually|sorry|correction|oops|hmm)\b|\b(?:i mean|rather)\b", re.IGNORECASE)
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_KNOWN = re.compile(r"\\[A-Za-z]+|\b(?:and|or|pi|sqrt|sin|cos|tan|ln|log|infinity|union|inf)\b")


def extract_answer(text: str, question: str = "") -> str | None:
    """The answer that `text` gives to `question`."""
    text = without_thinking(text)
    boxes = boxed(text)
    if boxes:
        return ", ".join(boxes)
    if names_box(text):
        return None
    said = [part for part in statements(text) if not _repeats(part, question)]
    for part in reversed(said):
        behind = behind_answer(part)
        if behind is not None:
            return _value(behind, question) or _short(behind)
        if _CORRECTION.search(part) and (value := _value(_tail(part), question)) is not None:
            return value
    return _last_stated(said, question) or (_short(said[0]) if len(said) == 1 else None)


def gold_of(answer: str) -> str:
    """The right answer in a whole solution: in its last box, behind `####`, or all of it."""
    boxes = boxed(answer)
    return ", ".join(boxes) if boxes else answer.rpartition("####")[2].strip()


def _last_stated(said: list[str], question: str) -> str | None:
    """The value of the last statement that has one; bare values on lines of their own are one list."""
    bare: list[str] = []
    for part in reversed(said):
        value = _value(_tail(part), question)
        if value is None:
            continue
        if not _is_bare(part):
            return ", ".join(reversed(bare)) if bare else value
        if value not in bare:
            bare.append(value)
    return ", ".join(reversed(bare[:MAX_VALUES])) if bare else None


def _repeats(statement: str, question: str) -> bool:
    said = squeezed(statement)
    return len(said.split()) >= REPEATED_WORDS and said in squeezed(question)


def _is_bare(statement: str) -> bool:
    """Whether a statement is nothing but a value."""
    return not _LETTERS.search(_KNOWN.sub("", statement)) and not _MARKER.search(statement)


def _is_formula(text: str) -> bool:
    return re.search(r"[0-9\\]|∞|π|√", text) is not None and not _LETTERS.search(_KNOWN.sub("", text))


def _tail(statement: str) -> str:
    """What stands behind the last marker, where a value does; all of a statement that leaves a choice."""
    if re.search(r"\bor\b", statement) or (re.search(r"\band\b", statement) and _is_formula(statement)):
        return statement
    for marker in reversed(list(_MARKER.finditer(_masked(statement)))):
        tail = statement[marker.end() :].strip()
        if re.search(r"[0-9$\\]", tail):
            return tail
    return statement


def _masked(statement: str) -> str:
    """The statement with its formulas blanked, so that their own signs are no markers."""
    return _MATH.sub(lambda match: "_" * len(match.group()), statement)


def _value(tail: str, question: str) -> str | None:
    """The value in what a statement says: its formulas, or itself where it is one, or its numbers."""
    formulas = [(match.group(1) or match.group(2)).strip() for match in _MATH.finditer(tail)]
    if formulas:
        outside = _MATH.sub(" ", tail)
        leaves_choice = re.search(r"\b(?:or|either|maybe)\b", outside) or _is_formula(outside)
        values = [*_numbers(outside), *formulas] if leaves_choice else formulas
        return ", ".join(dict.fromkeys(values[:MAX_VALUES]))
    if _is_formula(tail):
        return tail
    given = set(_numbers(question))
    numbers = list(dict.fromkeys(_numbers(tail)))
    fresh = [number for number in numbers if number not in given]
    found = fresh if len(fresh) == 1 else numbers
    return ", ".join(found[:MAX_VALUES]) or None


def _numbers(text: str) -> list[str]:
    return [
        match.group().strip().lstrip("$€£") for match in _NUMBER.finditer(text) if re.search("[0-9]", match.group())
    ]


def _short(text: str) -> str | None:
    """Words as an answer, where they are few."""
    return text.strip(" .") if 0 < len(text.split()) <= 4 else None
