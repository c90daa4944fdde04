"""The normal form of Responses items: what a conversion must keep, in one shape for all spellings of it.

In: the items of a rollout's prompt and output, or of a training row rendered back (`regimen.convert.render`).
Out: a list of entries, one per message, tool output or model call; equal lists say the same.
What an entry leaves out is listed in docs/normal-form.md, and nothing else is left out. Written without the message
mapping, so that a mistake there is not made here again. Refuses, with `ConvertError`: what is no prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from regimen.convert.options import Reasoning
from regimen.errors import ConvertError

Item = Mapping[str, Any]
Entry = dict[str, Any]
THINK = "<think>\n{}\n</think>\n\n"


class View(msgspec.Struct, frozen=True, kw_only=True):
    """How entries are compared: what was done with the reasoning, and whether arguments are text or JSON values."""

    reasoning: Reasoning = "reasoning_content"
    argument_values: bool = False


def normal_prompt(params: Item, view: View) -> list[Entry]:
    """The entries of a request: its instructions, and its input as a string or items."""
    given = params.get("input")
    items: list[Item] = []
    if params.get("instructions"):
        items.append({"role": "system", "content": params["instructions"]})
    if isinstance(given, str):
        return normal_form([[item] for item in [*items, {"role": "user", "content": given}]], view)
    if not isinstance(given, list):
        raise ConvertError("the request has no input", expected="a string or a list of items")
    return normal_form([*([item] for item in items), *model_calls(cast("list[Item]", given))], view)


def normal_output(output: Sequence[Item], view: View) -> list[Entry]:
    """The entries of a rollout's output, up to the last thing the model did."""
    groups = model_calls(output)
    while groups and not _is_models(groups[-1][0]):
        groups.pop()
    return normal_form(groups, view)


def normal_tools(tools: Any) -> list[Entry]:
    """Name, description and parameters of each tool; no parameters are an object without properties."""
    flat: list[Item] = [tool.get("function") or tool for tool in _listed(tools)]
    return [
        {
            "name": tool["name"],
            "description": tool.get("description"),
            "parameters": tool.get("parameters") or {"type": "object", "properties": {}},
        }
        for tool in flat
    ]


def model_calls(items: Sequence[Item]) -> list[list[Item]]:
    """The items one by one, except that those of one model call stand together.

    Where any item carries token ids, the item that carries them is the last of its call. Elsewhere a call is a run of
    the model's items, cut before text or reasoning where text came already and no function call did.
    """
    has_ids = any(item.get("generation_token_ids") is not None for item in items)
    groups: list[list[Item]] = []
    is_open = False
    for item in items:
        if not _is_models(item):
            groups.append([item])
            is_open = False
            continue
        if is_open and (has_ids or not _begins_call(groups[-1], item)):
            groups[-1].append(item)
        else:
            groups.append([item])
        is_open = item.get("generation_token_ids") is None
    return groups


def normal_form(groups: Iterable[Sequence[Item]], view: View) -> list[Entry]:
    """One entry per group; calls without an id get the one that the mapping gives them."""
    ids: list[str] = []
    return [_call_entry(group, ids, view) if _is_models(group[0]) else _entry(group[0], ids) for group in groups]


def _kind(item: Item) -> str:
    if isinstance(item.get("type"), str):
        return item["type"]
    if "role" in item:
        return "message"
    return "function_call_output" if "output" in item else "function_call"


def _is_models(item: Item) -> bool:
    kind = _kind(item)
    return kind in ("reasoning", "function_call") or (kind == "message" and item.get("role") == "assistant")


def _begins_call(group: Sequence[Item], item: Item) -> bool:
    kinds = [_kind(member) for member in group]
    has_calls = "function_call" in kinds or any(member.get("tool_calls") for member in group)
    return _kind(item) != "function_call" and "message" in kinds and not has_calls


def _entry(item: Item, ids: Sequence[str]) -> Entry:
    """What was said to the model: a system or user message, or a tool's output."""
    role = item.get("role")
    if _kind(item) == "function_call_output" or role == "tool":
        given = item.get("tool_call_id") if role == "tool" else item.get("call_id")
        said = item.get("content") if role == "tool" else item.get("output")
        call_id = (ids[-1] if ids else "") if given is None else str(given)
        return {"role": "tool", "call_id": call_id, "content": _content(_output_parts(said))}
    return {"role": "system" if role == "developer" else role, "content": _content(item.get("content"))}


