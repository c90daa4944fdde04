"""The figures of a collection, in the shape of NeMo Gym's `X_aggregate_metrics.json`.

In: finished rows. Out: a list with one entry per environment. Failed episodes are counted beside, never averaged in.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from regimen.rollouts.records import Source, rollout_from_row
from regimen.rollouts.statistics import pass_at_k

PASS_THRESHOLD = 1.0
_USAGE = ("input_tokens", "output_tokens", "total_tokens")


def aggregate_metrics(rows: Sequence[dict[str, Any]], environment: str, num_failures: int = 0) -> list[dict[str, Any]]:
    """Mean, max, min, median and deviation of every number; pass@k in percent; the same per task."""
    groups: defaultdict[int, list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        groups[row["_ng_task_index"]].append(row_numbers(row))
    every = [numbers for group in groups.values() for numbers in group]
    metrics: dict[str, Any] = summary_of(every)
    passes = _pass_rates(groups)
    metrics |= passes
    metrics |= {"num_repeats": max(map(len, groups.values()), default=0), "num_rollouts": len(every)}
    metrics["num_failures"] = num_failures
    return [
        {
            "agent_ref": {"name": environment},
            "_ng_environment_server": environment,
            "agent_metrics": metrics,
            "key_metrics": {key: metrics[key] for key in ("mean/reward", *passes) if key in metrics},
            "group_level_metrics": [{"_ng_task_index": index, **summary_of(groups[index])} for index in sorted(groups)],
        }
    ]


def aggregate_by_environment(
    rows: Sequence[dict[str, Any]], failures: Sequence[dict[str, Any]], environment: str
) -> list[dict[str, Any]]:
    """`aggregate_metrics` of each environment that the rows name, by name; of `environment` where there is no row."""
    names = sorted({_environment_of(row, environment) for row in (*rows, *failures)}) or [environment]
    entries: list[dict[str, Any]] = []
    for name in names:
        own = [row for row in rows if _environment_of(row, environment) == name]
        num_failures = sum(_environment_of(row, environment) == name for row in failures)
        entries += aggregate_metrics(own, name, num_failures)
    return entries


def _environment_of(row: Mapping[str, Any], otherwise: str) -> str:
    return str(row.get("_ng_environment_server") or otherwise)


def row_numbers(row: dict[str, Any]) -> dict[str, float]:
    """Everything numeric that a row says of its episode: the reward, the verifier's metrics, the tokens used."""
    rollout = rollout_from_row(row, Source("", 0))
    usage: Mapping[str, float] = row["response"].get("usage") or {}
    tokens = {key: float(usage[key]) for key in _USAGE if key in usage}
    return {"reward": float(row["reward"]), **rollout.metrics, **tokens}


def summary_of(episodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """`mean/x`, `max/x`, `min/x`, `median/x`, `std/x` for every number x that an episode has."""
    names = list(dict.fromkeys(name for numbers in episodes for name in numbers))
    values = {name: [numbers[name] for numbers in episodes if name in numbers] for name in names}
    functions = {"mean": statistics.fmean, "max": max, "min": min, "median": statistics.median, "std": _deviation}
    return {f"{label}/{name}": float(function(values[name])) for label, function in functions.items() for name in names}


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _pass_rates(groups: Mapping[int, Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """pass@k in percent, for every k that all tasks have rollouts for."""
    rates: dict[str, float] = {}
    for k in range(1, min(map(len, groups.values()), default=0) + 1):
        chances = [
            pass_at_k(len(group), sum(numbers["reward"] >= PASS_THRESHOLD for numbers in group), k)
            for group in groups.values()
        ]
        rates[f"pass@{k}/reward"] = 100 * statistics.fmean(chances)
    return rates
