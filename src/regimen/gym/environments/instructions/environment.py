"""The instructions environment: requests with instructions that rules can check, as the benchmark IFEval has them."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import msgspec

from regimen.errors import ConfigError, GymError
from regimen.gym.answers import final_text, question_of, without_thinking
from regimen.gym.conformance import message
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.environments.instructions.checks import Instruction, instruction
from regimen.gym.environments.instructions.prose import fault_of
from regimen.gym.environments.instructions.tasks import NUM_TASKS, repeated_part, task_rows
from regimen.gym.environments.instructions.writer import written
from regimen.gym.generated import first_tasks


class _Row(msgspec.Struct):
    """The verifier's fields of a task row."""

    instruction_id_list: list[str]
    kwargs: list[dict[str, Any] | None]
    subject: list[str] | None = None
    grading_mode: Literal["binary", "fraction"] = "binary"


class Instructions(Environment):
    """A text that follows one to three instructions.

    Options: `seed` of the generated tasks; `components`, one for `each` instruction or the `share` that is followed.
    Splits are the same for all options.
    """

    name = "instructions"
    max_turns = 1

    def __init__(self, *, seed: int = 0, components: Literal["each", "share"] = "each") -> None:
        super().__init__()
        if components not in ("each", "share"):
            raise ConfigError(f"components is {components!r}", expected="each or share")
        self.task_seed = seed
        self.components = components

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` requests of `split`."""
        return first_tasks(split, num_tasks, NUM_TASKS, partial(task_rows, seed=self.task_seed))

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]] | None:  # noqa: ARG002
        """A text that follows every instruction; None for a task that is not one of the generated ones."""
        row = _read(task.row)
        text = written(row.subject[0], _instructions(row)) if row.subject else None
        return None if text is None else [message(text)]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """1 when every instruction is followed, else 0; raises `GymError` for a task that cannot be judged."""
        row = _read(task.row)
        instructions = _instructions(row)
        text = without_thinking(final_text(output) or "").strip()
        followed = [one.is_followed(text) for one in instructions]
        fault = None
        if row.subject:
            fault = fault_of(text, row.subject, question_of(task.row), repeated_part(instructions))
        score = sum(followed) / len(followed) if row.grading_mode == "fraction" else float(all(followed))
        return Verdict(
            reward=0.0 if fault else score,
            components=self._components(instructions, followed) | {"on_task": float(not fault)},
            metrics={
                "follow_all_instructions": all(followed),
                "share_followed": sum(followed) / len(followed),
                "fault": fault,
                "kind": task.row.get("kind"),
                "split": task.row.get("split"),
            },
        )

    def _components(self, instructions: list[Instruction], followed: list[bool]) -> dict[str, float]:
        """One per instruction, by its id; a second one of the same id has its number behind it. Or their share."""
        if self.components == "share":
            return {"followed": sum(followed) / len(followed)}
        components: dict[str, float] = {}
        for one, is_followed in zip(instructions, followed, strict=True):
            count = sum(key.partition("#")[0] == one.id for key in components)
            components[one.id if not count else f"{one.id}#{count + 1}"] = float(is_followed)
        return components


def _read(row: dict[str, Any]) -> _Row:
    try:
        found = msgspec.convert(row, _Row)
    except msgspec.ValidationError as error:
        raise GymError(f"the task row: {error}", expected="instruction_id_list and kwargs, of equal length") from error
    if not found.instruction_id_list or len(found.instruction_id_list) != len(found.kwargs):
        counts = f"{len(found.instruction_id_list)} instructions and {len(found.kwargs)} kwargs"
        raise GymError(f"the task row has {counts}", expected="one or more, and kwargs for each")
    return found


def _instructions(row: _Row) -> list[Instruction]:
    return [instruction(id, given) for id, given in zip(row.instruction_id_list, row.kwargs, strict=True)]
