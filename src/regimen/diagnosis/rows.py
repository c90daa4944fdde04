"""Problems that show in a single rollout.

In: a scored `Rollout` and the `Contents` of its output. Out: whether it has the problem; over all of them, `Finding`s
with counts and an example.
"""

from __future__ import annotations

from collections.abc import Callable

from regimen.diagnosis.findings import Finding, Tally
from regimen.errors import RolloutError
from regimen.rollouts.contents import Contents
from regimen.rollouts.messages import final_text
from regimen.rollouts.records import Rollout
from regimen.rollouts.turns import TOKEN_FIELDS

PROMPT_IDS, SAMPLED_IDS, _ = TOKEN_FIELDS


def _is_failed_zero(rollout: Rollout, _: Contents) -> bool:
    return rollout.reward == 0 and not rollout.output


def _is_empty(rollout: Rollout, contents: Contents) -> bool:
    output = rollout.output
    if not output:
        return rollout.reward != 0
    try:
        text = final_text(output)
    except RolloutError:
        return False
    if text is None:
        return not contents.calls
    return not text.strip() and output[-1].get("role") == "assistant"


def _breaks_tokens(rollout: Rollout, contents: Contents) -> bool:
    if not contents.has_ids:
        return False
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


def _is_malformed(_: Rollout, contents: Contents) -> bool:
    return contents.num_malformed > 0


def _lacks_tools(rollout: Rollout, contents: Contents) -> bool:
    return bool(contents.calls) and not rollout.params.get("tools")


ROW_CHECKS: dict[str, Callable[[Rollout, Contents], bool]] = {
    "failure_as_zero": _is_failed_zero,
    "empty_answers": _is_empty,
    "tokens_do_not_continue": _breaks_tokens,
    "malformed_arguments": _is_malformed,
    "tools_missing": _lacks_tools,
}

MESSAGES = {
    "failure_as_zero": "{n} of failed episodes recorded with reward 0: they say nothing about the model",
    "tokens_do_not_continue": "{n} with a turn whose prompt ids do not begin with the turns before it",
    "malformed_arguments": "{n} with a tool call whose arguments are no JSON object",
    "tools_missing": "{n} with calls of tools that the request does not offer",
    "tool_schemas_differ": "{n} with a tool whose parameters are not those of the first tool of that name",
    "arguments_keys_differ": "{n} with arguments, written as objects, that have other keys than the first such call",
    "empty_answers": "{n} with an empty answer at the end",
    "no_ground_truth": "{n} without ground truth, in the row or in a task row beside the file",
}


def row_findings(tally: Tally) -> list[Finding]:
    """The findings of all rows counted in `tally`."""
    return [found for code, message in MESSAGES.items() for found in tally.finding(code, message)]
