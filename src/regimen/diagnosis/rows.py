"""Problems that show in a single rollout.

In: a scored `Rollout`. Out: whether it has the problem; over all of them, `Finding`s with counts and an example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from regimen.convert.grpo import ANSWER_FIELDS, NOT_TRUTH
from regimen.diagnosis.findings import Finding, Tally
from regimen.errors import RolloutError
from regimen.rollouts.messages import final_text, item_type
from regimen.rollouts.records import Rollout
from regimen.rollouts.statistics import arguments_are_object
from regimen.rollouts.turns import TOKEN_FIELDS

PROMPT_IDS, SAMPLED_IDS, _ = TOKEN_FIELDS


def _is_failed_zero(rollout: Rollout) -> bool:
    return rollout.reward == 0 and not rollout.output


def _is_empty(rollout: Rollout) -> bool:
    output = rollout.output
    if not output:
        return rollout.reward != 0
    try:
        text = final_text(output)
    except RolloutError:
        return False
    if text is None:
        return not any(item_type(item) == "function_call" for item in output)
    return not text.strip() and output[-1].get("role") == "assistant"


def _breaks_tokens(rollout: Rollout) -> bool:
    seen: list[int] = []
    for item in rollout.output:
        sampled = item.get(SAMPLED_IDS)
        if sampled is None:
            continue
        prompt = item[PROMPT_IDS]
        if prompt[: len(seen)] != seen:
            return True
        seen = [*prompt, *sampled]
    return False


def _is_malformed(rollout: Rollout) -> bool:
    return any(
        item_type(item) == "function_call" and not arguments_are_object(item.get("arguments"))
        for item in rollout.output
    )


def _lacks_tools(rollout: Rollout) -> bool:
    return not rollout.params.get("tools") and any(item_type(item) == "function_call" for item in rollout.output)


def _lacks_truth(rollout: Rollout) -> bool:
    if rollout.task is not None:
        found = (
            rollout.task.get(name) for name in rollout.task if name not in NOT_TRUTH and not name.startswith("_ng_")
        )
        if any(value is not None for value in found):
            return False
    metadata = rollout.params.get("metadata")
    places = [rollout.row, rollout.params, cast("dict[str, Any]", metadata) if isinstance(metadata, dict) else {}]
    if any(name.startswith("expected_") and value is not None for name, value in rollout.row.items()):
        return False
    return not any(place.get(name) is not None for place in places for name in ANSWER_FIELDS)


ROW_CHECKS: dict[str, Callable[[Rollout], bool]] = {
    "failure_as_zero": _is_failed_zero,
    "empty_answers": _is_empty,
    "tokens_do_not_continue": _breaks_tokens,
    "malformed_arguments": _is_malformed,
    "tools_missing": _lacks_tools,
    "no_ground_truth": _lacks_truth,
}


def row_findings(tally: Tally) -> list[Finding]:
    """The findings of all rows counted in `tally`."""
    return [
        *tally.finding(
            "failure_as_zero",
            "warning",
            "{n} of failed episodes recorded with reward 0: they say nothing about the model",
            "train from this file with Regimen, which keeps failures out of rewards, or collect those tasks again",
        ),
        *tally.finding(
            "duplicate_rows",
            "warning",
            "{n} with a task and rollout index already seen",
            "remove the repeats: they count twice in pass rates and baselines (files of two collections?)",
        ),
        *tally.finding(
            "task_with_several_prompts",
            "warning",
            "{n} with another prompt than the first row of the same task",
            "inspect files of different collections apart: their task indices mean different tasks",
        ),
        *tally.finding(
            "tokens_do_not_continue",
            "warning",
            "{n} with a turn whose prompt ids do not begin with the turns before it",
            "such an episode trains as several sequences; let the model server keep token ids across turns",
        ),
        *tally.finding(
            "malformed_arguments",
            "warning",
            "{n} with a tool call whose arguments are no JSON object",
            "keep them as failures for GRPO and DPO; do not imitate them (SFT on passing rows leaves most out)",
        ),
        *tally.finding(
            "tools_missing",
            "warning",
            "{n} with calls of tools that the request does not offer",
            "put `tools` into responses_create_params: the model cannot learn to use what it is not shown",
        ),
        *tally.finding(
            "empty_answers",
            "warning",
            "{n} with an empty answer at the end",
            "raise max_output_tokens, and see whether the reasoning used it up or the stop token came first",
        ),
        *tally.finding(
            "no_ground_truth",
            "note",
            "{n} without ground truth, in the row or in a task row beside the file",
            "for GRPO keep X_materialized_inputs.jsonl beside X.jsonl, or pass it with --tasks",
        ),
    ]
