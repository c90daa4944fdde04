"""Conditions on the fields of a rollout row: `accuracy>=0.8 and (set_overlap>0.9 or not truncated==true)`.

In: the text of a condition. Out: a `Where`, which says for a row whether it holds and which of its fields are missing.
Fields are names of the row, dotted for what stands inside (`reward_components.format`); values are numbers, strings
in quotes, true, false and null; `and` binds tighter than `or`. Nothing is evaluated as code.
Refuses: what is no such condition (`UsageError`, pointing at the place), and fields that no row has (`ConvertError`).
"""

from __future__ import annotations

import json
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, cast

import msgspec

from regimen.errors import ConvertError, UsageError
from regimen.registry import did_you_mean

TOKEN = re.compile(
    r"""\s*(?:(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
    |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<name>[A-Za-z_][\w-]*(?:\.[\w-]+)*)
    |(?P<operator><=|>=|==|!=|<|>)
    |(?P<bracket>[()]))""",
    re.VERBOSE,
)
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
KEYWORDS = ("and", "or", "not")
ABSENT = object()
DEEPEST = 100

Row = Mapping[str, object]
Test = Callable[[Row], bool]


class Where(msgspec.Struct, frozen=True):
    """A condition: its text, the fields it speaks of, and the test."""

    text: str
    fields: frozenset[str]
    test: Test

    def __reduce__(self) -> tuple[Callable[[str], Where], tuple[str]]:
        return parse_where, (self.text,)  # the test is made of functions, which cannot be sent to another process

    def matches(self, row: Row) -> bool:
        """Whether the condition holds; a comparison with a missing field, or of unlike kinds, is false."""
        return self.test(row)

    def missing(self, row: Row) -> list[str]:
        """The fields that `row` does not have."""
        return [name for name in self.fields if field_of(row, name) is ABSENT]


