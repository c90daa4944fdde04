"""Whether the right answer is known, and whether it stands in the prompt.

In: the task row, the rollout row and its request. Out: the answers, and yes or no.
A long answer counts as leaked where it stands in the prompt as whole words. A number, or one or two characters, is in
many prompts by chance: it counts only behind words like "the answer is".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from regimen.convert.grpo import ANSWER_FIELDS, NOT_TRUTH
from regimen.errors import RolloutError
from regimen.rollouts.messages import content_text

ASKED_ROLES = ("user", "system", "developer")
# Options to choose from hold the right one; it is no leak.
_OPTIONS = re.compile(r"^\s*\(?[A-Ha-h1-8][).:]\s", re.MULTILINE)
_ANSWERING = r"\b(?:answer|solution|ground[ _]truth|expected[ _]output)(?:\s+(?:is|are))?\s*[:=]?\s*[\"'(\[*`$]*"
_CALCULATION = r"(?!\w|[.,]\d|\s*(?:[-+/^=×÷<>%]|\*(?!\*)))"  # two stars are bold type
_SHORT = 2
_NAMES = frozenset(ANSWER_FIELDS)
Fields = Mapping[str, Any]


def answers_of(task: Fields | None, row: Fields, params: Fields) -> list[object]:
    """The right answers under the names that people use, in the task row, the row, the request or its metadata."""
    found = [row[name] for name in row if name in _NAMES or name.startswith("expected_")]
    if task is not None:
        found += [task[name] for name in task if name in _NAMES or name.startswith("expected_")]
    found += [params[name] for name in _NAMES & params.keys()]
    metadata = params.get("metadata")
    if isinstance(metadata, dict):
        held = cast("Fields", metadata)
        found += [held[name] for name in _NAMES & held.keys()]
    return [value for value in found if value is not None]


def holds_truth(task: Fields | None) -> bool:
    """Whether a task row holds anything that a verifier could judge by, under whatever name."""
    return task is not None and any(
        value is not None and name not in NOT_TRUTH and not name.startswith("_ng_") for name, value in task.items()
    )


def is_leaked(answers: Iterable[object], params: Fields) -> bool:
    """Whether one of the answers stands in the prompt."""
    texts = {text for value in answers if (text := _as_text(value))}
    if not texts:
        return False
    prompt = prompt_text(params)
    return any(text in prompt and _stands(text, prompt) for text in texts)


def prompt_text(params: Fields) -> str:
    """What was asked, as one text: instructions, system and user messages. Examples of answers are left out."""
    given, instructions = params.get("input"), params.get("instructions")
    texts = [instructions] if isinstance(instructions, str) else []
    if isinstance(given, str):
        texts.append(given)
    for item in cast("list[Any]", given) if isinstance(given, list) else []:
        if isinstance(item, dict) and cast("Fields", item).get("role") in ASKED_ROLES:
            content = cast("Fields", item).get("content")
            try:
                texts.append(content if isinstance(content, str) else content_text(content))
            except RolloutError:
                continue  # an image holds no text to search
    return "\n".join(texts)


def _as_text(value: object) -> str | None:
    """An answer as it would be written; None for what is no text and no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip() if isinstance(value, (str, int, float)) else None


def _stands(answer: str, prompt: str) -> bool:
    written = re.escape(answer)
    if len(answer) <= _SHORT or answer.replace(".", "").replace(",", "").lstrip("-").isdigit():
        return re.search(f"{_ANSWERING}(?<!\\w){written}{_CALCULATION}", prompt, re.IGNORECASE) is not None
    if _OPTIONS.search(prompt):
        return False
    return re.search(rf"(?<!\w){written}(?!\w)", prompt) is not None
