"""Reasoning puzzles: tasks drawn from the package's datasets in turn, and a verdict on the text between answer tags.

In: names of datasets, their settings, a seed. Out: tasks that name dataset and index; reward 1 or 0, or the package's
score with `partial`. Refuses: what `package.py` refuses, and more tasks than the datasets hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from regimen.errors import ConfigError
from regimen.gym.answers import final_text, without_thinking
from regimen.gym.conformance import message
from regimen.gym.environment import Environment, Split, Task, Verdict
from regimen.gym.environments.reasoning_gym.package import WHERE, Package, Puzzle
from regimen.gym.generated import first_tasks, split_of

NUM_TASKS: dict[Split, int] = {"train": 400, "validation": 100, "test": 200}
SIZE = 500  # puzzles of one dataset, as the package has it
INSTRUCTION = (
    "Think if you need to. Then give the final answer, and nothing else, between <answer> and </answer>. "
    "Where the problem shows a format for its answer, follow it exactly."
)
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


class ReasoningGym(Environment):
    """Every dataset of `reasoning-gym`.

    Options: `dataset`, a name, names, or names with the package's settings of difficulty; `seed` of the puzzles;
    `size`, how many of each dataset; `partial` gives the package's score between 0 and 1 instead of 1 for a full score
    and 0 for less.
    """

    name = "reasoning_gym"
    max_turns = 1

    def __init__(
        self,
        *,
        dataset: str | Sequence[str] | Mapping[str, Mapping[str, Any] | None] | None = None,
        seed: int = 0,
        size: int = SIZE,
        partial: bool = False,
    ) -> None:
        super().__init__()
        for option, value, least in (("seed", seed, 0), ("size", size, 1)):
            if type(value) is not int or value < least:
                raise ConfigError(f"{option} is {value!r}", where=WHERE, expected=f"a whole number of at least {least}")
        self.partial = partial
        self.package = Package(dataset, seed, size)

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """The first `num_tasks` puzzles of `split`, one of each dataset in turn."""
        sizes: dict[Split, int] = dict(NUM_TASKS)
        if num_tasks is None and split in sizes:
            sizes[split] = self._available(split)
        return first_tasks(split, num_tasks, sizes, self._rows)

    def _available(self, split: Split) -> int:
        """As many as by default, or fewer where the datasets hold fewer."""
        return sum(1 for _, _ in zip(range(NUM_TASKS[split]), self._in_turn(split), strict=False))

    def _rows(self, split: Split, num_tasks: int) -> list[dict[str, Any]]:
        rows = [_row(puzzle, split) for _, puzzle in zip(range(num_tasks), self._in_turn(split), strict=False)]
        if len(rows) < num_tasks:
            raise ConfigError(
                f"the datasets hold {len(rows)} {split} tasks, {num_tasks} were asked for",
                where=WHERE,
                fix="ask for fewer tasks, raise size, or name more datasets",
            )
        return rows

    def _in_turn(self, split: Split) -> Iterator[Puzzle]:
        sources = {name: self._puzzles(name, split) for name in self.package.settings}
        while sources:
            for name in list(sources):
                puzzle = next(sources[name], None)
                if puzzle is None:
                    del sources[name]
                else:
                    yield puzzle

    def _puzzles(self, name: str, split: Split) -> Iterator[Puzzle]:
        """The dataset's different questions that belong to `split`."""
        seen: set[str] = set()
        for index in range(self.package.size):
            puzzle = self.package.puzzle(name, index)
            if puzzle.question not in seen and split_of(self.name_of_splits, puzzle.question) == split:
                seen.add(puzzle.question)
                yield puzzle

    name_of_splits = "reasoning_gym"  # a mixture may name the environment otherwise; its splits stay

    async def solve(self, session: Any, task: Task) -> list[dict[str, Any]] | None:  # noqa: ARG002
        """The package's own answer, where it gives one."""
        answer = task.row["expected_answer"]
        return None if answer is None else [message(f"<answer>{answer}</answer>")]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """The package's score of the last `<answer>` in the final message; nothing outside the tags counts."""
        row = task.row
        answer = extract_answer(final_text(output))
        found, problem = 0.0, "no answer"
        if answer is not None:
            found, problem = await self.package.score(row["dataset"], row["dataset_index"], row["question"], answer)
        return Verdict(
            reward=found if self.partial else float(found >= 1),
            metrics={
                "dataset": row["dataset"],
                "score": found,
                "extracted_answer": None if answer is None else answer[:200],
                "problem": problem,
                "split": row.get("split"),
            },
        )


def extract_answer(text: str | None) -> str | None:
    """What stands in the last pair of answer tags; None where there is none or it is empty."""
    found = _ANSWER.findall(without_thinking(text or ""))
    return found[-1] if found and found[-1].strip() else None


def _row(puzzle: Puzzle, split: Split) -> dict[str, Any]:
    content = f"{puzzle.question}\n\n{INSTRUCTION}"
    return {
        "responses_create_params": {"input": [{"type": "message", "role": "user", "content": content}]},
        "question": puzzle.question,
        "expected_answer": puzzle.answer,
        "dataset": puzzle.dataset,
        "dataset_index": puzzle.index,
        "split": split,
        "agent_ref": {"name": "reasoning_gym"},
    }