class FieldCount:
    """How many rows lack each field of a condition, over all rows that were tested. Light: one count per field."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.num_rows = 0
        self.missing: Counter[str] = Counter()
        self.known: set[str] = set()

    def see(self, row: Row) -> None:
        """Count what `row` lacks."""
        self.num_rows += 1
        lacking = self.where.missing(row)
        self.missing.update(lacking)
        if lacking:
            self.known.update(_names(row))

    def add(self, other: FieldCount) -> None:
        """Add what was counted elsewhere."""
        self.num_rows += other.num_rows
        self.missing.update(other.missing)
        self.known |= other.known

    def check(self) -> None:
        """Raise `ConvertError` for a field that no row has."""
        for name in sorted(self.where.fields):
            if self.num_rows and self.missing[name] == self.num_rows:
                listed = ", ".join(sorted(self.known - HEAVY)[:12])
                raise ConvertError(
                    f"no row has the field {name!r}",
                    where="--where",
                    expected=f"one of {listed}",
                    fix=did_you_mean(name, sorted(self.known)),
                )


HEAVY = frozenset({"responses_create_params", "response", "output"})


def parse_where(text: str) -> Where:
    """Parse a condition; raises `UsageError` with the place where it stops making sense."""
    parser = _Parser(text)
    test = parser.alternatives()
    if not parser.at("end"):
        parser.fail("`and`, `or` or the end")
    return Where(text, frozenset(parser.fields), test)


def field_of(row: Row, name: str) -> object:
    """The value of a field, or `ABSENT`; a name with dots is a key as it stands, or a path."""
    if name in row:
        return row[name]
    value: object = row
    for part in name.split("."):
        value = _inside(value, part)
    return value


def _inside(value: object, name: str) -> object:
    return cast("dict[str, object]", value).get(name, ABSENT) if isinstance(value, dict) else ABSENT


def _names(row: Row) -> Iterator[str]:
    for name, value in row.items():
        yield name
        if isinstance(value, dict) and name not in HEAVY:
            yield from (f"{name}.{inner}" for inner in cast("Row", value))


class _Parser:
    """One token ahead, one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fields: set[str] = set()
        self.depth = 0
        self.end = 0
        self.advance()

    def advance(self) -> None:
        """Read the next token into `kind` and `seen`."""
        rest = self.text[self.end :]
        self.start = self.end + len(rest) - len(rest.lstrip())
        if self.start == len(self.text):
            self.kind, self.seen = "end", ""
            return
        match = TOKEN.match(self.text, self.end)
        if match is None:
            self.fail("a field, a comparison, a number, a string or a bracket")
        self.kind, self.end = str(match.lastgroup), match.end()
        self.seen = match.group(self.kind)

    def at(self, kind: str, seen: str | None = None) -> bool:
        """Whether the token ahead is of `kind`, and is `seen` where that is given."""
        return self.kind == kind and seen in (None, self.seen)

    def fail(self, expected: str) -> NoReturn:
        """Raise, with a caret under the place, on the one line that errors have."""
        shown = " ".join(f"{self.text[: self.start]}^{self.text[self.start :]}".splitlines())
        seen = repr(self.text[self.start :][:12]) if self.start < len(self.text) else "the end"
        raise UsageError(f"{shown}  (position {self.start + 1}: {seen})", where="--where", expected=expected)

    def word(self, keyword: str) -> bool:
        """Step over `keyword` where it stands here."""
        is_here = self.at("name", keyword)
        if is_here:
            self.advance()
        return is_here

    def alternatives(self) -> Test:
        """`a or b or c`."""
        tests = [self.conjunction()]
        while self.word("or"):
            tests.append(self.conjunction())
        return tests[0] if len(tests) == 1 else lambda row: any(test(row) for test in tests)

    def conjunction(self) -> Test:
        """`a and b and c`."""
        tests = [self.negation()]
        while self.word("and"):
            tests.append(self.negation())
        return tests[0] if len(tests) == 1 else lambda row: all(test(row) for test in tests)

    def negation(self) -> Test:
        """`not a`, a condition in brackets, or a comparison."""
        self.depth += 1
        if self.depth > DEEPEST:
            self.fail(f"at most {DEEPEST} brackets and nots inside each other")
        if self.word("not"):
            inner = self.negation()
            test: Test = lambda row: not inner(row)  # noqa: E731
        elif self.at("bracket", "("):
            self.advance()
            test = self.alternatives()
            if not self.at("bracket", ")"):
                self.fail("`)`")
            self.advance()
        else:
            test = self.comparison()
        self.depth -= 1
        return test

    def comparison(self) -> Test:
        """`field operator value`."""
        if not self.at("name") or self.seen in KEYWORDS or self.seen in CONSTANTS:
            self.fail("a field")
        name = self.seen
        self.advance()
        if not self.at("operator"):
            self.fail("one of < <= > >= == !=")
        sign = self.seen
        self.advance()
        value = self.value(sign)
        self.fields.add(name)
        return lambda row: _compare(field_of(row, name), sign, value)

    def value(self, sign: str) -> object:
        """A number, a string, true, false or null."""
        ordered = sign not in ("==", "!=")
        value: object = None
        if self.at("number"):
            value = float(self.seen)
        elif self.at("string"):
            value = _unquoted(self.seen)
        elif self.at("name") and self.seen in CONSTANTS and not ordered:
            value = CONSTANTS[self.seen]
        else:
            self.fail(
                "a number or a string in quotes" if ordered else "a number, a string in quotes, true, false or null"
            )
        self.advance()
        return value


def _unquoted(token: str) -> str:
    if token[0] == '"':
        try:
            return json.loads(token, strict=False)
        except ValueError:
            pass
    return re.sub(r"\\(.)", r"\1", token[1:-1])


def _compare(found: object, sign: str, value: object) -> bool:
    if found is ABSENT:
        return False
    if value is None or isinstance(value, bool):
        is_equal = found is value
        return is_equal if sign == "==" else not is_equal
    # True and false count as 1 and 0, as they do among the metrics.
    kinds = str if isinstance(value, str) else (int, float)
    if not isinstance(found, kinds):
        return sign == "!="
    return COMPARE[sign](found, value)
