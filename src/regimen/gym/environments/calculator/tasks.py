"""Arithmetic questions, generated from a seed.

In: a split, a count, a seed, a mix of kinds. Out: task rows, in the same order at every call, the kinds mixed at every
prefix. A question belongs to a split by the hash of its arithmetic alone (`23 + 47` and `47 + 23` are one), whatever
the seed or the wording, so splits share no arithmetic and no question text. Refuses: unknown kinds in the mix.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from regimen.errors import ConfigError
from regimen.gym import generated
from regimen.gym.environment import Split
from regimen.gym.environments.calculator.expression import ExpressionError, calculate
from regimen.registry import did_you_mean

DEFAULT_MIX = {
    "addition": 0.25,
    "subtraction": 0.24,
    "multiplication": 0.20,
    "two_operations": 0.10,
    "word": 0.09,
    "notation": 0.12,
}
NUM_TASKS: dict[Split, int] = {"train": 2000, "validation": 400, "test": 500}
MAX_ATTEMPTS = 2000

TOOL: dict[str, Any] = {
    "type": "function",
    "name": "calculator",
    "description": "Compute an expression with + - * / and ( ).",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string"}},
        "required": ["expression"],
        "additionalProperties": False,
    },
    "strict": True,
}
SYSTEM = "You answer every question by calling the calculator tool, then you give the answer."
# The prompt shows two exchanges: a question and the expressions that were tried. No task has their arithmetic.
EXAMPLES = (
    ("A box holds 12 pens. How many pens are in 30 boxes?", ("12 * 30",)),
    ("What is 35 × 48?", ("35 × 48", "35 * 48")),
)
HINT = " Use the calculator."
DEFAULT_HINT = 0.0

ASK = ("What is {}?", "Calculate {}.", "How much is {}?", "Compute {}.", "Work out {}.")
ADDITION = ("What is {a} plus {b}?", "What is the sum of {a} and {b}?", "Add {a} and {b}.")
SUBTRACTION = ("What is {a} minus {b}?", "Subtract {b} from {a}.", "What is the difference between {a} and {b}?")
MULTIPLICATION = ("What is {a} times {b}?", "What is the product of {a} and {b}?", "Multiply {a} by {b}.")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Farid", "Grace", "Hiro", "Ines", "Jonas", "Kofi", "Lina")
THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pens", "stamps", "stickers", "tickets")


class Question(msgspec.Struct, frozen=True):
    """A question in words and the expression whose value answers it."""

    kind: str
    text: str
    expression: str

    @property
    def key(self) -> str:
        """What is asked: the arithmetic in one spelling."""
        return canonical(self.expression)


def task_rows(
    split: Split, num_tasks: int, seed: int, mix: Mapping[str, float], hint: float = DEFAULT_HINT
) -> list[dict[str, Any]]:
    """The first `num_tasks` task rows of `split`; the share `hint` of them names the calculator in the question.

    Raises `ConfigError` when the mix has no more of a kind.
    """
    generator = questions(split, seed, mix)
    return [task_row(_hinted(next(generator), hint), split) for _ in range(num_tasks)]


def _hinted(question: Question, hint: float) -> Question:
    """The question, with the hint for the share `hint` of all questions: which ones, the arithmetic alone decides."""
    if generated.share_of("hint", question.key) >= hint:
        return question
    return msgspec.structs.replace(question, text=question.text + HINT)


def task_row(question: Question, split: Split) -> dict[str, Any]:
    """A NeMo Gym task row: the prompt all tasks share, the question, and the verifier's fields."""
    prompt = [_message("system", SYSTEM)]
    for number, (text, expressions) in enumerate(EXAMPLES, 1):
        prompt += _exchange(number, text, expressions)
    return {
        "responses_create_params": {
            "input": [*prompt, _message("user", question.text)],
            "tools": [copy.deepcopy(TOOL)],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
        },
        "expected_answer": calculate(question.expression),
        "kind": question.kind,
        "split": split,
        "agent_ref": {"name": "calculator"},
    }


