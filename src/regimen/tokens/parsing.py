"""From the text a model sampled to a chat message: reasoning, content, tool calls.

In: text without its stop token. Out: an assistant message in OpenAI's spelling, with `malformed_calls` counted.
A call is one JSON object `{"name", "arguments"}` (or a list of such) between `<tool_call>` tags. What cannot be read as
a call stays in the content, as text.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

_CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.DOTALL)
_REASONING = re.compile(r"\A\s*<think>(.*?)</think>", re.DOTALL)


def parse_assistant_text(text: str) -> dict[str, Any]:
    """The message in `text`: `{"role", "content", "malformed_calls"}` plus `reasoning_content` and `tool_calls` if any.

    `arguments` is kept as the JSON text of the object that was parsed.
    """
    message: dict[str, Any] = {"role": "assistant"}
    reasoning = _REASONING.match(text)
    if reasoning:
        message["reasoning_content"] = reasoning.group(1)
        text = text[reasoning.end() :]
    calls: list[dict[str, Any]] = []
    kept: list[str] = []
    malformed = position = 0
    for found in _CALL.finditer(text):
        parsed = _parse_call(found.group(1)) if found.group(2) else None
        if parsed is None:
            malformed += 1
            continue
        kept.append(text[position : found.start()])
        position = found.end()
        calls.extend(parsed)
    kept.append(text[position:])
    message["content"] = "".join(kept).strip()
    message["malformed_calls"] = malformed
    if calls:
        message["tool_calls"] = [_tool_call(call, text, index) for index, call in enumerate(calls)]
    return message


def _parse_call(text: str) -> list[dict[str, Any]] | None:
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # half characters, numbers beyond float64
    except (ValueError, RecursionError):
        return None
    calls = value if isinstance(value, list) else [value]
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
            return None
        if not isinstance(call.get("arguments"), dict):
            return None
    return calls or None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _tool_call(call: dict[str, Any], text: str, index: int) -> dict[str, Any]:
    digest = hashlib.sha256(f"{index}:{text}".encode()).hexdigest()[:12]
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    return {"id": f"call_{digest}", "type": "function", "function": {"name": call["name"], "arguments": arguments}}
