"""The loop that people write, frozen for the benchmark: `json.loads` every line, keep dicts, `json.dumps` the rows.

In: a rollouts file with task stamps, a target, a folder. Out: train.jsonl and val.jsonl with the rows that
`regimen convert` writes for the same file (SFT: passing and distinct; DPO: best against worst of a task; GRPO: each
task once), in another order. It knows only the shapes of the generated file, and counts nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

VALIDATION = 0.1


def main(source: Path, target: str, out: Path) -> None:
    """Convert the file."""
    out.mkdir(parents=True)
    with (out / "train.jsonl").open("w") as train, (out / "val.jsonl").open("w") as validation:
        for task, row in ROWS[target](source):
            digest = hashlib.sha256(f"0\x00shop_agent/{task}".encode()).digest()
            is_held_out = int.from_bytes(digest[:8], "big") / 2**64 < VALIDATION
            (validation if is_held_out else train).write(json.dumps(row) + "\n")


def sft_rows(source: Path) -> Any:
    seen: set[tuple[int, str]] = set()
    with source.open() as lines:
        for line in lines:
            rollout = json.loads(line)
            if rollout["reward"] < 1.0:
                continue
            task, completion = rollout["_ng_task_index"], messages_of(rollout["response"]["output"])
            key = (task, json.dumps(without_ids(completion)))
            if key in seen:
                continue
            seen.add(key)
            params = rollout["responses_create_params"]
            yield task, {"messages": prompt_of(params) + completion, "tools": tools_of(params)}


def dpo_rows(source: Path) -> Any:
    groups: dict[int, list[Any]] = {}
    with source.open() as lines:
        for line in lines:
            rollout = json.loads(line)
            params = rollout["responses_create_params"]
            completion = messages_of(rollout["response"]["output"])
            kept = (rollout["reward"], rollout["_ng_rollout_index"], completion, prompt_of(params), tools_of(params))
            groups.setdefault(rollout["_ng_task_index"], []).append(kept)
    for task, group in groups.items():
        ranked = sorted(group, key=lambda kept: (-kept[0], kept[1]))
        best, worst = ranked[0], next(kept for kept in ranked if kept[0] == ranked[-1][0])
        if best[0] - worst[0] < 0.2:
            continue
        yield (
            task,
            {
                "context": best[3],
                "completions": [{"rank": 0, "completion": best[2]}, {"rank": 1, "completion": worst[2]}],
                "tools": best[4],
                "chosen_reward": best[0],
                "rejected_reward": worst[0],
                "reward_gap": best[0] - worst[0],
            },
        )


def grpo_rows(source: Path) -> Any:
    tasks: dict[int, Any] = {}
    with source.open() as lines:
        for line in lines:
            rollout = json.loads(line)
            params = {key: value for key, value in rollout["responses_create_params"].items() if value is not None}
            for setting in ("temperature", "top_p"):
                params.pop(setting, None)
            tasks.setdefault(
                rollout["_ng_task_index"],
                {
                    "responses_create_params": params,
                    "expected_answer": rollout["expected_answer"],
                    "agent_ref": rollout["agent_ref"],
                    "_ng_task_index": rollout["_ng_task_index"],
                },
            )
    yield from tasks.items()


def prompt_of(params: dict[str, Any]) -> list[Any]:
    return [{"role": item["role"], "content": item["content"]} for item in params["input"]]


def tools_of(params: dict[str, Any]) -> list[Any]:
    return [
        {"type": "function", "function": {key: tool[key] for key in ("name", "description", "parameters")}}
        for tool in params["tools"]
    ]


def messages_of(output: list[Any]) -> list[Any]:
    messages: list[Any] = []
    message: dict[str, Any] | None = None
    names: dict[str, str] = {}
    for item in output:
        if item["type"] == "function_call_output":
            if message is not None:
                messages.append(message)
                message = None
            call = item["call_id"]
            messages.append({"role": "tool", "tool_call_id": call, "name": names[call], "content": item["output"]})
            continue
        if message is None:
            message = {"role": "assistant", "content": ""}
        if item["type"] == "reasoning":
            message["reasoning_content"] = "\n".join(part["text"] for part in item["summary"])
        elif item["type"] == "message":
            message["content"] = "".join(part["text"] for part in item["content"])
        else:
            names[item["call_id"]] = item["name"]
            function = {"name": item["name"], "arguments": item["arguments"]}
            message.setdefault("tool_calls", []).append(
                {"id": item["call_id"], "type": "function", "function": function}
            )
    return messages if message is None else [*messages, message]


def without_ids(messages: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for message in messages:
        copy = {key: value for key, value in message.items() if key != "tool_call_id"}
        if "tool_calls" in copy:
            copy["tool_calls"] = [call["function"] for call in copy["tool_calls"]]
        kept.append(copy)
    return kept


ROWS = {"sft": sft_rows, "dpo": dpo_rows, "grpo": grpo_rows}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
