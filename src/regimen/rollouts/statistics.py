"""What is in a set of rollouts, as figures.

In: `Rollout`s, one at a time. Out: a frozen `Statistics`. Per rollout a few numbers stay in memory, never the row.
Only scored rollouts (see `Outcome.is_scored`) enter rewards, groups and pass rates; the others are counted.
Standard deviations are of the population, in float64. A rollout passes when its binary reward is 1, or when any
other reward is at least `SUCCESS`.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import msgspec
import numpy as np

from regimen.rollouts.messages import item_type
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Rollout

SUCCESS = 0.8
NUM_BINS = 10


class Summary(msgspec.Struct, frozen=True):
    """A distribution in five numbers; all zero when `count` is 0."""

    count: int
    mean: float
    sd: float
    min: float
    max: float


class Bin(msgspec.Struct, frozen=True):
    """One bar of the histogram: rewards in [low, high), the last bar with its upper end."""

    low: float
    high: float
    count: int


class Rewards(msgspec.Struct, frozen=True):
    """The rewards of the scored rollouts. `kind` is binary, continuous or multi (several named components)."""

    kind: str
    summary: Summary
    histogram: list[Bin]
    success_threshold: float
    num_passing: int
    success_rate: float
    out_of_range: int


class PassAt(msgspec.Struct, frozen=True):
    """The unbiased estimate of passing at least once in `k` tries, over the tasks with at least `k` rollouts."""

    k: int
    value: float
    num_tasks: int


class Groups(msgspec.Struct, frozen=True):
    """The rollouts by task; `repeated` tasks have at least two scored rollouts.

    Of those, zero-variance groups have all rewards equal: all passing, or all failing. `num_pairs` tasks have two
    rewards at least `pair_gap` apart, `mean_gap` on average between best and worst.
    """

    num_tasks: int
    repeats: Summary
    num_repeated: int
    num_all_pass: int
    num_all_fail: int
    num_varied: int
    pair_gap: float
    num_pairs: int
    mean_gap: float
    pass_at: list[PassAt]


class Tools(msgspec.Struct, frozen=True):
    """Tool use. `num_offering` rollouts had tools, `num_using` called one; malformed arguments are no JSON object."""

    num_offering: int
    num_using: int
    num_calls: int
    calls_per_episode: float
    by_name: dict[str, int]
    num_malformed: int


class Environment(msgspec.Struct, frozen=True):
    """One environment's part of the rollouts."""

    rows: int
    scored: int
    mean_reward: float
    success_rate: float


class Statistics(msgspec.Struct, frozen=True):
    """Everything that was measured; see the parts."""

    rows: int
    scored: int
    truncated: int
    outcomes: dict[str, int]
    rewards: Rewards
    groups: Groups
    components: dict[str, Summary]
    metrics: dict[str, Summary]
    turns: Summary
    items: Summary
    output_tokens: Summary
    num_with_token_ids: int
    tools: Tools
    environments: dict[str, Environment]


