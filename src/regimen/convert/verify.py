"""Whether a written row says what its rollouts said: both in normal form, compared entry by entry.

In: a row as it was read back from disk, the rollouts it was made of, the resolved options of the conversion.
Out: nothing when they agree. Refuses, with `ConvertError`: a difference, named with both texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from regimen.convert.normal import Entry, View, normal_form, normal_output, normal_prompt, normal_tools
from regimen.convert.options import ConvertOptions
from regimen.convert.render import render_messages, render_tools
from regimen.errors import ConvertError
from regimen.rollouts.records import Rollout

Row = Mapping[str, Any]
SHOWN = 60
# Characters shown before the first difference.
BEFORE = 15


def check_row(row: Row, rollouts: Sequence[Rollout], options: ConvertOptions, where: str) -> None:
    """Compare a row with its rollouts: one for SFT, the chosen and the rejected for DPO, one of the task for GRPO."""
    view = View(reasoning=options.reasoning, argument_values=options.spelling == "nemo_rl")
    first = rollouts[0]
    if options.format in ("gym", "response"):
        _check_task(row, first, where)
        return
    prompt = normal_prompt(first.params, view)
    tools = normal_tools(first.params.get("tools"))
    if options.format in ("openai", "simple"):
        original = [*prompt, *normal_output(first.output, view)]
        _compare(_written(_sft_messages(row), view), original, f"{where} (from {first.source})")
    else:
        context, answers = _pair_messages(row)
        _compare(_written(context, view), prompt, f"{where}, context (from {first.source})")
        for name, answer, rollout in zip(("chosen", "rejected"), answers, rollouts, strict=True):
            original = normal_output(rollout.output, view)
            _compare(_written(answer, view), original, f"{where}, {name} (from {rollout.source})")
    _compare(normal_tools(render_tools(row.get("tools") or [])), tools, f"{where}, tools (from {first.source})")


def _check_task(row: Row, rollout: Rollout, where: str) -> None:
    """A task's prompt and tools as its task row or, where there is none, its rollout has them."""
    asked: Any = (rollout.task or {}).get("responses_create_params")
    params = cast("dict[str, Any]", asked) if isinstance(asked, dict) else rollout.params
    written: Row = row["responses_create_params"] if "responses_create_params" in row else {"input": row["input"]}
    here = f"{where} (from {rollout.source})"
    _compare(normal_prompt(written, View()), normal_prompt(params, View()), here)
    _compare(normal_tools(written.get("tools")), normal_tools(params.get("tools")), f"{here}, tools")


def _sft_messages(row: Row) -> list[Row]:
    if "messages" in row:
        return row["messages"]
    return [{"role": "user", "content": row["input"]}, {"role": "assistant", "content": row["output"]}]


def _pair_messages(row: Row) -> tuple[list[Row], list[list[Row]]]:
    """The context, and the messages of the chosen and the rejected answer."""
    if "prompt" in row:
        answers = [[{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")]
        return row["prompt"], cast("list[list[Row]]", answers)
    completions: list[Row] = sorted(row["completions"], key=lambda completion: completion["rank"])
    return row["context"], [completion["completion"] for completion in completions]


def _written(messages: Sequence[Row], view: View) -> list[Entry]:
    """The entries of messages; what was done to the reasoning is done already."""
    return normal_form(render_messages(messages), View(argument_values=view.argument_values))


def _compare(written: Sequence[Entry], original: Sequence[Entry], where: str) -> None:
    for index in range(max(len(written), len(original))):
        mine, theirs = ((entries[index] if index < len(entries) else None) for entries in (written, original))
        if mine != theirs:
            row, rollout = _around_difference(_shown(mine), _shown(theirs))
            raise ConvertError(
                f"entry {index + 1} of the row is {row}",
                where=where,
                expected=f"{rollout}, as the rollout has it",
                fix="keep both files and report this: the conversion lost something",
            )


def _shown(entry: Entry | None) -> str:
    return "missing" if entry is None else json.dumps(entry, ensure_ascii=True, sort_keys=True)


def _around_difference(one: str, other: str) -> tuple[str, str]:
    """Both texts from shortly before they differ, cut to a length that fits a line."""
    shared = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    start = max(0, shared - BEFORE)
    marked = [
        ("…" if start else "") + text[start : start + SHOWN] + ("…" if start + SHOWN < len(text) else "")
        for text in (one, other)
    ]
    return marked[0], marked[1]
