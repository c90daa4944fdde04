"""Preference pairs: two answers to the very same prompt of the same task, the better one chosen.

In: scored `Episode`s. Out: `{context, completions}` rows (`preference`) or `{prompt, chosen, rejected}` (`binary`).
Failed episodes are no `Episode`s, so they are never rejected answers. A row may stand in several pairs: it is
counted once as a row, and each time as a use. Refuses nothing by itself: what is left out is counted by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import msgspec

from regimen.convert.episodes import (
    Episode,
    by_task_and_prompt,
    in_task_order,
    lost_ids,
    num_invalid_arguments,
    rank,
    text_key,
    with_reasoning,
    without_trailing_observations,
)
from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.sidecar import Example, PairRecord, record_of
from regimen.errors import ConvertError

# Rewards are sums and means of floats: 1.0 - 0.8 must reach a gap of 0.2.
TOLERANCE = 1e-9


class Pair(msgspec.Struct, frozen=True):
    """Two episodes of one group; `gap` is the difference of their rewards."""

    chosen: Episode
    rejected: Episode
    gap: float


def dpo_format(episodes: Sequence[Episode], asked: str) -> str:
    """One format for the whole file: strings only when strings lose nothing of any episode."""
    if asked != "auto":
        return asked
    is_simple = all(
        without_trailing_observations(episode).is_single_message and not episode.has_reasoning for episode in episodes
    )
    return "binary" if episodes and is_simple else "preference"


def build_dpo(episodes: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> list[Example]:
    """The rows of the chosen pairs; `options` are resolved (no auto)."""
    usable: list[Episode] = []
    for episode in in_task_order(episodes):
        prepared = without_trailing_observations(with_reasoning(episode, options.reasoning))
        bucket = _refused_by(prepared, options)
        ledger.note("token_ids_dropped_with_reasoning", int(lost_ids(episode, prepared)))
        if bucket is None:
            usable.append(prepared)
        else:
            ledger.count(episode.key, bucket, episode.num_sampled)
    limit = 1 if options.strategy == "same_prompt" else options.max_pairs_per_task
    pairs: list[Pair] = []
    for group in by_task_and_prompt(usable).values():
        pairs.extend(_pairs_of(group, options, limit, ledger))
    _note(pairs, ledger)
    return [_example(pair, options.format) for pair in pairs]


def _refused_by(episode: Episode, options: ConvertOptions) -> str | None:
    if episode.num_turns == 0:
        return "no_assistant_message"
    if options.format == "binary" and not episode.is_single_message:
        return "not_simple"
    return None


def _pairs_of(group: Sequence[Episode], options: ConvertOptions, limit: int, ledger: Ledger) -> list[Pair]:
    """The pairs of one group; every episode of the group that is in none of them is counted."""
    wide = wide_pairs(group, options.min_gap)
    keys = {episode.key: text_key(episode) for episode in group}
    differing = [pair for pair in wide if keys[pair.chosen.key] != keys[pair.rejected.key]]
    ledger.use("identical_pairs_dropped", len(wide) - len(differing))
    by_text: dict[tuple[str, str], Pair] = {}
    for pair in differing:
        by_text.setdefault((keys[pair.chosen.key], keys[pair.rejected.key]), pair)
    distinct = list(by_text.values())
    ledger.use("duplicate_pairs_dropped", len(differing) - len(distinct))
    chosen = balanced(distinct, limit)
    ledger.use("pairs_over_the_limit", len(distinct) - len(chosen))
    _count_unpaired(group, [chosen, distinct, differing, wide], options, ledger)
    return chosen


def wide_pairs(group: Sequence[Episode], min_gap: float) -> list[Pair]:
    """All pairs of `group` whose rewards differ by at least `min_gap` and differ at all, widest first."""
    ranked = sorted(group, key=rank)
    pairs = [
        Pair(better, worse, better.reward - worse.reward)
        for better in ranked
        for worse in ranked
        if better.reward > worse.reward and better.reward - worse.reward >= min_gap - TOLERANCE
    ]
    return sorted(pairs, key=lambda pair: -pair.gap)


def balanced(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """At most `limit` pairs: the widest first, and among equal gaps those of the episodes used least so far."""
    uses: Counter[tuple[str, int]] = Counter()
    left = list(pairs)
    chosen: list[Pair] = []
    while left and len(chosen) < limit:
        best = min(
            range(len(left)),
            key=lambda index: (-left[index].gap, uses[left[index].chosen.key] + uses[left[index].rejected.key], index),
        )
        pair = left.pop(best)
        uses.update((pair.chosen.key, pair.rejected.key))
        chosen.append(pair)
    return chosen


def _count_unpaired(
    group: Sequence[Episode], stages: Sequence[Sequence[Pair]], options: ConvertOptions, ledger: Ledger
) -> None:
    """Count each episode outside the chosen pairs under the first reason that left it out."""
    chosen, distinct, differing, wide = ({key for pair in pairs for key in _keys(pair)} for pairs in stages)
    over_limit = "not_paired" if options.strategy == "same_prompt" else "capped"
    has_variance = len({episode.reward for episode in group}) > 1
    for episode in group:
        key = episode.key
        if key in chosen:
            continue
        if len(group) == 1:
            bucket = "alone_in_task"
        elif not has_variance:
            bucket = "no_variance"
        elif key not in wide:
            bucket = "gap_too_small"
        elif key not in differing:
            bucket = "identical_pair"
        else:
            bucket = over_limit if key in distinct else "duplicate"
        ledger.count(key, bucket, episode.num_sampled)


def _keys(pair: Pair) -> tuple[tuple[str, int], tuple[str, int]]:
    return pair.chosen.key, pair.rejected.key


def _note(pairs: Sequence[Pair], ledger: Ledger) -> None:
    ledger.use("pairs", len(pairs))
    episodes: dict[tuple[str, int], Episode] = {}
    for pair in pairs:
        ledger.use("as_chosen")
        ledger.use("as_rejected")
        episodes.update({pair.chosen.key: pair.chosen, pair.rejected.key: pair.rejected})
    for episode in episodes.values():
        ledger.note("rows_with_invalid_arguments", int(num_invalid_arguments(episode) > 0))
        ledger.note("rows_without_token_ids", int(episode.num_sequences == 0))
        ledger.note("rows_not_one_sequence", int(episode.num_sequences > 1))


def _example(pair: Pair, format_name: str) -> Example:
    chosen, rejected = pair.chosen, pair.rejected
    row: dict[str, object]
    if format_name == "binary":
        row = {
            "prompt": chosen.prompt,
            "chosen": chosen.completion[0]["content"],
            "rejected": rejected.completion[0]["content"],
        }
    else:
        row = {
            "context": chosen.prompt,
            "completions": [
                {"rank": 0, "completion": chosen.completion},
                {"rank": 1, "completion": rejected.completion},
            ],
        }
        if chosen.tools:
            row["tools"] = chosen.tools
    row |= {"chosen_reward": chosen.reward, "rejected_reward": rejected.reward, "reward_gap": pair.gap}
    return Example(row=row, make_record=partial(_record, pair), task_id=chosen.task_id, keys=[chosen.key, rejected.key])


def _record(pair: Pair) -> PairRecord:
    return PairRecord(chosen=record_of(pair.chosen), rejected=record_of(pair.rejected))


def nothing_to_pair(episodes: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> ConvertError:
    """Why no pair is left, how the rewards differ within tasks, and the gap that would leave some."""
    if not episodes:
        return ConvertError("no scored rollout in the input", fix="collect again, and look at the failures")
    groups = list(by_task_and_prompt(episodes).values())
    several = [group for group in groups if len(group) > 1]
    if not several:
        return ConvertError(
            f"no task has two scored rollouts to compare ({len(episodes)} rollouts of {len(groups)} tasks)",
            fix="collect several repeats of each task",
        )
    gaps = sorted((max(e.reward for e in group) - min(e.reward for e in group) for group in several), reverse=True)
    if gaps[0] == 0:
        rewards = sorted({episode.reward for episode in episodes})
        return ConvertError(
            f"rewards do not differ within any of {len(several)} tasks (rewards seen: "
            f"{', '.join(f'{reward:g}' for reward in rewards[:5])})",
            fix="collect more repeats at a higher temperature",
        )
    if gaps[0] < options.min_gap - TOLERANCE:
        num_pairs = sum(gap >= gaps[0] - TOLERANCE for gap in gaps)
        return ConvertError(
            f"no reward gap within a task reaches {options.min_gap:g}: the largest is {gaps[0]:.3g}",
            fix=f"--min-gap {gaps[0]:.3g} would give pairs in {num_pairs} of {len(several)} tasks",
        )
    names = ("not_simple", "identical_pair", "no_assistant_message", "alone_in_task", "no_variance", "gap_too_small")
    listed = ", ".join(f"{name} {ledger.rows_in(name)}" for name in names if ledger.rows_in(name))
    return ConvertError(f"no pair is left ({listed})", fix="--format preference keeps episodes of several messages")
