from collections.abc import Callable

import pytest

from regimen.rollouts.records import Rollout, Source, rollout_from_row


@pytest.fixture
def episodes() -> Callable[..., list[Rollout]]:
    """Makes one rollout per reward of each group (task); every answer differs, the truth is in the row."""

    def make(*groups: list[float], **fields: object) -> list[Rollout]:
        made: list[Rollout] = []
        for task, rewards in enumerate(groups):
            for repeat, reward in enumerate(rewards):
                row = {
                    "responses_create_params": {"input": f"task {task}"},
                    "output": [{"role": "assistant", "content": f"answer {task} {repeat}"}],
                    "reward": reward,
                    "expected_answer": "x",
                    "_ng_task_index": task,
                    "_ng_rollout_index": repeat,
                    **fields,
                }
                made.append(rollout_from_row(row, Source("r.jsonl", len(made) + 1)))
        return made

    return make