class StatisticsCollector:
    """Takes rollouts with `add`, gives `Statistics` with `finish`."""

    def __init__(self, success_threshold: float = SUCCESS, pair_gap: float = 0.2) -> None:
        self.success_threshold = success_threshold
        self.pair_gap = pair_gap
        self._rows = 0
        self._offering = self._using = self._malformed = self._token_rows = 0
        self._outcomes: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._environment_rows: Counter[str] = Counter()
        self._groups: dict[str, array[float]] = {}
        self._environment_of: dict[str, str] = {}
        self._components: dict[str, array[float]] = {}
        self._metrics: dict[str, array[float]] = {}
        self._turns, self._items, self._tokens = array("d"), array("d"), array("d")

    def add(self, rollout: Rollout) -> None:
        """Count one rollout."""
        self._rows += 1
        self._outcomes[rollout.outcome] += 1
        environment = rollout.environment or "unknown"
        self._environment_rows[environment] += 1
        if rollout.reward is None:
            return
        self._groups.setdefault(rollout.task_id, array("d")).append(rollout.reward)
        self._environment_of.setdefault(rollout.task_id, environment)
        for table, values in ((self._components, rollout.components), (self._metrics, rollout.metrics)):
            for name, value in values.items():
                table.setdefault(name, array("d")).append(value)
        self._add_output(rollout)

    def _add_output(self, rollout: Rollout) -> None:
        self._items.append(len(rollout.output))
        self._turns.append(num_turns(rollout.output))
        tokens, has_ids = num_output_tokens(rollout)
        self._token_rows += has_ids
        if tokens is not None:
            self._tokens.append(tokens)
        self._offering += bool(rollout.params.get("tools"))
        calls = [item for item in rollout.output if item_type(item) == "function_call"]
        self._using += bool(calls)
        for call in calls:
            self._calls[str(call.get("name"))] += 1
            self._malformed += not arguments_are_object(call.get("arguments"))

    def finish(self) -> Statistics:
        """The figures of everything added so far."""
        rewards = self._rewards()
        return Statistics(
            rows=self._rows,
            scored=rewards.summary.count,
            truncated=self._outcomes[Outcome.TRUNCATED],
            outcomes={name: self._outcomes[name] for name in Outcome if self._outcomes[name]},
            rewards=rewards,
            groups=self._grouped(rewards),
            components={name: summarize(values) for name, values in sorted(self._components.items())},
            metrics={name: summarize(values) for name, values in sorted(self._metrics.items())},
            turns=summarize(self._turns),
            items=summarize(self._items),
            output_tokens=summarize(self._tokens),
            num_with_token_ids=self._token_rows,
            tools=self._tools(),
            environments=self._environments(rewards),
        )

    def _rewards(self) -> Rewards:
        values = np.array([value for group in self._groups.values() for value in group], dtype=np.float64)
        if len(self._components) > 1:
            kind = "multi"
        else:
            kind = "binary" if bool(np.isin(values, (0.0, 1.0)).all()) else "continuous"
        threshold = 1.0 if kind == "binary" else self.success_threshold
        passing = int((values >= threshold).sum())
        return Rewards(
            kind=kind,
            summary=summarize(values),
            histogram=_histogram(values),
            success_threshold=threshold,
            num_passing=passing,
            success_rate=passing / len(values) if len(values) else 0.0,
            out_of_range=int(((values < 0) | (values > 1)).sum()),
        )

    def _grouped(self, rewards: Rewards) -> Groups:
        threshold = rewards.success_threshold
        repeated = [group for group in self._groups.values() if len(group) > 1]
        gaps = [max(group) - min(group) for group in repeated]
        flat = [group for group, gap in zip(repeated, gaps, strict=True) if gap == 0]
        paired = [gap for gap in gaps if gap >= self.pair_gap]
        all_pass = sum(group[0] >= threshold for group in flat)
        return Groups(
            num_tasks=len(self._groups),
            repeats=summarize([len(group) for group in self._groups.values()]),
            num_repeated=len(repeated),
            num_all_pass=all_pass,
            num_all_fail=len(flat) - all_pass,
            num_varied=len(repeated) - len(flat),
            pair_gap=self.pair_gap,
            num_pairs=len(paired),
            mean_gap=math.fsum(paired) / len(paired) if paired else 0.0,
            pass_at=_pass_at([(len(group), sum(x >= threshold for x in group)) for group in self._groups.values()]),
        )

    def _tools(self) -> Tools:
        calls = sum(self._calls.values())
        return Tools(
            num_offering=self._offering,
            num_using=self._using,
            num_calls=calls,
            calls_per_episode=calls / len(self._items) if self._items else 0.0,
            by_name=dict(self._calls.most_common()),
            num_malformed=self._malformed,
        )

    def _environments(self, rewards: Rewards) -> dict[str, Environment]:
        values: dict[str, array[float]] = {name: array("d") for name in self._environment_rows}
        for task, group in self._groups.items():
            values[self._environment_of[task]].extend(group)
        return {
            name: Environment(
                rows=self._environment_rows[name],
                scored=len(found),
                mean_reward=math.fsum(found) / len(found) if found else 0.0,
                success_rate=sum(x >= rewards.success_threshold for x in found) / len(found) if found else 0.0,
            )
            for name, found in sorted(values.items())
        }


