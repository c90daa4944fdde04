"""What a prompt says, and how one that must not be trained on is told.

In: requests and rows of any common shape. Out: the text of their prompt; a `Match` with a prompt of an evaluation file,
as `near.Evaluation` finds it, and its example for the manifest. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from regimen.errors import RolloutError
from regimen.rollouts.messages import content_text

SHOWN = 100


class Match(msgspec.Struct, frozen=True):
    """A prompt of the evaluation file that says the same: its line, counted from 1, and how similar it is."""

    kind: str
    similarity: float
    line: int


class Contaminated(msgspec.Struct, frozen=True, kw_only=True):
    """An excluded prompt, as the manifest shows some."""

    task_id: str
    kind: str
    similarity: float
    evaluation_line: int
    prompt: str


def prompt_of_row(row: Mapping[str, Any]) -> str | None:
    """What the user is asked in a row of any common shape; None where it has no such field."""
    params = row.get("responses_create_params")
    if isinstance(params, dict):
        return prompt_text(cast("dict[str, Any]", params))
    for name in ("messages", "context", "prompt", "input", "question", "problem"):
        if row.get(name):
            return prompt_text({"input": row[name]})
    return None


def prompt_text(params: Mapping[str, Any]) -> str | None:
    """What the user says in a request; system prompts are alike in every task.

    A request without a user message is all it says.
    """
    given = params.get("input")
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        return None
    messages = [cast("dict[str, Any]", item) for item in cast("list[Any]", given) if isinstance(item, dict)]
    try:
        said = [(item.get("role"), content_text(item.get("content"))) for item in messages]
    except RolloutError:
        return None
    asked = [text for role, text in said if role == "user"] or [text for _, text in said]
    return "\n".join(asked) or None


def contaminated(task_id: str, text: str, match: Match) -> Contaminated:
    """An example for the manifest, its prompt shortened."""
    shown = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    return Contaminated(
        task_id=task_id, kind=match.kind, similarity=match.similarity, evaluation_line=match.line, prompt=shown
    )
