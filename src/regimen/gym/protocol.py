"""NeMo Gym's row layout: Responses items, finished rows, failure rows, and the files beside a rollouts file.

In: chat messages, samples, verdicts. Out: plain dicts that NeMo Gym's own tools and `regimen.rollouts` read.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec

from regimen.generation.base import Reply, Sampling, Tokens
from regimen.gym.environment import Verdict

Item = dict[str, Any]


class Files(msgspec.Struct, frozen=True):
    """The files of a collection."""

    rollouts: Path
    tasks: Path
    failures: Path
    metrics: Path
    settings: Path


def files_of(output: Path) -> Files:
    """`X.jsonl` and its siblings.

    `X_materialized_inputs.jsonl`, `X_failures.jsonl`, `X_aggregate_metrics.json`, and (ours) `X_settings.json`.
    """
    return Files(
        output,
        output.with_name(f"{output.stem}_materialized_inputs.jsonl"),
        output.with_name(f"{output.stem}_failures.jsonl"),
        output.with_name(f"{output.stem}_aggregate_metrics.json"),
        output.with_name(f"{output.stem}_settings.json"),
    )


def assistant_items(reply: Reply, prefix: str) -> list[Item]:
    """The items of one model call: reasoning, message, calls; the last one carries the token fields, if known.

    A message item is there when the model said something, or called nothing.
    """
    message = reply.message
    status = "completed" if reply.stop_reason == "stop" else "incomplete"
    items: list[Item] = []
    reasoning, text, calls = message.get("reasoning_content"), message.get("content") or "", _calls(message)
    if reasoning:
        summary = [{"type": "summary_text", "text": reasoning}]
        items.append({"id": f"rs_{prefix}", "type": "reasoning", "summary": summary})
    if text or not calls:
        content: list[Item] = [{"type": "output_text", "text": text, "annotations": []}]
        items.append(
            {"id": f"msg_{prefix}", "type": "message", "role": "assistant", "status": status, "content": content}
        )
    for call in calls:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        items.append(
            {
                "id": call["id"],
                "type": "function_call",
                "call_id": call["id"],
                "name": name,
                "arguments": arguments,
                "status": "completed",
            }
        )
    if reply.tokens is not None:
        items[-1] |= token_fields(reply.tokens)
    return items


def token_fields(tokens: Tokens) -> dict[str, Any]:
    """NeMo Gym's three token fields."""
    return {
        "prompt_token_ids": list(tokens.prompt_ids),
        "generation_token_ids": list(tokens.ids),
        "generation_log_probs": list(tokens.logprobs),
    }


def _calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    return message.get("tool_calls") or []


def tool_output_item(call_id: str, output: str) -> Item:
    """The item that carries a tool's output."""
    return {"type": "function_call_output", "call_id": call_id, "output": output, "status": "completed"}


def observation_item(text: str) -> Item:
    """The item that carries what the environment says to the model, as NeMo Gym writes it."""
    return {"type": "message", "role": "user", "content": text}


def request_params(params: dict[str, Any], sampling: Sampling) -> dict[str, Any]:
    """The task's parameters together with the sampling settings in use."""
    settings = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": sampling.max_new_tokens,
    }
    return {**copy.deepcopy(params), **settings}


def response_object(
    *,
    response_id: str,
    created_at: float,
    model: str,
    params: dict[str, Any],
    output: list[Item],
    num_input_tokens: int,
    num_output_tokens: int,
    incomplete: str | None,
) -> dict[str, Any]:
    """A whole Responses API object; `incomplete` names why the model could not finish."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "model": model,
        "status": "incomplete" if incomplete else "completed",
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "error": None,
        "output": output,
        "usage": {
            "input_tokens": num_input_tokens,
            "output_tokens": num_output_tokens,
            "total_tokens": num_input_tokens + num_output_tokens,
        },
        "parallel_tool_calls": params.get("parallel_tool_calls", True),
        "tool_choice": params.get("tool_choice", "auto"),
        "tools": params.get("tools") or [],
        "temperature": params.get("temperature"),
        "top_p": params.get("top_p"),
        "max_output_tokens": params.get("max_output_tokens"),
    }


def stamps(task_index: int, rollout_index: int, environment: str) -> dict[str, Any]:
    """The fields that say which episode a row is."""
    return {
        "_ng_task_index": task_index,
        "_ng_rollout_index": rollout_index,
        "agent_ref": {"name": environment},
        "_ng_environment_server": environment,
    }


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """The fields that the verifier adds to a row: its metrics, the components of the reward, the reward."""
    components = {"reward_components": verdict.components} if verdict.components else {}
    fixed = {"reward": float(verdict.reward), "mask_sample": False, "failure_kind": None, "failure_reason": None}
    return {**verdict.metrics, **components, **fixed}


def failure_fields(outcome: str, kind: str, message: str) -> dict[str, Any]:
    """The fields of a row of `X_failures.jsonl`; such a row has no reward."""
    return {
        "mask_sample": True,
        "failure_kind": outcome,
        "failure_reason": message,
        "_ng_failure_class": outcome,
        "_ng_failure_type": kind,
        "_ng_failure_message": message,
        "_ng_failure_http_status": None,
        "_ng_failure_response_body": None,
    }


def is_failure(row: dict[str, Any]) -> bool:
    """Whether a row is a failed episode, without a reward."""
    return "_ng_failure_class" in row


def materialized_row(row: dict[str, Any], task_index: int, rollout_index: int, environment: str) -> dict[str, Any]:
    """A line of `X_materialized_inputs.jsonl`: the task row with the ground truth and both indices."""
    indices = {"_ng_task_index": task_index, "_ng_rollout_index": rollout_index}
    return {"agent_ref": {"name": environment}, **row, **indices}