def collect_statistics(rollouts: Iterable[Rollout]) -> Statistics:
    """The statistics of all `rollouts`."""
    collector = StatisticsCollector()
    for rollout in rollouts:
        collector.add(rollout)
    return collector.finish()


def summarize(values: Any) -> Summary:
    """Count, mean, population standard deviation, least and greatest of some numbers."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return Summary(0, 0.0, 0.0, 0.0, 0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if low == high:  # the mean of equal numbers may round away from them
        return Summary(len(numbers), low, 0.0, low, high)
    # Squares of values beyond 1e150 do not fit; a power of two as unit changes no digit of the others.
    unit = 2.0**1000 if max(-low, high) > 1e150 else 1.0
    scaled = numbers / unit
    return Summary(len(numbers), float(scaled.mean()) * unit, float(scaled.std()) * unit, low, high)


def pass_at_k(num_rollouts: int, num_passing: int, k: int) -> float:
    """The chance that k of the rollouts, drawn without putting back, hold a passing one."""
    if num_rollouts < k:
        raise ValueError(f"pass@{k} needs at least {k} rollouts, there are {num_rollouts}")
    return 1.0 - math.comb(num_rollouts - num_passing, k) / math.comb(num_rollouts, k)


def _pass_at(groups: list[tuple[int, int]]) -> list[PassAt]:
    most = max((size for size, _ in groups), default=0)
    powers = [2**power for power in range(most.bit_length())]
    found: list[PassAt] = []
    for k in sorted({*powers, most} - {0}):
        values = [pass_at_k(size, passing, k) for size, passing in groups if size >= k]
        found.append(PassAt(k, math.fsum(values) / len(values), len(values)))
    return found


def _histogram(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[Bin]:
    if not len(values):
        return []
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    counts, edges = np.histogram(values, bins=NUM_BINS, range=(low, high))
    places = [round(float(edge), 10) for edge in edges]
    return [Bin(places[i], places[i + 1], int(counts[i])) for i in range(NUM_BINS)]


def num_turns(output: list[dict[str, Any]]) -> int:
    """Number of model calls: items that carry token ids, or stretches of the model's items where none do."""
    with_ids = sum(item.get("generation_token_ids") is not None for item in output)
    if with_ids:
        return with_ids
    count, speaking = 0, False
    for item in output:
        by_model = item_type(item) in ("reasoning", "function_call") or item.get("role") == "assistant"
        count += by_model and not speaking
        speaking = by_model
    return count


def num_output_tokens(rollout: Rollout) -> tuple[int | None, bool]:
    """Number of sampled tokens, from the token ids or else from the response's usage; and whether ids were there."""
    ids = [item["generation_token_ids"] for item in rollout.output if item.get("generation_token_ids") is not None]
    if ids:
        return sum(map(len, ids)), True
    response = rollout.row.get("response")
    usage = cast("dict[str, Any]", response).get("usage") if isinstance(response, dict) else rollout.row.get("usage")
    tokens = cast("dict[str, Any]", usage).get("output_tokens") if isinstance(usage, dict) else None
    return (tokens if type(tokens) is int else None), False


def arguments_are_object(arguments: object) -> bool:
    """Whether a tool call's arguments are a JSON object (or text that decodes to one)."""
    if not isinstance(arguments, str):
        return isinstance(arguments, dict)
    try:
        return isinstance(msgspec.json.decode(arguments), dict)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return False
