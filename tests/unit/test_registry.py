"""Every line of the registry leads somewhere, and an unknown name is answered with the known ones."""

from __future__ import annotations

import importlib

import pytest

import regimen
from regimen.cli.main import VERBS
from regimen.errors import ConfigError
from regimen.registry import PARTS, nearest, resolve


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in PARTS.items() for name in table])
def test_line_resolves(kind: str, name: str) -> None:
    part = resolve(kind, name)
    assert part.__name__ == PARTS[kind][name].split(":")[1]


def test_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("algorithm", "grop")
    assert str(caught.value) == "unknown algorithm 'grop'; expected one of dpo, grpo, sft; to fix: did you mean 'grpo'?"


def test_unknown_name_without_a_near_one() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("algorithm", "quantum")
    assert str(caught.value) == "unknown algorithm 'quantum'; expected one of dpo, grpo, sft"


def test_nearest() -> None:
    assert nearest("trasnformers", ["transformers", "fake"]) == "transformers"
    assert nearest("x", ["transformers", "fake"]) is None


@pytest.mark.parametrize("name", regimen.__all__)
def test_public_name_resolves(name: str) -> None:
    assert callable(getattr(regimen, name))


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="module 'regimen' has no attribute 'nothing'"):
        _ = regimen.nothing  # pyright: ignore


def test_convert_is_the_room_and_the_pipeline() -> None:
    room = importlib.import_module("regimen.convert")
    sft = importlib.import_module("regimen.convert.sft")
    assert regimen.convert is room
    assert room.sft is sft
    assert callable(room)


@pytest.mark.parametrize("verb", VERBS)
def test_verb_resolves_to_a_documented_function(verb: str) -> None:
    module, attribute = VERBS[verb].target.split(":")
    assert getattr(importlib.import_module(module), attribute).__doc__
