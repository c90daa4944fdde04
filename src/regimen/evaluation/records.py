"""What a report shows, as plain records, and how to make them from rollouts and metrics.

In: scores, comparisons, rows of metrics.jsonl, rollouts. Out: `ReportData`, which `report.py` turns into a page and a
table. Everything is optional but the title: a report without training has no curves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from regimen.evaluation.compare import Comparison
from regimen.evaluation.metrics import Score
from regimen.rollouts.messages import input_messages, output_messages
from regimen.rollouts.records import Rollout


class ModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table of models; the base has no comparison."""

    score: Score
    comparison: Comparison | None = None
    note: str = ""


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A named line of (x, y) points."""

    name: str
    points: list[tuple[float, float]]


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A chart of one or more lines over steps."""

    title: str
    series: list[Series]


class StageTime(msgspec.Struct, frozen=True, kw_only=True):
    """A step of the run and how long it took."""

    name: str
    seconds: float
    detail: str = ""


class LedgerTable(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything that came in ended; the buckets sum to the total."""

    title: str
    unit: str
    buckets: dict[str, int]

    @property
    def total(self) -> int:
        """The sum of all buckets."""
        return sum(self.buckets.values())


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Something said in an episode; `role` may be "tool call"."""

    role: str
    text: str


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """An episode of one model."""

    label: str
    reward: float | None
    outcome: str
    turns: list[Turn]


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A task, and what each model did."""

    task_id: str
    question: str
    episodes: list[Episode]


class ReportData(msgspec.Struct, frozen=True, kw_only=True):
    """Everything on the page, in the order in which it stands there.

    `environments`: the models on the tasks of each environment, where there are several.
    """

    title: str
    summary: str = ""
    models: list[ModelResult] = []
    environments: dict[str, list[ModelResult]] = {}
    curves: list[Curve] = []
    stages: list[StageTime] = []
    ledgers: list[LedgerTable] = []
    examples: list[Example] = []
    facts: dict[str, str] = {}
    config: str = ""
    notes: list[str] = []


def curve_of(title: str, rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> Curve | None:
    """A chart of metrics over steps: `names` maps a metric (`train/loss`) to its label. None when there is no value."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for row in rows:
        for name in names:
            value = row.get(name)
            if isinstance(value, (int, float)):
                points[name].append((float(row["step"]), float(value)))
    series = [Series(name=label, points=points[name]) for name, label in names.items() if points[name]]
    return Curve(title=title, series=series) if series else None


def examples_of(sides: Mapping[str, Sequence[Rollout]], num_examples: int = 4) -> list[Example]:
    """Episodes of the same tasks, one per model, the first label being the base.

    Tasks on which the last model did better than the first come first, but one on which it did not is always shown
    when there is one: a report that shows only wins is an advertisement.
    """
    labels = list(sides)
    first = {label: _first_episodes(rollouts) for label, rollouts in sides.items()}
    common = [task for task in first[labels[0]] if all(task in first[label] for label in labels)]
    wins = [task for task in common if _gain(first, labels, task) > 0]
    others = [task for task in common if _gain(first, labels, task) <= 0]
    # Where the last model failed comes before ties of two successes.
    others.sort(key=lambda task: (first[labels[-1]][task].reward or 0.0, _gain(first, labels, task)))
    num_others = max(1, num_examples - len(wins)) if others else 0
    chosen = wins[: num_examples - min(num_others, num_examples)] + others[: min(num_others, num_examples)]
    return [_example(task, {label: first[label][task] for label in labels}) for task in chosen]


def _first_episodes(rollouts: Iterable[Rollout]) -> dict[str, Rollout]:
    found: dict[str, Rollout] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            found.setdefault(rollout.task_id, rollout)
    return dict(sorted(found.items(), key=lambda item: (item[1].task_index or 0, item[0])))


def _gain(first: Mapping[str, Mapping[str, Rollout]], labels: Sequence[str], task: str) -> float:
    if len(labels) < 2:
        return 0.0
    return (first[labels[-1]][task].reward or 0.0) - (first[labels[0]][task].reward or 0.0)


def _example(task_id: str, rollouts: Mapping[str, Rollout]) -> Example:
    prompt = input_messages(next(iter(rollouts.values())).params)
    asked = [str(message["content"]) for message in prompt if message["role"] == "user"]
    episodes = [episode_of(rollout, label) for label, rollout in rollouts.items()]
    return Example(task_id=task_id, question=asked[-1] if asked else "", episodes=episodes)


def episode_of(rollout: Rollout, label: str) -> Episode:
    """What happened after the prompt: answers, tool calls, tool outputs."""
    turns: list[Turn] = []
    for message in output_messages(rollout.output):
        if message.get("reasoning_content"):
            turns.append(Turn(role="reasoning", text=str(message["reasoning_content"])))
        if message["content"] or not message.get("tool_calls"):
            turns.append(Turn(role=str(message["role"]), text=str(message["content"])))
        for call in cast("list[dict[str, Any]]", message.get("tool_calls") or []):
            function = call["function"]
            turns.append(Turn(role="tool call", text=f"{function['name']}({function['arguments']})"))
    return Episode(label=label, reward=rollout.reward, outcome=rollout.outcome.value, turns=turns)
