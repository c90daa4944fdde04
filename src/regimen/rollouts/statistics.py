"""What is in a set of rollouts, as figures.

In: `Rollout`s, one at a time. Out: a frozen `Statistics`. Per scored rollout 20 bytes stay in memory, never the row.
Only scored rollouts (see `Outcome.is_scored`) enter rewards, groups and pass rates; the others are counted.
Standard deviations are of the population, in float64. A rollout passes when its binary reward is 1, or when any
other reward is at least `SUCCESS`.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np

from regimen.rollouts.contents import Contents, contents_of
from regimen.rollouts.moments import Moments, Summary, summarize
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Rollout

SUCCESS = 0.8
NUM_BINS = 10
# Rewards are sums and means of floats: 1.0 - 0.8 must reach a gap of 0.2.
TOLERANCE = 1e-9
# From this group size on binomial coefficients are numbers of thousands of digits.
LARGE_GROUP = 1000

Floats = np.ndarray[Any, np.dtype[np.float64]]
Integers = np.ndarray[Any, np.dtype[np.int64]]


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
    rewards at least `pair_gap` apart, `mean_gap` on average between best and worst; `largest_gap` is of any task.
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
    largest_gap: float
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
    """One environment's part of the rollouts. The figures of groups mean what they mean in `Groups`."""

    rows: int
    scored: int
    mean_reward: float
    min_reward: float
    max_reward: float
    success_rate: float
    num_tasks: int
    num_repeated: int
    num_varied: int
    num_pairs: int


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
    """Takes rollouts with `add`, gives `Statistics` with `finish`.

    Tasks are told apart by a 64-bit hash: among a million tasks two are taken for one with a chance of 3 in 10^8.
    """

    def __init__(self, success_threshold: float = SUCCESS, pair_gap: float = 0.2) -> None:
        self.success_threshold = success_threshold
        self.pair_gap = pair_gap
        self._rows = 0
        self._offering = self._using = self._malformed = self._token_rows = 0
        self._outcomes: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._environment_rows: dict[str, int] = {}
        self._environment_numbers: dict[str, int] = {}
        self._tasks, self._rewards, self._environments = array("q"), array("d"), array("I")
        self._components: dict[str, Moments] = {}
        self._metrics: dict[str, Moments] = {}
        self._turns, self._items, self._tokens = Moments(), Moments(), Moments()

    def add(self, rollout: Rollout, contents: Contents | None = None) -> None:
        """Count one rollout; `contents` are those of its output, where they are already known."""
        self._rows += 1
        self._outcomes[rollout.outcome] += 1
        environment = rollout.environment or "unknown"
        self._environment_rows[environment] = self._environment_rows.get(environment, 0) + 1
        if rollout.reward is None:
            return
        self._tasks.append(hash(rollout.task_id))
        self._rewards.append(rollout.reward)
        self._environments.append(self._environment_numbers.setdefault(environment, len(self._environment_numbers)))
        for table, values in ((self._components, rollout.components), (self._metrics, rollout.metrics)):
            for name, value in values.items():
                found = table.get(name)
                if found is None:
                    found = table[name] = Moments()
                found.add(value)
        self._add_output(rollout, contents or contents_of(rollout.output))

    def _add_output(self, rollout: Rollout, contents: Contents) -> None:
        self._items.add(len(rollout.output))
        self._turns.add(contents.num_turns)
        tokens = num_output_tokens(rollout, contents)
        self._token_rows += contents.has_ids
        if tokens is not None:
            self._tokens.add(tokens)
        self._offering += bool(rollout.params.get("tools"))
        self._using += bool(contents.calls)
        self._malformed += contents.num_malformed
        for call in contents.calls:
            self._calls[str(call.get("name"))] += 1

    def finish(self) -> Statistics:
        """The figures of everything added so far."""
        tasks, values = np.asarray(self._tasks, dtype=np.int64), np.asarray(self._rewards, dtype=np.float64)
        rewards = self._reward_figures(values)
        return Statistics(
            rows=self._rows,
            scored=rewards.summary.count,
            truncated=self._outcomes[Outcome.TRUNCATED],
            outcomes={name: self._outcomes[name] for name in Outcome if self._outcomes[name]},
            rewards=rewards,
            groups=_grouped(_by_task(tasks, values, rewards.success_threshold), self.pair_gap),
            components={name: values.summary() for name, values in sorted(self._components.items())},
            metrics={name: values.summary() for name, values in sorted(self._metrics.items())},
            turns=self._turns.summary(),
            items=self._items.summary(),
            output_tokens=self._tokens.summary(),
            num_with_token_ids=self._token_rows,
            tools=self._tools(rewards.summary.count),
            environments=self._environment_figures(tasks, values, rewards.success_threshold),
        )

    def _reward_figures(self, values: Floats) -> Rewards:
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

    def _tools(self, scored: int) -> Tools:
        calls = sum(self._calls.values())
        return Tools(
            num_offering=self._offering,
            num_using=self._using,
            num_calls=calls,
            calls_per_episode=calls / scored if scored else 0.0,
            by_name=dict(self._calls.most_common()),
            num_malformed=self._malformed,
        )

    def _environment_figures(self, tasks: Integers, values: Floats, threshold: float) -> dict[str, Environment]:
        numbers = np.asarray(self._environments)
        found: dict[str, Environment] = {}
        for name, rows in sorted(self._environment_rows.items()):
            mine = numbers == self._environment_numbers.get(name, -1)
            summary = summarize(values[mine])
            groups = _grouped(_by_task(tasks[mine], values[mine], threshold), self.pair_gap)
            found[name] = Environment(
                rows=rows,
                scored=summary.count,
                mean_reward=summary.mean,
                min_reward=summary.min,
                max_reward=summary.max,
                success_rate=int((values[mine] >= threshold).sum()) / summary.count if summary.count else 0.0,
                num_tasks=groups.num_tasks,
                num_repeated=groups.num_repeated,
                num_varied=groups.num_varied,
                num_pairs=groups.num_pairs,
            )
        return found


