from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regimen.pipelines.samples import samples_of
from regimen.tracking.base import Sample


def row(task: int, repeat: int, reward: float, output: list[dict[str, Any]]) -> dict[str, Any]:
    params = {"instructions": "Be brief.", "input": [{"role": "user", "content": f"Question {task}"}]}
    return {
        "_ng_task_index": task,
        "_ng_rollout_index": repeat,
        "responses_create_params": params,
        "response": {"output": output},
        "reward": reward,
    }


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def test_the_first_tasks_as_a_person_reads_them(tmp_path: Path) -> None:
    call = {"type": "function_call", "name": "add", "arguments": '{"a": 1}', "call_id": "c"}
    result = {"type": "function_call_output", "call_id": "c", "output": "2"}
    rows = [row(task, 0, 0.5, [said(f"Answer {task}")]) for task in (7, 3, 9, 5)]  # as they ended
    rows += [row(1, 1, 0.0, [said("second repeat")]), row(1, 0, 1.0, [call, result, said("It is 2.")])]
    failed = {**row(2, 0, 0.0, []), "_ng_failure_class": "timed_out", "_ng_failure_message": "too slow"}
    path = tmp_path / "validation_4.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "validation_4_failures.jsonl").write_text(json.dumps(failed) + "\n")
    first, second, third, fourth = samples_of(path)
    assert first == Sample(
        prompt="[system] Be brief.\n[user] Question 1",
        answer='[call] add({"a": 1})\n[tool] 2\n[assistant] It is 2.',
        reward=1.0,
    )
    assert (second.answer, second.reward) == ("timed_out: too slow", None)
    assert (third.answer, fourth.answer) == ("[assistant] Answer 3", "[assistant] Answer 5")
    assert str(first).startswith("--- reward 1\n[system]")
    assert str(second).startswith("--- failed\n")
