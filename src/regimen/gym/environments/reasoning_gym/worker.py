"""The `reasoning-gym` package: its datasets, their puzzles by index, its scores. A script of `gym/worker.py`.

In: requests with `do`: `settings` (of every dataset), `open` (a dataset, to see whether its settings hold), `entry`,
and `score`. Out: objects of JSON; `refused` where settings are wrong, `failure` where the package fails.
Answers that the package would hand to Python's or SymPy's evaluation are read as literals, or must be plain.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import importlib
import json
import random
import re
import sys
from fractions import Fraction
from typing import Any

MAX_LENGTH = 10_000  # characters of an answer; the longest reference answers have a few thousand

# SymPy evaluates what it parses, so an answer handed to it holds numbers, one-letter symbols and these functions alone,
# and powers too small to take long.
PARSED_BY_SYMPY = frozenset(
    {"countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"}
)
_FUNCTIONS = {"sin", "cos", "tan", "exp", "log", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "tanh", "pi"}
_EXPRESSION = re.compile(r"[A-Za-z0-9\s+\-*/^().]*")
_POWER = re.compile(r"\*\*|\^")
_SMALL_POWER = re.compile(
    r"\s*(?:-?[0-9]{1,2}|\(\s*-?[0-9]{1,2}\s*(?:/\s*[0-9]{1,2}\s*)?\)|-?[A-Za-z])(?![\w.]|\s*(?:\*\*|\^))"
)
# Modules that hand answers to `eval`, in whose place they get what reads literals and nothing else.
EVALUATING = (
    "algorithmic.binary_matrix",
    "algorithmic.number_sorting",
    "algorithmic.spiral_matrix",
    "algorithmic.string_insertion",
    "games.n_queens",
)
NEAR = 0.005  # the package takes 0 for 0.11, as both have no digit before the point


def prepare() -> None:
    """Load the package."""
    importlib.import_module("reasoning_gym")
    for name in EVALUATING:
        vars(importlib.import_module(f"reasoning_gym.{name}"))["eval"] = ast.literal_eval


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request."""
    do = request["do"]
    if do == "settings":
        return {"settings": settings()}
    key = json.dumps([request["dataset"], request["config"], request["seed"], request["size"]])
    try:
        if do == "open":
            _dataset(key)
            return {}
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        return {"refused": str(error) or type(error).__name__}
    try:
        entry = _entry(key, request["index"])
        if do == "entry":
            return {"question": entry["question"], "answer": entry["answer"]}
        return _scored(key, entry, request)
    except (Exception, RecursionError, MemoryError) as error:
        return {"failure": f"{type(error).__name__}: {error}"[:400]}


def settings() -> dict[str, list[str]]:
    """The names of all datasets, and of the settings of each."""
    datasets = importlib.import_module("reasoning_gym.factory").DATASETS
    return {
        name: sorted({field.name for field in dataclasses.fields(kind)} - {"seed", "size"})
        for name, (_, kind) in sorted(datasets.items())
    }


@functools.lru_cache(maxsize=256)
def _dataset(key: str) -> Any:
    name, config, seed, size = json.loads(key)
    factory = importlib.import_module("reasoning_gym.factory")
    return factory.create_dataset(name, **{**config, "seed": seed, "size": size})


@functools.lru_cache(maxsize=1024)  # every answer of a group is compared with the same puzzle
def _entry(key: str, index: int) -> dict[str, Any]:
    random.seed(index)  # some datasets draw from the global source
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(index)
    return _dataset(key)[index]


def _scored(key: str, entry: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    if entry["question"] != request["question"]:
        return {"failure": "the task's puzzle is not the one of this index"}
    said: str = request["answer"]
    name: str = request["dataset"]
    best: dict[str, Any] = {"score": 0.0, "problem": None}
    for text in dict.fromkeys((said, said.strip())):
        found = _score(_dataset(key), name, text, entry)
        if "failure" in found or found["score"] > best["score"]:
            best = found
        elif found["problem"]:
            best["problem"] = found["problem"]
    return best


def _score(dataset: Any, name: str, text: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The package's score of a text, and why it could not be read (None where it could)."""
    if len(text) > MAX_LENGTH:
        return {"score": 0.0, "problem": "too long"}
    if name in PARSED_BY_SYMPY and not is_plain(text):
        return {"score": 0.0, "problem": "not an expression"}
    if name == "game_of_life_halting":  # the package compares whether the texts are empty
        return {"score": float(text == str(entry["answer"])), "problem": None}
    try:
        found = float(dataset.score_answer(text, copy.deepcopy(entry)))
    except (Exception, RecursionError) as error:  # scorers raise whatever their parsing of an answer raises
        return _without_score(dataset, entry, error)
    if not 0 <= found <= 1:
        return {"failure": f"the score is {found}"}
    if name == "coin_flip" and found == 1 and not _is_near(text, entry["answer"]):
        found = 0.0
    return {"score": found, "problem": None}


def _without_score(dataset: Any, entry: dict[str, Any], error: BaseException) -> dict[str, Any]:
    """Scoring the reference answer must work, else the scorer is what failed and not the answer."""
    try:
        dataset.score_answer(entry["answer"], copy.deepcopy(entry))
    except Exception as second:
        return {"failure": f"the scorer raised {second!r}"[:400]}
    return {"score": 0.0, "problem": type(error).__name__}


def _is_near(text: str, gold: str) -> bool:
    return abs(float(Fraction(text.replace(",", ""))) - float(Fraction(gold.replace(",", "")))) <= NEAR


def is_plain(expression: str) -> bool:
    """Whether SymPy can parse `expression` without running anything, in short time."""
    words = re.findall(r"[A-Za-z]+", expression)
    return (
        _EXPRESSION.fullmatch(expression) is not None
        and all(len(word) == 1 or word in _FUNCTIONS for word in words)
        and re.search(r"\.\s*[A-Za-z]|[0-9]{40}", expression) is None
        and all(_SMALL_POWER.match(expression, power.end()) for power in _POWER.finditer(expression))
        and len(re.findall(r"\)\s*(?:\*\*|\^)", expression)) <= 2
    )
