"""Fields that nobody knows come out of reading and writing with the value and in the order they had."""

import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.errors import RolloutError
from regimen.rollouts.lines import decode_row
from regimen.rollouts.records import Source, rollout_from_row
from regimen.rollouts.writer import encode_row

KNOWN = {"responses_create_params": {"input": "hi"}, "output": "a", "reward": 1}
TEXT = st.text(st.characters(exclude_categories=()))  # half characters and control characters too
BIG = st.integers(-(10**40), 10**40)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | BIG | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def written(line: bytes) -> bytes:
    return encode_row(rollout_from_row(decode_row(line), Source("r", 1)).row)


def exactly(line: bytes):
    """The line's value with its numbers as they are written and its members in order."""
    return json.loads(line, parse_float=Decimal, object_pairs_hook=lambda pairs: pairs)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(TEXT.map("x_".__add__), VALUES, max_size=5), st.booleans())
def test_unknown_fields_survive(fields, ascii_only):
    row = {**fields, **KNOWN}
    line = json.dumps(row, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") + b"\n"
    again = written(line)
    assert exactly(again) == exactly(line)
    assert written(again) == again


@pytest.mark.parametrize("number", ["1e400", "-1.5e999", "12345678901234567890.0e300", "1" * 4000, "-0.0", "5e-324"])
def test_numbers_beyond_float64(number):
    line = json.dumps({"far": 0, **KNOWN}).replace("0", number, 1).encode()
    (_, value), *_ = exactly(written(line))
    assert value == Decimal(number)
    assert str(value)[:1] == number[:1]


@pytest.mark.parametrize("number", ["1e99999", "-1e5000", "1e9999999999999999999999", "1" * 310 + ".5"])
def test_numbers_that_nothing_holds_are_bad_rows(number):
    with pytest.raises(RolloutError, match="not readable JSON: a number"):
        decode_row(json.dumps({"far": 0, **KNOWN}).replace("0", number, 1).encode())
