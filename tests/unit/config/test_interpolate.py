import pytest

from regimen.config.interpolate import interpolate
from regimen.config.source import Layers
from regimen.errors import ConfigError

TREE = {"a": {"n": 4, "x": 0.5, "s": "text", "none": None, "list": [1, {"k": "${a.n}"}]}}


def value(text: str) -> object:
    return interpolate(Layers(tree={**TREE, "v": text}))["v"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${a.n}", 4),
        ("${a.none}", None),
        ("${a.list}", [1, {"k": 4}]),
        ("${a.list.1.k}", 4),
        ("${ a.s }", "text"),
        ("run-${a.n}-${a.s}", "run-4-text"),
        ("${a.none}!", "null!"),
        ("${mul:${a.n}, 3}", 12),
        ("${mul:${a.n}, ${mul:2, ${a.n}}}", 32),
        ("${add:1,2,3}", 6),
        ("${div:8, 4}", 2),
        ("${div:1, 4}", 0.25),
        ("${max:${a.n}, 2}", 4),
        ("${mul:${a.x}, 3}", 1.5),
        ("cost \\${a.n}", "cost ${a.n}"),
        ("\\${x} and ${a.n}", "${x} and 4"),
        ("{{ jinja }}", "{{ jinja }}"),
    ],
)
def test_values(text: str, expected: object):
    result = value(text)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${a.nons}", "interpolates 'a.nons', which is not there; to fix: did you mean 'a.none'?"),
        ("${v}", "interpolates itself"),
        ("${pow:2, 3}", "unknown resolver 'pow'; expected one of add, mul, div, max"),
        ("${mul:${a.s}, 2}", "a.s: is 'text'; expected a number"),
        ("${mul:true, 2}", "expected numbers"),
        ("${div:1, 0}", "failed: division by zero"),
        ("${div:1}", "failed"),
        ("${.n}", "relative interpolation"),
        ("${a.n", "has no closing brace"),
    ],
)
def test_refusals(text: str, expected: str):
    with pytest.raises(ConfigError) as caught:
        value(text)
    assert expected in str(caught.value)


def test_cycles_are_named():
    with pytest.raises(ConfigError, match=r"interpolates itself: b -> a"):
        interpolate(Layers(tree={"a": "${b}", "b": "${a}"}))


def test_old_names_are_found_under_the_new_ones():
    tree = {"data": {"train": {"data_path": "x"}}, "v": "${data.train_data_path}"}
    assert interpolate(Layers(tree=tree))["v"] == "x"


def test_a_failure_in_a_key_without_effect_drops_the_key():
    tree = {"policy": {"generation": {"vllm_cfg": {"max_model_len": "${nowhere}", "precision": "bf16"}}}}
    assert interpolate(Layers(tree=tree)) == {"policy": {"generation": {"vllm_cfg": {"precision": "bf16"}}}}
