import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regimen.convert.where import FieldCount, parse_where
from regimen.errors import ConvertError, UsageError

ROW = {
    "accuracy": 0.8,
    "set_overlap": 1,
    "passed": True,
    "kind": "hard",
    "note": None,
    "reward_components": {"format": 0.5, "deep": {"er": 2}},
    "a.b": 7,
}


@pytest.mark.parametrize(
    "text, holds",
    [
        ("accuracy>=0.8 and set_overlap>0.9", True),
        ("accuracy > 0.8", False),
        ("accuracy<.81", True),
        ("accuracy != 0.8", False),
        ("set_overlap == 1e0", True),
        ("accuracy >= -1", True),
        ("reward_components.format==0.5", True),
        ("reward_components.deep.er<=2", True),
        ("a.b == 7", True),
        ("kind=='hard'", True),
        ('kind != "hard"', False),
        ("kind < 'i'", True),
        ("passed==true", True),
        ("passed != false", True),
        ("passed >= 1", True),
        ("note == null", True),
        ("accuracy == null", False),
        ("accuracy != null", True),
        # unlike kinds: unequal, and neither smaller nor larger
        ("kind > 3", False),
        ("kind != 3", True),
        ("note >= 0", False),
        ("accuracy == true", False),
        # and binds tighter than or, not tighter than and
        ("kind=='hard' or accuracy>1 and accuracy>2", True),
        ("(kind=='hard' or accuracy>1) and accuracy>2", False),
        ("not accuracy>1 and kind=='hard'", True),
        ("not (accuracy>1 or kind=='hard')", False),
        ("not not passed==true", True),
        # a missing field makes its comparison false, whichever it is
        ("absent > 0", False),
        ("absent != 0", False),
        ("absent == null", False),
        ("not absent > 0", True),
        ("reward_components.absent < 1 or passed == true", True),
        ("accuracy.x == 1", False),
    ],
)
def test_conditions(text, holds):
    assert parse_where(text).matches(ROW) is holds


def test_the_fields_of_a_condition():
    where = parse_where("a>1 and (b.c=='x' or not a<3)")
    assert where.fields == {"a", "b.c"}
    assert where.missing({"a": None}) == ["b.c"]


def test_quotes_inside_strings():
    assert parse_where(r"""x == 'it\'s'""").matches({"x": "it's"})
    assert parse_where(r"""x == "a\"b\n" """).matches({"x": 'a"b\n'})
    assert parse_where("x == 'and (1>2'").matches({"x": "and (1>2"})


@pytest.mark.parametrize(
    "text, position, expected",
    [
        ("", 1, "a field"),
        ("accuracy", 9, "one of < <= > >= == !="),
        ("accuracy >= ", 13, "a number or a string"),
        ("accuracy = 1", 10, "a field, a comparison"),
        ("accuracy >= 1 accuracy", 15, "`and`, `or` or the end"),
        ("(a > 1", 7, "`)`"),
        ("a > 1)", 6, "`and`, `or` or the end"),
        ("a > b", 5, "a number or a string"),
        ("a > true", 5, "a number or a string"),
        ("1 < a", 1, "a field"),
        ("a > 1 and", 10, "a field"),
        ("__import__('os')", 11, "one of < <= > >= == !="),
        ("a > 1 + 1", 7, "a field, a comparison"),
        ("a == 'x", 6, "a field, a comparison"),
        ("not", 4, "a field"),
        ("(" * 200 + "a>1", 101, "at most 100"),
    ],
)
def test_what_is_no_condition_is_refused_at_its_place(text, position, expected):
    with pytest.raises(UsageError) as caught:
        parse_where(text)
    assert caught.value.where == "--where"
    assert f"position {position}:" in caught.value.message
    assert caught.value.message.index("^") == position - 1
    assert str(caught.value.expected).startswith(expected)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="ab.()<>=!'\" 01-andortu", max_size=30))
def test_any_text_is_a_condition_or_refused(text):
    with contextlib.suppress(UsageError):
        assert parse_where(text).matches({"a": 1}) in (True, False)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False))
def test_numbers_compare_as_they_do_in_python(value, found):
    for sign, holds in (("<", found < value), (">=", found >= value), ("==", found == value), ("!=", found != value)):
        assert parse_where(f"x {sign} {value!r}").matches({"x": found}) is holds
    assert not parse_where(f"x < {value!r}").matches({"x": math.nan})


def test_missing_fields_are_counted_and_one_that_no_row_has_is_an_error():
    count, other = FieldCount(parse_where("acuracy>1 or set_overlap>0")), FieldCount(parse_where("acuracy>1"))
    count.see({"accuracy": 1, "set_overlap": 1})
    count.see({"accuracy": 1, "reward_components": {"format": 1}, "response": {"id": 1}})
    assert count.missing == {"acuracy": 2, "set_overlap": 1}
    with pytest.raises(ConvertError, match=r"no row has the field 'acuracy'.*did you mean 'accuracy'"):
        count.check()
    assert "response.id" not in count.known
    assert "reward_components.format" in count.known
    other.see({"acuracy": 3})
    count.add(other)
    count.check()
    FieldCount(parse_where("a>1")).check()  # nothing seen, nothing to say
