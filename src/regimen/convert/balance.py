"""How much of each environment stays: a limit by the smallest one, or shares by weights.

In: light figures, one `TaskRows` per task; no episodes. Out: how many rows of each task stay, or how often each task
stands. Which tasks are left out depends on a seeded hash of the task alone, so that the choice is stable.
Refuses, with `ConvertError`: weights that do not name the environments there are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from regimen.convert.split import task_position
from regimen.errors import ConvertError


class TaskRows(msgspec.Struct, frozen=True):
    """A task of an environment, and how many rows it could give."""

    environment: str | None
    task_id: str
    num_rows: int = 1


class MixCount(msgspec.Struct, frozen=True, kw_only=True):
    """What a mixture made of one environment: its weight, its tasks before and after, and rows with repeats."""

    weight: float
    tasks_seen: int
    tasks_kept: int
    rows: int


def balanced_rows(tasks: Iterable[TaskRows], ratio: float, seed: int) -> dict[str, int]:
    """Rows that each task keeps, so that no environment has more than `ratio` times the rows of the smallest."""
    groups = _by_environment(tasks, seed)
    totals = {name: sum(task.num_rows for task in group) for name, group in groups.items()}
    limit = math.floor(ratio * min((total for total in totals.values() if total), default=0))
    kept: dict[str, int] = {}
    for group in groups.values():
        left = limit
        for task in group:
            kept[task.task_id] = min(task.num_rows, left)
            left -= kept[task.task_id]
    return kept


def mixed_tasks(
    tasks: Sequence[TaskRows], weights: Mapping[str, float], upsample: bool, seed: int
) -> tuple[dict[str, int], dict[str, MixCount]]:
    """How often each task stands so that the environments' tasks relate as `weights`, and counts for the manifest.

    Without `upsample` each stands once or not at all, and one environment keeps all its tasks. With it the tasks of
    one environment stand once each and those of others are repeated as evenly as whole numbers allow.
    """
    groups = _by_environment(tasks, seed)
    weight_of = _weights_by_environment(list(groups), weights)
    sizes = [len(group) / weight_of[name] for name, group in groups.items()]
    scale = max(sizes) if upsample else min(sizes)
    copies: dict[str, int] = {}
    counts: dict[str, MixCount] = {}
    for name, group in groups.items():
        target = max(1, round(scale * weight_of[name]))
        whole, rest = divmod(target, len(group))
        copies |= {task.task_id: whole + (index < rest) for index, task in enumerate(group)}
        counts[name] = MixCount(
            weight=weight_of[name], tasks_seen=len(group), tasks_kept=min(target, len(group)), rows=target
        )
    return copies, counts


def _by_environment(tasks: Iterable[TaskRows], seed: int) -> dict[str, list[TaskRows]]:
    """Tasks by environment in the order of a seeded hash, which is not the split's: the two must not go together."""
    groups: defaultdict[str, list[TaskRows]] = defaultdict(list)
    for task in tasks:
        groups[task.environment or "none"].append(task)
    return {
        name: sorted(groups[name], key=lambda task: (task_position(f"share\x00{task.task_id}", seed), task.task_id))
        for name in sorted(groups)
    }


def _weights_by_environment(environments: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    """The weight of each environment; a name may be the beginning of one environment's, as `mcqa` of `mcqa_agent`."""
    found: dict[str, float] = {}
    for name, weight in weights.items():
        meant = [name] if name in environments else [known for known in environments if known.startswith(name)]
        if len(meant) != 1 or meant[0] in found:
            raise ConvertError(
                f"{name!r} names {len(meant) or 'no'} environments", where="--mix", expected=_listed(environments)
            )
        found[meant[0]] = weight
    if len(found) < len(environments):
        left = sorted(set(environments) - set(found))
        raise ConvertError(
            f"no weight for {', '.join(left)}",
            where="--mix",
            expected=_listed(environments),
            fix="name every environment",
        )
    return found


def _listed(environments: Sequence[str]) -> str:
    return f"each of {', '.join(environments) or 'no environments'} once"
