"""Light figures of tasks, for what must be decided over all of them before any is written.

In: a `Work`. Out: a few numbers a task. What is counted on the way is thrown away: the second pass counts it again.
"""

from __future__ import annotations

from regimen.convert.balance import TaskRows
from regimen.convert.pairs import Leftover, leftover_of
from regimen.pipelines.selection import Stage, Work


def balance_figures(work: Work) -> list[TaskRows]:
    """How many rows each task could give, for limits that balance environments."""
    stage = Stage(work)
    with stage.reader:
        found = [(group, stage.sft_candidates(stage.scored(group))) for group in work.groups]
    return [TaskRows(group[0].environment, group[0].task_id, len(episodes)) for group, episodes in found if episodes]


def mix_figures(work: Work) -> list[TaskRows]:
    """The tasks that could be played."""
    stage = Stage(work)
    with stage.reader:
        found = [example for group in work.groups for example in stage.grpo_examples(stage.scored(group))]
    return [TaskRows(example.environment, example.task_id) for example in found]


def left_figures(work: Work) -> list[Leftover]:
    """The rows that no task of their own pairs."""
    stage = Stage(work)
    with stage.reader:
        return [leftover_of(episode) for group in work.groups for episode in stage.paired(stage.scored(group)).left]
