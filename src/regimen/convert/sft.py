"""Rejection sampling: the episodes good enough to imitate.

In: scored `Episode`s. Out: `{messages, tools}` rows (`openai`) or `{input, output}` strings (`simple`).
Refuses nothing by itself: every episode it leaves out is counted in the ledger by name.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from regimen.convert.episodes import (
    Episode,
    best_first,
    by_task,
    by_task_and_prompt,
    in_task_order,
    lost_ids,
    rank,
    task_order,
    texts_of,
    with_reasoning,
    without_trailing_observations,
)
from regimen.convert.ledger import Ledger
from regimen.convert.notes import note_episodes
from regimen.convert.options import BINARY_THRESHOLD, CONTINUOUS_THRESHOLD, ConvertOptions
from regimen.convert.sidecar import Example, record_of
from regimen.convert.spelling import spelled
from regimen.errors import ConvertError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

FEW_ROWS = 100


def reward_threshold(rewards: Iterable[Numbers], asked: float | None) -> float:
    """The threshold asked for, or else 1.0 where all rewards (arrays, one after the other) are 0 or 1, else 0.95."""
    if asked is not None:
        return asked
    return BINARY_THRESHOLD if are_binary(rewards) else CONTINUOUS_THRESHOLD


def are_binary(rewards: Iterable[Numbers]) -> bool:
    """Whether all rewards are 0 or 1."""
    return all(bool(((some == 0) | (some == 1)).all()) for some in rewards)


def sft_candidates(episodes: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> list[Episode]:
    """The episodes of whole tasks that pass every filter that looks at one task, in task order."""
    kept = [
        passing for episode in in_task_order(episodes) if (passing := _passing(episode, options, ledger)) is not None
    ]
    distinct = [episode for group in by_task_and_prompt(kept).values() for episode in _distinct(group, ledger)]
    return [
        episode
        for group in by_task(distinct).values()
        for episode in keep_best(group, options.max_per_task, "capped", ledger)
    ]


def sft_examples(candidates: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> list[Example]:
    """The rows of the candidates that stay."""
    note_episodes(candidates, options.reasoning, ledger)
    return [_example(episode, options) for episode in candidates]


def _passing(episode: Episode, options: ConvertOptions, ledger: Ledger) -> Episode | None:
    """The episode, ending with the model's last message; or None, counted, when a filter takes it out."""
    trimmed = without_trailing_observations(episode)
    bucket = _refused_by(trimmed, options)
    if bucket is not None:
        ledger.count(episode.key, bucket, episode.num_sampled)
        return None
    if trimmed is not episode:
        ledger.note("trailing_observations_cut")
    prepared = with_reasoning(trimmed, options.reasoning)
    if lost_ids(episode, prepared):
        ledger.note("token_ids_dropped_with_reasoning")
    return prepared


def _refused_by(episode: Episode, options: ConvertOptions) -> str | None:
    assert options.reward_threshold is not None
    if episode.reward < options.reward_threshold:
        return "below_threshold"
    num_turns = episode.num_turns
    if num_turns == 0:
        return "no_assistant_message"
    if options.require_tool_use and not episode.tool_calls:
        return "no_tool_use"
    if num_turns < options.min_turns:
        return "too_few_turns"
    if options.format == "simple" and not episode.is_plain_exchange:
        return "not_simple"
    return None


def _distinct(group: Sequence[Episode], ledger: Ledger) -> list[Episode]:
    """The first of the best-rewarded episodes for each text; the others are counted as duplicates."""
    if len(group) == 1:
        return list(group)
    keys = texts_of(group)
    if len(set(keys.values())) == len(group):
        return list(group)
    seen: set[Hashable] = set()
    distinct: list[Episode] = []
    for episode in sorted(group, key=rank):
        key = keys[episode.key]
        if key in seen:
            ledger.count(episode.key, "duplicate", episode.num_sampled)
        else:
            seen.add(key)
            distinct.append(episode)
    return distinct


def keep_best(group: Sequence[Episode], limit: int | None, bucket: str, ledger: Ledger) -> list[Episode]:
    """At most `limit` episodes, the best-rewarded first and of equal ones the shorter, back in task order."""
    cut = len(group) if limit is None else limit
    if len(group) <= cut:
        return sorted(group, key=task_order)
    ranked = sorted(group, key=best_first)
    for episode in ranked[cut:]:
        ledger.count(episode.key, bucket, episode.num_sampled)
    return sorted(ranked[:cut], key=task_order)


def _example(episode: Episode, options: ConvertOptions) -> Example:
    row: dict[str, object]
    if options.format == "simple":
        row = {"input": episode.prompt[0]["content"], "output": episode.completion[0]["content"]}
    else:
        row = spelled({"messages": [*episode.prompt, *episode.completion]}, episode.tools, options.spelling)
    return Example(
        row=row,
        make_record=partial(record_of, episode),
        task_id=episode.task_id,
        keys=[episode.key],
        environment=episode.environment,
    )


def nothing_to_train(rewards: Sequence[float], options: ConvertOptions, ledger: Ledger) -> ConvertError:
    """Why no row is left of the rollouts with these rewards, and the threshold that would leave some."""
    if not rewards:
        return ConvertError("no scored rollout is left to train on", fix="look at the failures, and at the filters")
    rewards = sorted(rewards, reverse=True)
    seen = f"{len(rewards)} rewards from {rewards[-1]:g} to {rewards[0]:g}, mean {sum(rewards) / len(rewards):.3g}"
    num_below = ledger.rows_in("below_threshold")
    if num_below == len(rewards):
        return ConvertError(
            f"no rollout reaches the reward threshold {options.reward_threshold:g}: {seen}",
            fix=f"--reward-threshold {rewards[0]:g} would keep {rewards.count(rewards[0])}",
        )
    taken = {
        name: ledger.rows_in(name) for name in ("no_assistant_message", "no_tool_use", "too_few_turns", "not_simple")
    }
    listed = ", ".join(f"{name} {count}" for name, count in taken.items() if count)
    return ConvertError(
        f"{len(rewards) - num_below} rollouts reach the reward threshold {options.reward_threshold:g} "
        f"but none passes the other filters ({listed}); {seen}",
        fix="drop the filter that takes most rows",
    )
