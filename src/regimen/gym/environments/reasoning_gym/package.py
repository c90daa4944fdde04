"""The `reasoning-gym` package behind one narrow door: datasets by name and settings, puzzles by index, scores.

In: names of datasets and their settings. Out: questions with their reference answers, scores from 0 to 1. The package
itself runs in processes of its own (`worker.py`).
Refuses: a missing package, unknown datasets and settings, settings that the package rejects.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from regimen.errors import ConfigError, GymError
from regimen.gym.workers import Workers
from regimen.registry import did_you_mean

SCRIPT = Path(__file__).with_name("worker.py")
WHERE = "environment 'reasoning_gym'"
SCORE_SECONDS = 20.0
MAKE_SECONDS = 120.0  # of processor time: some puzzles are searched for

# Puzzles that have many solutions, of which the package gives none.
WITHOUT_REFERENCE = ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour")
# A mixture of other datasets: the option `dataset` mixes them here.
LEFT_OUT = ("composite",)


@functools.cache
def _workers() -> Workers:
    """Processes for all environments of this interpreter: loading the package takes seconds, and they hold no state."""
    return Workers(SCRIPT, min(4, os.cpu_count() or 1), SCORE_SECONDS, task="scoring the answer")


class Puzzle(msgspec.Struct, frozen=True):
    """A question of a dataset, and the package's answer to it, if it gives one."""

    dataset: str
    index: int
    question: str
    answer: str | None


class Package:
    """The datasets that were asked for, each with its settings, all with one seed and size."""

    def __init__(self, datasets: object, seed: int, size: int) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ConfigError(
                "the package reasoning-gym is not installed", where=WHERE, fix="pip install 'regimen-rl[reasoning-gym]'"
            )
        self.workers = _workers()
        self.seed, self.size = seed, size
        known: dict[str, list[str]] = self.workers.ask_now({"do": "settings"}, WHERE, MAKE_SECONDS)["settings"]
        for name in LEFT_OUT:
            known.pop(name, None)
        self.settings = _settings(datasets, list(known))
        self._puzzles: dict[tuple[str, int], Puzzle] = {}
        for name, config in self.settings.items():
            _check_names(name, config, known)
            if config:
                self._check(name)

    def _check(self, name: str) -> None:
        found = self.workers.ask_now(self._request("open", name), f"dataset {name!r}", MAKE_SECONDS)
        if "refused" in found:
            raise ConfigError(
                f"reasoning-gym rejects the settings: {found['refused']}", where=f"dataset {name!r} of {WHERE}"
            )

    def puzzle(self, name: str, index: int) -> Puzzle:
        """The puzzle number `index` of a dataset."""
        key = (name, index)
        if key not in self._puzzles:
            where = f"dataset {name!r}, index {index}"
            found = self.workers.ask_now({**self._request("entry", name), "index": index}, where, MAKE_SECONDS)
            if "failure" in found:
                raise GymError(f"reasoning-gym makes no puzzle ({found['failure']})", where=where)
            self._puzzles[key] = Puzzle(name, index, found["question"], found["answer"])
        return self._puzzles[key]

    async def score(self, name: str, index: int, question: str, answer: str) -> tuple[float, str | None]:
        """The package's score of `answer`, and why it could not be read (None where it could)."""
        where = f"dataset {name!r}, index {index}"
        if name not in self.settings:
            raise GymError("the task's dataset is not one of this environment", where=where, fix=OTHER_OPTIONS)
        request = {**self._request("score", name), "index": index, "question": question, "answer": answer}
        found = await self.workers.ask(request, where)
        if "failure" in found:
            raise GymError(f"reasoning-gym cannot score: {found['failure']}", where=where, fix=OTHER_OPTIONS)
        return found["score"], found["problem"]

    def _request(self, do: str, name: str) -> dict[str, Any]:
        return {"do": do, "dataset": name, "config": self.settings[name], "seed": self.seed, "size": self.size}


OTHER_OPTIONS = "use the options and the version of reasoning-gym that made the tasks"


def _settings(datasets: object, known: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Names with settings, from a name, names, or names with settings; None: all that give a reference answer."""
    if datasets is None:
        return {name: {} for name in known if name not in WITHOUT_REFERENCE}
    if isinstance(datasets, str):
        return {datasets: {}}
    given: Mapping[object, object] = {}
    if isinstance(datasets, Mapping):
        given = cast("Mapping[object, object]", datasets)
    elif isinstance(datasets, Sequence):
        given = dict.fromkeys(cast("Sequence[object]", datasets))
    if not given or not all(isinstance(key, str) and isinstance(value or {}, Mapping) for key, value in given.items()):
        raise ConfigError(
            f"dataset is {datasets!r}", where=WHERE, expected="a name, names, or names with settings of each"
        )
    return {str(name): dict(cast("Mapping[str, Any]", value or {})) for name, value in given.items()}


def _check_names(name: str, config: Mapping[str, Any], known: Mapping[str, list[str]]) -> None:
    if name not in known:
        raise ConfigError(
            f"unknown dataset {name!r}",
            where=WHERE,
            expected="a dataset of reasoning-gym",
            fix=did_you_mean(name, known),
        )
    for key in config:
        if key not in known[name]:
            raise ConfigError(
                f"unknown setting {key!r}",
                where=f"dataset {name!r} of {WHERE}",
                expected=f"one of {', '.join(known[name])}",
                fix=did_you_mean(key, known[name]),
            )