def _message(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def _exchange(number: int, question: str, expressions: Sequence[str]) -> list[dict[str, Any]]:
    """An example: the question, a call and its output for each expression, the answer."""
    items = [_message("user", question)]
    output = ""
    for attempt, expression in enumerate(expressions, 1):
        call_id = f"call_example_{number}_{attempt}"
        call = {"type": "function_call", "id": call_id, "call_id": call_id, "name": TOOL["name"], "status": "completed"}
        items.append({**call, "arguments": json.dumps({"expression": expression}, ensure_ascii=False)})
        try:
            output = calculate(expression)
        except ExpressionError as error:
            output = f"Error: {error}"
        items.append({"type": "function_call_output", "call_id": call_id, "output": output})
    return [*items, _message("assistant", f"The answer is {output}.")]


def questions(split: Split, seed: int, mix: Mapping[str, float]) -> Iterator[Question]:
    """Questions of `split` without end, no arithmetic twice; the kind furthest behind its share comes next."""
    shares = check_mix(mix)
    counts = dict.fromkeys(shares, 0)
    generators = generated.generators_of("calculator", shares, split, seed)
    seen = set(EXAMPLE_KEYS)
    for number in range(1, 1_000_000_000):
        kind = max(shares, key=lambda kind: shares[kind] * number - counts[kind])
        question = generated.new_question("calculator", split, KINDS[kind], generators[kind], seen, MAX_ATTEMPTS)
        if question is None:
            raise ConfigError(
                f"there are no more {split} tasks of kind {kind!r}", fix="ask for fewer tasks or change the mix"
            )
        counts[kind] += 1
        yield question


def check_mix(mix: Mapping[str, float]) -> dict[str, float]:
    """The mix as shares that add up to 1, without kinds of share 0; raises `ConfigError`."""
    for kind, share in mix.items():
        if kind not in KINDS:
            fix = did_you_mean(kind, KINDS)
            raise ConfigError(f"unknown kind {kind!r} in mix", expected=f"one of {', '.join(KINDS)}", fix=fix)
        if not _is_share(share):
            raise ConfigError(f"mix.{kind} is {share!r}", expected="a number of at least 0")
    total = sum(mix.values())
    if total <= 0:
        raise ConfigError("every share of mix is 0", expected="at least one kind with a share above 0")
    return {kind: mix[kind] / total for kind in KINDS if mix.get(kind, 0) > 0}


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def split_of(expression: str) -> Split:
    """The split an expression belongs to, by the hash of its arithmetic."""
    return generated.split_of("calculator", canonical(expression))


def canonical(expression: str) -> str:
    """One spelling for the same arithmetic: the operands of a single + or * in ascending order."""
    parts = expression.split()
    if len(parts) == 3 and parts[1] in "+*":
        first, second = sorted((parts[0], parts[2]), key=int)
        return f"{first} {parts[1]} {second}"
    return expression


EXAMPLE_KEYS = frozenset(canonical(expressions[-1]) for _, expressions in EXAMPLES)


def _two_digits(generator: random.Random) -> int:
    return generator.randint(10, 99)


def _ask(generator: random.Random, expression: str) -> str:
    return generator.choice(ASK).format(expression)


def _single(kind: str, operator: str, phrases: tuple[str, ...]) -> Callable[[random.Random], Question]:
    """Questions with one operation on two-digit numbers; half of them show the expression, half use words."""

    def question(generator: random.Random) -> Question:
        a, b = _two_digits(generator), _two_digits(generator)
        expression = f"{a} {operator} {b}"
        in_words = generator.random() < 0.5
        text = generator.choice(phrases).format(a=a, b=b) if in_words else _ask(generator, expression)
        return Question(kind, text, expression)

    return question


def _two_operations(generator: random.Random) -> Question:
    a, b, c = _two_digits(generator), _two_digits(generator), generator.randint(2, 9)
    plus_or_minus = generator.choice("+-")
    shapes = (
        f"({a} {plus_or_minus} {b}) * {c}",
        f"{a} {plus_or_minus} {b} * {c}",
        f"{a} * {c} {plus_or_minus} {b}",
        f"{a} + {b} - {c}",
    )
    expression = generator.choice(shapes)
    return Question("two_operations", _ask(generator, expression), expression)


def _word(generator: random.Random) -> Question:
    text, expression = generator.choice(WORD_PROBLEMS)
    small, large = sorted(generator.sample(range(10, 100), 2))
    few, name, things = generator.randint(3, 9), generator.choice(NAMES), generator.choice(THINGS)
    other = generator.choice([candidate for candidate in NAMES if candidate != name])
    values = {"small": small, "large": large, "few": few, "name": name, "other": other, "things": things}
    return Question("word", text.format(**values), expression.format(**values))


WORD_PROBLEMS = (
    ("{name} has {large} {things} and gets {small} more. How many {things} does {name} have now?", "{large} + {small}"),
    ("{name} has {large} {things} and {other} has {small}. How many do they have together?", "{large} + {small}"),
    ("{name} has {large} {things} and gives {small} to {other}. How many are left?", "{large} - {small}"),
    ("A shop had {large} {things} and sold {small}. How many {things} are left?", "{large} - {small}"),
    ("There are {large} boxes with {few} {things} each. How many {things} are there?", "{large} * {few}"),
    ("One box holds {small} {things}. How many {things} do {few} boxes hold?", "{small} * {few}"),
)


def _notation(generator: random.Random) -> Question:
    """Questions in a spelling that the calculator rejects: × ÷ − or x."""
    a, b, c = _two_digits(generator), _two_digits(generator), generator.randint(2, 9)
    written, expression = generator.choice(
        (
            (f"{a} × {b}", f"{a} * {b}"),
            (f"{a} x {b}", f"{a} * {b}"),
            (f"{a} + {b} × {c}", f"{a} + {b} * {c}"),
            (f"{a * c} ÷ {c}", f"{a * c} / {c}"),
            (f"{a} − {b}", f"{a} - {b}"),
        )
    )
    return Question("notation", _ask(generator, written), expression)


KINDS: dict[str, Callable[[random.Random], Question]] = {
    "addition": _single("addition", "+", ADDITION),
    "subtraction": _single("subtraction", "-", SUBTRACTION),
    "multiplication": _single("multiplication", "*", MULTIPLICATION),
    "two_operations": _two_operations,
    "word": _word,
    "notation": _notation,
}
