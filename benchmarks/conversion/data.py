"""Generated rollouts in NeMo Gym's shape: several turns with reasoning, tool calls and tool outputs, about 14 KB a row.

Rows stand in completion order: the repeats of a task are scattered over a window, as many episodes run at once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPEATS = 8
MEAN_ROW = 14_300  # bytes, as generated
WINDOW = 4096  # rows that are in flight together
TEXT = (
    "the order was placed on Monday and has not been shipped because the address could not be verified customer asks "
    "for refund policy allows thirty days check inventory status warehouse delivery carrier tracking number returned "
    "item damaged replacement approve escalate manager note update account email phone confirm amount discount invoice"
)
WORDS = TEXT.split()
TOOL_NAMES = ("find_order", "list_items", "update_address", "issue_refund", "send_message", "search_policy")
NULL_KEYS = (
    "background", "include", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model",
    "previous_response_id", "prompt", "prompt_cache_key", "reasoning", "safety_identifier", "service_tier", "store",
    "stream", "stream_options", "text", "top_logprobs", "truncation", "user",
)  # fmt: skip


def write_rollouts(path: Path, num_bytes: int, seed: int = 0) -> int:
    """Write about `num_bytes`, whole tasks only; returns the number of rows."""
    num_tasks = -(-num_bytes // (REPEATS * MEAN_ROW))
    with path.open("wb") as file:
        for row in _in_completion_order(random.Random(seed), num_tasks):
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return num_tasks * REPEATS


def _in_completion_order(generator: random.Random, num_tasks: int) -> Iterator[dict[str, object]]:
    in_flight: list[dict[str, object]] = []
    shop = _shop(generator)
    for task in range(num_tasks):
        shared = _task(generator, shop)
        difficulty = generator.random()
        in_flight.extend(_row(generator, shared, task, repeat, difficulty) for repeat in range(REPEATS))
        while len(in_flight) > WINDOW:
            place = generator.randrange(len(in_flight))
            in_flight[place], in_flight[-1] = in_flight[-1], in_flight[place]
            yield in_flight.pop()
    generator.shuffle(in_flight)
    yield from in_flight


def _text(generator: random.Random, num_words: int) -> str:
    return " ".join(generator.choices(WORDS, k=num_words))


def _shop(generator: random.Random) -> dict[str, object]:
    """What all tasks of the environment have: the tools, and the policy in the system prompt."""
    tools = [
        {
            "type": "function",
            "name": name,
            "description": _text(generator, 12),
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": "string", "description": _text(generator, 8)} for key in ("order_id", "reason")
                },
                "required": ["order_id"],
                "additionalProperties": False,
            },
            "strict": True,
        }
        for name in TOOL_NAMES
    ]
    policy = {"type": "message", "role": "system", "content": "You help customers of a shop. " + _text(generator, 150)}
    return {"input": [policy], "tools": tools, "tool_choice": "auto"}


def _task(generator: random.Random, shop: dict[str, Any]) -> dict[str, object]:
    case = f"Case {generator.getrandbits(32)}: " + _text(generator, 60)
    params = dict.fromkeys(NULL_KEYS) | shop
    params["input"] = [*shop["input"], {"type": "message", "role": "user", "content": case}]
    return params | {"parallel_tool_calls": True, "temperature": 0.8, "top_p": 1.0}


def _row(
    generator: random.Random, params: dict[str, object], task: int, repeat: int, difficulty: float
) -> dict[str, object]:
    output: list[dict[str, object]] = []
    for turn in range(generator.randint(2, 4)):
        output.append(_reasoning(generator, turn))
        for call in range(generator.choice((1, 1, 2))):
            call_id = f"call_{generator.getrandbits(64):016x}"
            arguments = json.dumps({"order_id": f"A{generator.randint(1000, 9999)}", "reason": _text(generator, 5)})
            output.append(
                {"type": "function_call", "id": f"fc_{turn}_{call}", "call_id": call_id, "status": "completed"}
                | {"name": generator.choice(TOOL_NAMES), "arguments": arguments}
            )
        calls = [item["call_id"] for item in output if item["type"] == "function_call"]
        answered = {item["call_id"] for item in output if item["type"] == "function_call_output"}
        output.extend(
            {"type": "function_call_output", "call_id": call_id}
            | {"output": json.dumps({"status": "ok", "detail": _text(generator, 60)}), "id": None, "status": None}
            for call_id in calls
            if call_id not in answered
        )
    output.append(_reasoning(generator, 9))
    part = {"type": "output_text", "text": _text(generator, 80), "annotations": [], "logprobs": None}
    output.append({"type": "message", "id": "msg_0", "role": "assistant", "status": "completed", "content": [part]})
    reward = float(generator.random() > difficulty)
    response = {"id": f"resp_{task}_{repeat}", "object": "response", "created_at": 1.7e9, "model": "policy"}
    response |= {"status": "completed", "error": None, "incomplete_details": None, "output": output}
    response |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": params["tools"]}
    response |= {"usage": {"input_tokens": 1200, "output_tokens": 400, "total_tokens": 1600}}
    return {
        "responses_create_params": params,
        "response": response,
        "reward": reward,
        "expected_answer": f"resolution {task % 7}",
        "accuracy": reward,
        "num_steps": len(output),
        "mask_sample": False,
        "failure_kind": None,
        "failure_reason": None,
        "_ng_task_index": task,
        "_ng_rollout_index": repeat,
        "agent_ref": {"type": "responses_api_agents", "name": "shop_agent"},
    }


def _reasoning(generator: random.Random, turn: int) -> dict[str, object]:
    summary = [{"type": "summary_text", "text": _text(generator, 60)}]
    return {"type": "reasoning", "id": f"rs_{turn}", "summary": summary, "content": None, "encrypted_content": None}
