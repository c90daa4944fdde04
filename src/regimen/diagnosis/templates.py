"""What a chat template keeps of a conversation, found by rendering small ones.

In: a `Renderer`. Out: a `TemplateReport`: what it drops or rewrites. A probe that the template cannot render at all
counts as dropped. Refuses nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from regimen.errors import TokenError
from regimen.tokens.template import Renderer

Message = dict[str, Any]

# Words that no template writes by itself.
TOOL, ARGUMENT, RESULT, REASON, ANSWER = (
    "probe_tool_q7",
    "probe_value_q7",
    "probe_result_q7",
    "probe_why_q7",
    "probe_q7",
)
_QUESTION: Message = {"role": "user", "content": "-"}
_TOOLS: list[Message] = [
    {
        "type": "function",
        "function": {
            "name": TOOL,
            "description": "-",
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
        },
    }
]
_CALL: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c0", "type": "function", "function": {"name": TOOL, "arguments": f'{{"x": "{ARGUMENT}"}}'}}],
}
_RESULT: Message = {"role": "tool", "tool_call_id": "c0", "name": TOOL, "content": RESULT}


class TemplateReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the template does wrong. `rewrites_history`: earlier turns change once a message follows them."""

    drops_tools: bool
    drops_tool_calls: bool
    rewrites_history: bool
    lacks_stop: bool


def probe_template(renderer: Renderer) -> TemplateReport:
    """Render small conversations and look for what was in them."""
    return TemplateReport(
        drops_tools=TOOL not in _text(renderer, [_QUESTION], _TOOLS, prompt=True),
        drops_tool_calls=_drops_calls(renderer),
        rewrites_history=_rewrites(renderer),
        lacks_stop=_lacks_stop(renderer),
    )


def _drops_calls(renderer: Renderer) -> bool:
    """Whether a call's name, its arguments or the tool's answer are missing; tools are offered without being named."""
    text = _text(renderer, [_QUESTION, _CALL, _RESULT], [], prompt=True)
    return not all(word in text for word in (TOOL, ARGUMENT, RESULT))


def _rewrites(renderer: Renderer) -> bool:
    """Whether a turn with reasoning looks otherwise when it is over, however the reasoning is written."""
    turns: list[Message] = [
        {"role": "assistant", "content": ANSWER, "reasoning_content": REASON},
        {"role": "assistant", "content": f"<think>\n{REASON}\n</think>\n\n{ANSWER}"},
    ]
    for turn in turns:
        last = _text(renderer, [_QUESTION, turn], [], prompt=False)
        earlier = _text(renderer, [_QUESTION, turn, _QUESTION], [], prompt=True)
        if REASON in last and REASON not in earlier:
            return True
    return False


def _lacks_stop(renderer: Renderer) -> bool:
    text = _text(renderer, [_QUESTION, {"role": "assistant", "content": ANSWER}], [], prompt=False)
    behind = text[text.rfind(ANSWER) + len(ANSWER) :]
    stops = [renderer.decode([stop]) for stop in renderer.stop_ids]
    return not any(stop and stop in behind for stop in stops)


def _text(renderer: Renderer, messages: list[Message], tools: list[Message], *, prompt: bool) -> str:
    try:
        return renderer.render(messages, tools, prompt=prompt)
    except TokenError:
        return ""
