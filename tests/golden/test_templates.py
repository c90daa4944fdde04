"""Tokens and masks of one conversation under several chat templates, as readable segments.

A golden file holds the text of each segment, whether it trains, and the ids; a change of any of them is a change of
what models are trained on. `REGIMEN_WRITE_GOLDEN=1` writes the files anew, to be read before they are committed.
"""

from __future__ import annotations

import json
import os
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from regimen.tokens.template import Renderer

FOLDER = Path(__file__).parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% if loop.first and tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "<|begin|>{% for m in messages %}<|header|>{{ 'ipython' if m.role == 'tool' else m.role }}<|header_end|>\n\n"
    "{% if m.tool_calls %}{{ {'name': m.tool_calls[0].function.name, 'parameters': m.tool_calls[0].function.arguments}"
    " | tojson }}{% else %}{{ m.content | trim }}{% endif %}"
    "{% if loop.first and tools %}\n{{ tools | tojson }}{% endif %}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|header_end|>\n\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin|>", "<|end|>", "<|header|>", "<|header_end|>", "<|eot|>")
TEMPLATES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "tools": ("tools", IM, "<|im_end|>"),
    "chatml": (CHATML, IM, "<|im_end|>"),
    "llama": (LLAMA, HEADERS, "<|end|>"),  # turns end with <|eot|>, which is not the tokenizer's eos
}
TOOLS = [{"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "47 * 23"}'}}
MESSAGES = [
    {"role": "system", "content": "Use the tool."},
    {"role": "user", "content": "What is 47 × 23?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "name": "calculator", "content": "1081"},
    {"role": "assistant", "content": "47 × 23 = 1081"},
]


def segments(renderer: Renderer) -> list[dict[str, Any]]:
    """Every token of the conversation, in runs that train or do not."""
    [sequence] = renderer.conversation(MESSAGES, TOOLS)
    edges = sorted({0, len(sequence.ids), *(edge for span in sequence.spans for edge in span)})
    starts = {start for start, _ in sequence.spans}
    return [
        {"trained": a in starts, "text": renderer.decode(sequence.ids[a:b]), "ids": sequence.ids[a:b]}
        for a, b in pairwise(edges)
    ]


@pytest.fixture(params=TEMPLATES)
def case(request: pytest.FixtureRequest, tiny: ModuleType) -> tuple[str, Renderer]:
    template, special, eos = TEMPLATES[request.param]
    return request.param, Renderer(tiny.tiny_tokenizer(special, eos), template)


def test_tokens_and_masks_are_the_golden_ones(case: tuple[str, Renderer]) -> None:
    name, renderer = case
    path = FOLDER / f"{name}.json"
    found = {"stop_ids": list(renderer.stop_ids), "segments": segments(renderer)}
    if os.environ.get("REGIMEN_WRITE_GOLDEN"):
        lines = ",\n".join("  " + json.dumps(part, ensure_ascii=False) for part in found["segments"])
        path.write_text(f'{{"stop_ids": {found["stop_ids"]},\n "segments": [\n{lines}\n]}}\n')
    assert found == json.loads(path.read_text())


def test_playing_gives_the_golden_tokens(case: tuple[str, Renderer]) -> None:
    """The agent's way - prompt, sampled turn, continuation, sampled turn - joins to the same ids."""
    _, renderer = case
    prompt, first, between, second = (part["ids"] for part in segments(renderer))
    assert renderer.prompt_ids(MESSAGES[:2], TOOLS) == prompt
    assert renderer.continuation_ids(MESSAGES[2], [MESSAGES[3]], TOOLS) == between
    assert first[-1] in renderer.stop_ids
    assert second[-1] in renderer.stop_ids
    assert renderer.parse_assistant(second)["content"] == "47 × 23 = 1081"