def collect_statistics(rollouts: Iterable[Rollout]) -> Statistics:
    """The statistics of all `rollouts`."""
    collector = StatisticsCollector()
    for rollout in rollouts:
        collector.add(rollout)
    return collector.finish()


class _Tasks(NamedTuple):
    """One number per task: rollouts, passing rollouts, least and greatest reward."""

    sizes: Integers
    passing: Integers
    low: Floats
    high: Floats


def _by_task(tasks: Integers, rewards: Floats, threshold: float) -> _Tasks:
    if not len(tasks):
        return _Tasks(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    order = np.argsort(tasks, kind="stable")
    ordered, values = tasks[order], rewards[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return _Tasks(
        np.diff(np.append(starts, len(ordered))),
        np.add.reduceat((values >= threshold).astype(np.int64), starts),
        np.minimum.reduceat(values, starts),
        np.maximum.reduceat(values, starts),
    )


def _grouped(tasks: _Tasks, pair_gap: float) -> Groups:
    repeated = tasks.sizes > 1
    gaps = (tasks.high - tasks.low)[repeated]
    flat = gaps == 0
    paired = gaps[(gaps >= pair_gap - TOLERANCE) & ~flat]
    all_pass = int((flat & (tasks.passing[repeated] > 0)).sum())
    return Groups(
        num_tasks=len(tasks.sizes),
        repeats=summarize(tasks.sizes),
        num_repeated=len(gaps),
        num_all_pass=all_pass,
        num_all_fail=int(flat.sum()) - all_pass,
        num_varied=int((~flat).sum()),
        pair_gap=pair_gap,
        num_pairs=len(paired),
        mean_gap=math.fsum(paired) / len(paired) if len(paired) else 0.0,
        largest_gap=float(gaps.max()) if len(gaps) else 0.0,
        pass_at=_pass_at(tasks),
    )


def pass_at_k(num_rollouts: int, num_passing: int, k: int) -> float:
    """The chance that k of the rollouts, drawn without putting back, hold a passing one."""
    if num_rollouts < k:
        raise ValueError(f"pass@{k} needs at least {k} rollouts, there are {num_rollouts}")
    if num_rollouts <= LARGE_GROUP:
        return 1.0 - math.comb(num_rollouts - num_passing, k) / math.comb(num_rollouts, k)
    drawn = np.arange(num_rollouts - num_passing + 1, num_rollouts + 1, dtype=np.float64)
    return 1.0 - float(np.prod(np.maximum(1.0 - k / drawn, 0.0)))


def _pass_at(tasks: _Tasks) -> list[PassAt]:
    """Tasks with as many rollouts and as many passing ones have the same chance: each such kind is computed once."""
    if not len(tasks.sizes):
        return []
    kinds, counts = np.unique(np.stack([tasks.sizes, tasks.passing], axis=1), axis=0, return_counts=True)
    most = int(kinds[:, 0].max())
    found: list[PassAt] = []
    for k in sorted({*(2**power for power in range(most.bit_length())), most}):
        enough = [(int(n), int(c), int(times)) for (n, c), times in zip(kinds, counts, strict=True) if n >= k]
        num_tasks = sum(times for _, _, times in enough)
        total = math.fsum(pass_at_k(n, c, k) * times for n, c, times in enough)
        found.append(PassAt(k, total / num_tasks, num_tasks))
    return found


def _histogram(values: Floats) -> list[Bin]:
    if not len(values):
        return []
    low, high = min(0.0, float(values.min())), max(1.0, float(values.max()))
    counts, edges = np.histogram(values, bins=NUM_BINS, range=(low, high))
    places = [round(float(edge), 10) for edge in edges]
    return [Bin(places[i], places[i + 1], int(counts[i])) for i in range(NUM_BINS)]


def num_output_tokens(rollout: Rollout, contents: Contents) -> int | None:
    """Number of sampled tokens: from the token ids, or else from the response's usage."""
    if contents.has_ids:
        return sum(len(item["generation_token_ids"] or ()) for item in rollout.output if "generation_token_ids" in item)
    response = rollout.row.get("response")
    usage = cast("dict[str, Any]", response).get("usage") if isinstance(response, dict) else rollout.row.get("usage")
    tokens = cast("dict[str, Any]", usage).get("output_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int else None
