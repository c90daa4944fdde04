import pytest

from regimen.config.overrides import apply_overrides
from regimen.config.source import Layers
from regimen.errors import ConfigError


def applied(tree: dict[str, object], *overrides: str) -> dict[str, object]:
    layers = Layers(tree=tree)
    apply_overrides(layers, overrides)
    return layers.tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("5e-6", 5e-6),
        ("true", True),
        ("null", None),
        ("a b", "a b"),
        ("", ""),
        ("[1, 2]", [1, 2]),
        ("x=y", "x=y"),
        ("'3'", "3"),
        ("2026-01-31", "2026-01-31"),
    ],
)
def test_values_are_yaml(text: str, value: object):
    assert applied({}, f"a.b={text}") == {"a": {"b": value}}


def test_forms():
    assert applied({"a": {"b": 1, "c": 2}}, "a.b=3", "+a.d=4", "++e=5", "~a.c") == {"a": {"b": 3, "d": 4}, "e": 5}


def test_mappings_are_merged_and_null_sections_opened():
    assert applied({"a": {"b": 1}}, "a={c: 2}") == {"a": {"b": 1, "c": 2}}
    assert applied({"a": None}, "a.b=1") == {"a": {"b": 1}}


def test_numbers_count_into_lists():
    tree = {"s": [{"name": "x", "kwargs": {"n": 1}}, {"milestones": [5]}]}
    assert applied(tree, "s.0.kwargs.n=9", "s.1.milestones=[7]") == {
        "s": [{"name": "x", "kwargs": {"n": 9}}, {"milestones": [7]}]
    }
    assert applied({"a": [1, 2]}, "a.1=5") == {"a": [1, 5]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", "is no override; expected key=value, +key=value or ~key"),
        ("=3", "'' is no key"),
        ("a..b=3", "'a..b' is no key"),
        ("--flag=3", "--flag"),
        ("a.b=[1", "is not YAML"),
        ("defaults=sft", "`defaults` cannot be overridden"),
        ("~a.bb", "there is no a.bb to delete; to fix: did you mean ~a.b?"),
        ("a.b.c=3", "a.b is 1, which has no keys"),
        ("l.5=1", "'5' is no index of a list of 1"),
        ("l.x=1", "'x' is no index"),
        ("l.0.y=1", "item 0 is 1, which has no keys"),
    ],
)
def test_refusals(text: str, expected: str):
    with pytest.raises(ConfigError) as caught:
        applied({"a": {"b": 1}, "l": [1]}, text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