def _call_entry(group: Sequence[Item], ids: list[str], view: View) -> Entry:
    """One model call: its reasoning, its text, its refusal, its function calls, each in the order of the items."""
    contents: list[Any] = []
    refusals: list[str] = []
    thoughts: list[str] = []
    calls: list[Entry] = []
    for item in group:
        kind = _kind(item)
        if kind == "reasoning":
            thoughts.append(_thought(item))
        elif kind == "function_call":
            calls.append(_call(item.get("call_id") or item.get("id"), item, ids, view))
        else:
            thoughts.append(item.get("reasoning_content") or "")
            refusals.append(item.get("refusal") or _refusal(item.get("content")))
            contents.append(item.get("content"))
            for call in _listed(item.get("tool_calls")):
                given = call.get("id") or call.get("call_id")
                calls.append(_call(given, call.get("function", call), ids, view))
    reasoning = "\n".join(filter(None, thoughts))
    if view.reasoning == "inline" and reasoning:
        contents.insert(0, THINK.format(reasoning))
    return {
        "role": "assistant",
        "reasoning": reasoning if view.reasoning == "reasoning_content" else "",
        "content": _content([part for content in contents for part in _as_parts(content)]),
        "refusal": "".join(refusals),
        "calls": calls,
    }


def _call(given: Any, function: Item, ids: list[str], view: View) -> Entry:
    number = len(ids)
    while not given and f"call_{number}" in ids:
        number += 1
    call_id = str(given) if given else f"call_{number}"
    if call_id not in ids:
        ids.append(call_id)
    else:
        ids.append(ids.pop(ids.index(call_id)))
    arguments = function.get("arguments")
    text = "{}" if arguments is None else _text(arguments)
    said = _value(text) if view.argument_values else text
    return {"call_id": call_id, "name": function.get("name"), "arguments": said}


def _thought(item: Item) -> str:
    for field in ("content", "summary"):
        text = "\n".join(part if isinstance(part, str) else part["text"] for part in _as_parts(item.get(field)))
        if text:
            return text
    return ""


def _refusal(content: Any) -> str:
    return "".join(part.get("refusal") or "" for part in _as_parts(content) if not isinstance(part, str))


def _as_parts(content: Any) -> list[Any]:
    if content is None:
        return []
    return [content] if isinstance(content, str) else _listed(content)


def _listed(value: Any) -> list[Any]:
    """A list that may be missing."""
    return list(value) if value else []


def _content(content: Any) -> list[Any]:
    """Texts and image references in order, neighbouring texts joined, empty ones left out."""
    entries: list[Any] = []
    for part in _as_parts(content):
        piece = part if isinstance(part, str) else _piece(part)
        if isinstance(piece, str) and entries and isinstance(entries[-1], str):
            entries[-1] += piece
        elif piece:
            entries.append(piece)
    return entries


def _piece(part: Item) -> str | Entry:
    if isinstance(part.get("text"), str):
        return part["text"]
    if part.get("image_url") is None:
        return ""
    image = part["image_url"]
    image = {"url": image} if isinstance(image, str) else image
    return {"image": image["url"], "detail": part.get("detail") or image.get("detail")}


def _output_parts(output: Any) -> Any:
    """Content parts as they are; any other value is the JSON text that the model saw."""
    if output is None or isinstance(output, str):
        return output
    is_content = isinstance(output, list) and all(_is_content_part(part) for part in _listed(output)) and output != []
    return cast("list[Any]", output) if is_content else _text(output)


def _is_content_part(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    part = cast("dict[str, Any]", part)
    if part.get("type") in ("input_image", "image_url"):
        return "image_url" in part
    texts = {"output_text", "input_text", "text", "summary_text", "reasoning_text"}
    return isinstance(part.get("text"), str) and (part.get("type") in texts or set(part) == {"text"})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _value(text: str) -> Any:
    """An argument text as the JSON object it is; other text as itself."""
    try:
        value = json.loads(text, parse_constant=str)  # NaN would differ from itself
    except ValueError:
        return text
    return cast("Any", value) if isinstance(value, dict) else text
