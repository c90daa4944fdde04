"""Which number does the final answer state, and is it the right one: judged as a person would.

In: a task row and the episode's output items. Out: a `Verdict` with reward 1 or 0.
Only the assistant message behind the last tool call and tool output counts. Numbers that are part of an expression, of
a question, of a denial ("not 1080") or of a tool call are not answers. The last statement decides; a statement that
leaves a choice ("1081 or 1082", a bare list) answers nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, cast

from regimen.gym.answers import final_text, question_of
from regimen.gym.environment import Verdict
from regimen.rollouts.messages import content_text, item_type

MAX_DIGITS = 40  # a longer run of digits is babble, not a number
MAX_LENGTH = 4000  # characters; of a longer message the end is read

NUMBER = r"(?:(?<![\w.])-)?(?<![\w.,])(?:[0-9][0-9.,]*[0-9]|[0-9]|\.[0-9]+)(?![\w])"
_NUMBER = re.compile(NUMBER)
_PLAIN = re.compile(r"-?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)?(?:\.[0-9]+)?")
_ANSWER = re.compile(rf"answer ({NUMBER})")

_OPERATOR = r"(?:[-+*/×÷·^]|\bx\b|\bplus\b|\bminus\b|\btimes\b|\bdivided by\b|\bmultiplied by\b)"
_OPERAND = rf"[(\s]{{0,8}}{NUMBER}[)\s]{{0,8}}"  # bounded, so that babble costs no time
_EXPRESSION = re.compile(rf"{_OPERAND}(?:{_OPERATOR}{_OPERAND})+")
_EQUALS = re.compile(r"<expression>\s*(?:=|is|are|equals|makes|gives|comes to|is equal to)\s*", re.IGNORECASE)
_NOT = r"(?:\bnot|n't|\brather than|\binstead of|\bother than)"
_DENIED = re.compile(rf"{_NOT}\s+(?:(?:equal to|be|exactly|the answer|it is|=)\s+)?{NUMBER}", re.IGNORECASE)
_WRONG = re.compile(
    rf"{NUMBER}\s+(?:(?:is|was|would be)\s+(?:not|wrong|incorrect|false)|(?:is|was)n't)\b", re.IGNORECASE
)
_CHOICE = re.compile(rf"{NUMBER}[^0-9]*\bor\b[^0-9]*{NUMBER}|^\W*or\b|\beither\b", re.IGNORECASE)
_CLAUSE = re.compile(
    r"(?<=[?!;\n])|(?<=\.)(?![0-9])|→|=>|⇒"
    r"|\b(?=(?:so|thus|therefore|hence|then|wait|actually|sorry|correction|but|which|i mean|because|since)\b)",
    re.IGNORECASE,
)
_MARKER = re.compile(
    r"=|\b(?:is|are|was|equals|answer|result|total|sum|left|has|have|gives|makes|now)\b", re.IGNORECASE
)
_REASON = re.compile(r"\b(?:because|since|check|verify)\b", re.IGNORECASE)
_CALL_KEYS = ('"arguments"', '"expression"', '"name"', '"function"')


def verdict_of(row: dict[str, Any], output: Sequence[dict[str, Any]]) -> Verdict:
    """The verdict on an episode that ended in `output`, for the task `row`."""
    text = final_text(output)
    extracted = extract_answer(text, question_of(row)) if text is not None else None
    calls = [item for item in output if item_type(item) == "function_call"]
    results = [content_text(item.get("output")) for item in output if item_type(item) == "function_call_output"]
    return Verdict(
        reward=1.0 if extracted is not None and extracted == Fraction(row["expected_answer"]) else 0.0,
        metrics={
            "expected_answer": row["expected_answer"],
            "extracted_answer": None if extracted is None else as_text(extracted),
            "kind": row.get("kind"),
            "split": row.get("split"),
            "tool_used": any(not result.startswith("Error") for result in results),
            "call_well_formed": bool(calls) and all(map(is_well_formed, calls)),
            "num_calls": len(calls),
        },
    )


def is_well_formed(call: dict[str, Any]) -> bool:
    """Whether a call names the calculator and hands it one expression, readable or not."""
    try:
        arguments: object = json.loads(call.get("arguments") or "")
    except (ValueError, RecursionError, TypeError):
        return False
    if call.get("name") != "calculator" or not isinstance(arguments, dict):
        return False
    return isinstance(cast("dict[str, Any]", arguments).get("expression"), str)


def extract_answer(text: str, question: str = "") -> Fraction | None:
    """The number that `text` states as its answer to `question`, or None when it states none, or leaves a choice."""
    question = _normalised(question)
    clauses = [_without_expressions(clause) for clause in _clauses(_normalised(_without_calls(text[-MAX_LENGTH:])))]
    given = set(_numbers(question))
    stated = [clause for clause in clauses if _NUMBER.search(clause) and not _repeats(clause, question)]
    stated = [clause for clause in stated if not _REASON.search(clause)] or stated
    if not stated:
        return None
    if len({number for clause in stated for number in _numbers(clause)}) > 1 and _is_bare("".join(stated)):
        return None
    informative = [clause for clause in stated if _ANSWER.search(clause) or set(_numbers(clause)) - given]
    return _stated_in((informative or stated)[-1], given)


def _is_bare(text: str) -> bool:
    """Whether `text` lists numbers and says nothing of them."""
    return re.search(r"[A-Za-z=]", text) is None


def as_text(value: Fraction) -> str:
    """A short decimal text of a number that was written as one."""
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


def _stated_in(clause: str, given: set[Fraction | None]) -> Fraction | None:
    """The one number of a clause: after "= …", else the only new one, else the only one behind a marker."""
    if _CHOICE.search(clause):
        return None
    marked = _ANSWER.findall(clause)
    if marked:
        return _single(_numbers(_MARKER.sub(" ", clause[clause.rindex("answer " + marked[-1]) :])))
    numbers = _numbers(clause)
    fresh = [number for number in numbers if number not in given]
    if fresh:
        found = _single(fresh)
        if found is not None:
            return found
    elif len(set(numbers)) == 1:
        return numbers[0]
    tail = clause[[match.end() for match in _MARKER.finditer(clause)][-1] :] if _MARKER.search(clause) else ""
    return _single(_numbers(tail))


def _single(numbers: Sequence[Fraction | None]) -> Fraction | None:
    return numbers[0] if len(set(numbers)) == 1 else None


def _numbers(text: str) -> list[Fraction | None]:
    """The numbers in `text`; None stands for digits that are no number, like `1,08,1`."""
    found = [match.group() for match in _NUMBER.finditer(text)]
    return [
        Fraction(token.replace(",", "")) if len(token) <= MAX_DIGITS and _PLAIN.fullmatch(token) else None
        for token in found
    ]


def _normalised(text: str) -> str:
    """One spelling for signs, spaces, currency, emphasis and LaTeX."""
    text = text.replace("−", "-").replace("–", "-").replace("\u2011", "-")
    text = re.sub(r"(?<=[0-9])[\u00a0\u202f\u2009](?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"(?<=[0-9])(?:\\,|\{,\}|\\!)(?=[0-9]{3}(?![0-9]))", "", text)
    text = re.sub(r"\\(?:text|mathrm|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\boxed\{([^{}]*)\}", r" = \1 ", text)
    text = re.sub(r"\\times|\\cdot", "×", text).replace(r"\div", "÷")
    text = re.sub(r"\*\*|`|\\[()\[\]]|\\?\$|[€£%°]|__", "", text)
    text = re.sub(r"(?m)^[ \t]*(?:[-*•]|[0-9]+[.)](?=\s+\S)|#+|step [0-9]+[:.)])\s+", "", text, flags=re.IGNORECASE)
    return re.sub(r"(?<=[=:a-z])\s+-\s+(?=[0-9])", " -", text)


def _clauses(text: str) -> list[str]:
    """The statements of `text`, without questions and denials."""
    parts = [part.strip() for part in _CLAUSE.split(_WRONG.sub(" ", _DENIED.sub(" ", text)))]
    return [part for part in parts if part and not part.endswith("?")]


def _without_expressions(clause: str) -> str:
    """`47 × 23 = 1081` becomes `answer 1081`; expressions that nothing follows disappear."""
    marked = _EXPRESSION.sub(" <expression> ", clause)
    return _EQUALS.sub("answer ", marked).replace("<expression>", " ")


def _repeats(clause: str, question: str) -> bool:
    return _squeezed(clause) in _squeezed(question)


def _squeezed(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


def _without_calls(text: str) -> str:
    """`text` without tool calls: tagged, as JSON, or as `calculator(…)`; an unclosed one takes all that follows."""
    text = re.sub(r"<tool_call>.*?(?:</tool_call>|\Z)", " ", text, flags=re.DOTALL)
    text = re.sub(r"\bcalculator\s*\([^()]*(?:\([^()]*\)[^()]*)*(?:\)|\Z)", " ", text)
    while (start := _call_start(text)) is not None:
        text = text[:start] + text[_closing(text, start) :]
    return text


def _call_start(text: str) -> int | None:
    keys = [text.find(key) for key in _CALL_KEYS if key in text]
    if not keys:
        return None
    brace = text.rfind("{", 0, min(keys))
    return brace if brace >= 0 else min(keys)


def _closing(text: str, start: int) -> int:
    """One past the brace that closes the object at `start`, or the end of `text`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0 and text[index] == "}":
            return index + 1
    return len(text)
