"""A few episodes of a validation, as a person reads them.

In: the rollouts that a validation wrote. Out: `Sample`s of its first tasks, the same tasks each time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from regimen.gym.protocol import files_of
from regimen.gym.store import read_complete_lines
from regimen.rollouts.messages import content_text, input_messages, output_messages
from regimen.tracking.base import Sample

NUM_SAMPLES = 4


def samples_of(rollouts: Path) -> list[Sample]:
    """One episode of each of the first tasks; one that failed says why and has no reward."""
    rows = [*read_complete_lines(rollouts), *read_complete_lines(files_of(rollouts).failures)]
    first = {row["_ng_task_index"]: row for row in sorted(rows, key=lambda row: -row["_ng_rollout_index"])}
    return [_sample(first[index]) for index in sorted(first)[:NUM_SAMPLES]]


def _sample(row: dict[str, Any]) -> Sample:
    prompt = _text(input_messages(row.get("responses_create_params") or {"input": ""}))
    if "_ng_failure_class" in row:
        failure = f"{row['_ng_failure_class']}: {row.get('_ng_failure_message')}"
        return Sample(prompt=prompt, answer=failure, reward=None)
    answer = _text(output_messages(row["response"]["output"]))
    return Sample(prompt=prompt, answer=answer, reward=float(row["reward"]))


def _text(messages: list[dict[str, Any]]) -> str:
    return "\n".join(line for message in messages for line in _lines(message))


def _lines(message: dict[str, Any]) -> list[str]:
    said = content_text(message.get("content") or "")
    lines = [f"[{message['role']}] {said}"] if said or not message.get("tool_calls") else []
    for call in message.get("tool_calls") or []:
        function = call["function"]
        arguments = function["arguments"]
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        lines.append(f"[call] {function['name']}({text})")
    return lines
