"""Preference rows: two answers, the better one chosen, to the very same prompt unless pairs across tasks are asked for.

In: scored `Episode`s. Out: `{context, completions}` rows (`preference`) or `{prompt, chosen, rejected}` (`binary`).
Failed episodes are no `Episode`s, so they are never rejected answers. A row may stand in several pairs: it is
counted once as a row, and each time as a use. Refuses nothing by itself: what is left out is counted by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from regimen.convert.episodes import (
    Episode,
    by_task_and_prompt,
    in_task_order,
    lost_ids,
    with_reasoning,
    without_trailing_observations,
)
from regimen.convert.ledger import Ledger
from regimen.convert.notes import note_episodes
from regimen.convert.options import ConvertOptions
from regimen.convert.pairs import (
    TOLERANCE,
    Pair,
    Paired,
    conversation,
    num_shared,
    pair_group,
)
from regimen.convert.sidecar import Example, PairRecord, record_of
from regimen.convert.spelling import spelled
from regimen.errors import ConvertError


def is_said_in_strings(episode: Episode) -> bool:
    """Whether one string holds all that the model answered."""
    return without_trailing_observations(episode).is_single_message and not episode.has_reasoning


def pair_tasks(episodes: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> Paired:
    """The pairs within each task of `episodes`, which holds whole tasks; and what may be paired across tasks."""
    usable: list[Episode] = []
    for episode in in_task_order(episodes):
        ready = prepared(episode, options)
        bucket = _refused_by(ready, options)
        ledger.note("token_ids_dropped_with_reasoning", int(lost_ids(episode, ready)))
        if bucket is None:
            usable.append(ready)
        else:
            ledger.count(episode.key, bucket, episode.num_sampled)
    groups = [pair_group(group, options, ledger) for group in by_task_and_prompt(usable).values()]
    return Paired([pair for group in groups for pair in group.pairs], [row for group in groups for row in group.left])


def prepared(episode: Episode, options: ConvertOptions) -> Episode:
    """The episode as it is compared and written: its reasoning as asked for, ending with what the model wrote."""
    return without_trailing_observations(with_reasoning(episode, options.reasoning))


def _refused_by(episode: Episode, options: ConvertOptions) -> str | None:
    if episode.num_turns == 0:
        return "no_assistant_message"
    if options.format == "binary" and not episode.is_single_message:
        return "not_simple"
    return None


def dpo_examples(pairs: Sequence[Pair], options: ConvertOptions, ledger: Ledger) -> list[Example]:
    """The rows of `pairs`; all pairs of an episode must be given at once, so that it is noted once."""
    ledger.use("pairs", len(pairs))
    ledger.use("as_chosen", len(pairs))
    ledger.use("as_rejected", len(pairs))
    episodes = {episode.key: episode for pair in pairs for episode in (pair.chosen, pair.rejected)}
    note_episodes(episodes.values(), options.reasoning, ledger)
    return [_example(pair, options) for pair in pairs]


def _example(pair: Pair, options: ConvertOptions) -> Example:
    chosen, rejected = pair.chosen, pair.rejected
    row: dict[str, object]
    if options.format == "binary":
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
    shared = num_shared(conversation(chosen), conversation(rejected))
    return Example(
        row=spelled(row, chosen.tools, options.spelling) | _figures(pair, shared),
        make_record=partial(_record, pair, shared),
        task_id=chosen.task_id,
        keys=list(pair.keys),
        environment=chosen.environment,
        other_task_id=rejected.task_id if rejected.task_id != chosen.task_id else None,
    )


def _figures(pair: Pair, shared: int) -> dict[str, object]:
    """Rewards, gap, lengths in characters and, where both sides have ids, in sampled tokens; messages in common."""
    chosen, rejected = pair.chosen, pair.rejected
    figures: dict[str, object] = {
        "chosen_reward": chosen.reward,
        "rejected_reward": rejected.reward,
        "reward_gap": pair.gap,
        "chosen_characters": chosen.num_characters,
        "rejected_characters": rejected.num_characters,
    }
    if chosen.num_sequences and rejected.num_sequences:
        figures |= {"chosen_tokens": chosen.num_sampled, "rejected_tokens": rejected.num_sampled}
    return figures | {"shared_messages": shared}


def _record(pair: Pair, shared: int) -> PairRecord:
    return PairRecord(chosen=record_of(pair.chosen), rejected=record_of(pair.rejected), shared_messages=shared)


def nothing_to_pair(groups: Sequence[Sequence[float]], options: ConvertOptions, ledger: Ledger) -> ConvertError:
    """Why no pair is left, from the rewards by task and prompt, and the gap that would leave some."""
    if not groups:
        return ConvertError("no scored rollout is left to pair", fix="look at the failures, and at the filters")
    return (
        _no_gap(groups, options)
        or _no_strata(groups, options)
        or ConvertError(
            f"no pair is left ({_listed(ledger)})", fix="--format preference keeps episodes of several messages"
        )
    )


def _listed(ledger: Ledger) -> str:
    names = ("not_simple", "identical_pair", "no_assistant_message", "alone_in_task", "no_variance", "gap_too_small")
    names = (*names, "not_paired", "between_thresholds", "no_partner")
    return ", ".join(f"{name} {ledger.rows_in(name)}" for name in names if ledger.rows_in(name))


def _no_gap(groups: Sequence[Sequence[float]], options: ConvertOptions) -> ConvertError | None:
    """The error of rewards, given by task and prompt, that do not differ by the gap asked for."""
    several = [group for group in groups if len(group) > 1]
    if not several:
        return ConvertError(
            f"no task has two scored rollouts to compare ({sum(map(len, groups))} rollouts of {len(groups)} tasks)",
            fix="collect several repeats of each task",
        )
    gaps = sorted((max(group) - min(group) for group in several), reverse=True)
    if gaps[0] == 0:
        rewards = sorted({reward for group in groups for reward in group})
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
    return None


def _no_strata(groups: Sequence[Sequence[float]], options: ConvertOptions) -> ConvertError | None:
    """The error of stratified pairs where no task has both a high and a low reward."""
    if options.strategy != "stratified":
        return None
    wide = [group for group in groups if max(group) >= options.high_threshold and min(group) <= options.low_threshold]
    if wide:
        return None
    widest = max(groups, key=lambda group: max(group) - min(group))
    return ConvertError(
        f"no task has rewards both from {options.high_threshold:g} up and from {options.low_threshold:g} down",
        fix=f"--high-threshold {max(widest):.3g} --low-threshold {min(widest):.3g} would give pairs"
        + ("" if options.across_tasks else ", or pair --across-tasks"),
    )
