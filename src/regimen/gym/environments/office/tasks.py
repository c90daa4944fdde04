"""Work in an office, generated from a seed.

In: a split, a count, a seed. Out: task rows, in the same order at every call, the kinds in turn. A task belongs to a
split by the hash of what it asks, whatever the seed, so splits share no request.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from regimen.gym.environment import Split
from regimen.gym.environments.office.kinds import KINDS, Job
from regimen.gym.environments.office.tools import ME, NOW, definitions
from regimen.gym.generated import in_turn

NUM_TASKS: dict[Split, int] = {"train": 480, "validation": 96, "test": 192}
MAX_ATTEMPTS = 5000
SYSTEM = (
    f"You look after the mail, the calendar and the tasks of one person, whose address is {ME}. It is Monday, {NOW}. "
    "Do what is asked with the tools and change nothing else. Say so when it is done."
)


def task_rows(split: Split, num_tasks: int, seed: int) -> list[dict[str, Any]]:
    """The first `num_tasks` task rows of `split`; raises `ConfigError` when there are no more."""
    generator = jobs(split, seed)
    return [task_row(next(generator), split) for _ in range(num_tasks)]


def task_row(job: Job, split: Split) -> dict[str, Any]:
    """A NeMo Gym task row: the prompt, the tools, what the office holds, and the goals."""
    messages = [("system", SYSTEM), ("user", job.text)]
    return {
        "responses_create_params": {
            "input": [{"type": "message", "role": role, "content": content} for role, content in messages],
            "tools": definitions(),
        },
        "office": msgspec.to_builtins(job.contents),
        "goals": job.goals,
        "kind": job.kind,
        "split": split,
        "agent_ref": {"name": "office"},
    }


def jobs(split: Split, seed: int) -> Iterator[Job]:
    """Jobs of `split`, none twice, the kinds in turn."""
    return in_turn("office", KINDS, split, seed, MAX_ATTEMPTS)
