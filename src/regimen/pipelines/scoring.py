"""Episodes of a step turned into training sequences with advantages.

In: rows of played episodes and the algorithm. Out: `Batch`es and their figures, every episode in one bucket of its
environment. Refuses: a ledger that does not balance for each environment; GDPO on episodes whose rewards have no
components.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from regimen.algorithms.grpo import GRPO, EpisodeAdvantages, EpisodeScores
from regimen.errors import GymError
from regimen.pipelines.batch import Batch, EpisodeLedger, Update, add_episodes
from regimen.pipelines.guards import check_balance
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.turns import TokenSequence, sequences_of, turns_of
from regimen.tokens.forest import TrainingSequence, normalisers

Row = dict[str, Any]


def score_episodes(algorithm: GRPO, rows: list[Row], failures: list[Row], update_of: Sequence[int] | None) -> Batch:
    """The batch of played episodes; `update_of` says for each of `rows` which optimiser step takes it (None: one).

    Failures, and episodes in which nothing was sampled, are counted and stay out of every baseline.
    """
    ledger = _failed(failures)
    played = [*rows, *failures]
    number_of = dict(zip(map(id, rows), update_of or [0] * len(rows), strict=True))
    rows, episodes = with_tokens(rows, ledger)
    scores = scores_of(algorithm, rows, episodes)
    result = algorithm.advantages(scores)
    everything: dict[int, list[TrainingSequence]] = {}
    computed: dict[int, list[TrainingSequence]] = {}
    for index, episode in enumerate(episodes):
        advantage, used = float(result.advantage[index]), bool(result.used[index])
        made = [_sequence(s, index, advantage, used) for s in episode]
        number = number_of[id(rows[index])]
        everything.setdefault(number, []).extend(made)
        inert = algorithm.is_inert(advantage)
        _count(ledger, rows[index], _bucket(used, bool(result.has_variance[index]), inert))
        if used and not inert:
            computed.setdefault(number, []).extend(made)
    check_episodes(ledger, played)
    metrics = {**_figures(scores, result, rows, len(failures)), **rewards_by_environment(rows, ledger)}
    tokens, count = normalisers([sequence for part in everything.values() for sequence in part])
    updates, sequences = _divided(everything, computed)
    version = min((row["regimen"].get("weight_version", 0) for row in rows), default=None)
    return Batch(sequences, tokens, count, metrics, ledger, updates if update_of is not None else [], version)


def _divided(
    everything: dict[int, list[TrainingSequence]], computed: dict[int, list[TrainingSequence]]
) -> tuple[list[Update], list[TrainingSequence]]:
    """The optimiser steps that have something to compute, and all their sequences in a row."""
    updates: list[Update] = []
    sequences: list[TrainingSequence] = []
    for number in sorted(computed):
        start = len(sequences)
        sequences.extend(computed[number])
        updates.append(Update(range(start, len(sequences)), *normalisers(everything[number])))
    return updates, sequences


def varied_tasks(algorithm: GRPO, rows: list[Row]) -> set[int]:
    """The tasks whose episodes differ in reward, by what dynamic sampling keeps."""
    rows, episodes = with_tokens(rows, {})
    scores = scores_of(algorithm, rows, episodes)
    return set(scores.group[algorithm.varies(scores)].tolist())


def dropped_episodes(rows: list[Row], failures: list[Row], bucket: str) -> EpisodeLedger:
    """The ledger of episodes that dynamic sampling leaves out."""
    ledger = _failed(failures)
    for row in with_tokens(rows, ledger)[0]:
        _count(ledger, row, bucket)
    return ledger


def check_episodes(ledger: EpisodeLedger, played: Sequence[Row]) -> None:
    """Raise `RunError` unless each environment's buckets hold as many episodes as were played of it."""
    expected = Counter(_environment(row) for row in played)
    for environment in sorted(expected.keys() | ledger.keys()):
        counted = sum(ledger.get(environment, Counter()).values())
        check_balance(counted, expected[environment], f"episodes of the environment {environment!r}")


def _failed(failures: list[Row]) -> EpisodeLedger:
    ledger: EpisodeLedger = {}
    for row in failures:
        _count(ledger, row, f"failed:{row['_ng_failure_class']}")
    return ledger


def _count(ledger: EpisodeLedger, row: Row, bucket: str) -> None:
    add_episodes(ledger, {_environment(row): Counter([bucket])})


def with_tokens(rows: list[Row], ledger: EpisodeLedger) -> tuple[list[Row], list[list[TokenSequence]]]:
    """The episodes in which something was sampled, and their sequences; the ledger takes the others."""
    kept: list[Row] = []
    episodes: list[list[TokenSequence]] = []
    for row in rows:
        sequences = sequences_of(turns_of(row["response"]["output"]))
        if any(sequence.num_trained for sequence in sequences):
            kept.append(row)
            episodes.append(sequences)
        else:
            _count(ledger, row, "no_tokens")
    return kept, episodes


def scores_of(algorithm: GRPO, rows: list[Row], episodes: list[list[TokenSequence]]) -> EpisodeScores:
    """What advantages are computed from."""
    names = _component_names(rows) if algorithm.needs_components else []
    return EpisodeScores(
        reward=np.array([row["reward"] for row in rows], np.float64),
        group=np.array([row["_ng_task_index"] for row in rows], np.int64),
        length=np.array([sum(s.num_trained for s in episode) for episode in episodes], np.int64),
        truncated=np.array([row["regimen"]["outcome"] == Outcome.TRUNCATED for row in rows], bool),
        components=_component_table(rows, names),
    )


def _component_table(rows: list[Row], names: list[str]) -> np.ndarray:
    """The components of each episode, `[B, K]` float64."""
    table = np.zeros((len(rows), len(names)))
    for index, row in enumerate(rows):
        for column, name in enumerate(names):
            value = row["reward_components"][name]
            if not _is_number(value):
                raise GymError(
                    f"the reward component {name!r} is {value!r}",
                    where=f"task {row['_ng_task_index']}",
                    expected="a finite number",
                    fix="let the environment raise where it cannot judge: the episode is then failed, not wrong",
                )
            table[index, column] = value
    return table


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _component_names(rows: list[Row]) -> list[str]:
    """The names of the reward components, sorted; all episodes must have the same, two at least."""
    found = {tuple(sorted(row.get("reward_components") or {})) for row in rows}
    if len(found) > 1:
        first, second, *_ = sorted(found)
        raise GymError(
            f"some episodes have the reward components {list(first)}, others {list(second)}",
            where="grpo.adv_estimator.name",
            expected="the same components in every verdict, as gdpo compares each of them",
            fix="let the environment give all components in each verdict",
        )
    names = list(found.pop()) if found else []
    if rows and len(names) < 2:
        raise GymError(
            f"the environment gives {f'one reward component ({names[0]})' if names else 'no reward components'}",
            where="grpo.adv_estimator.name",
            expected="at least two components in each verdict, as gdpo compares each of them",
            fix="set grpo.adv_estimator.name=grpo, or return Verdict(reward, components={...})",
        )
    return names


def _bucket(used: bool, has_variance: bool, inert: bool) -> str:
    if not used:
        return "filtered"
    if not inert:
        return "trained"
    return "zero_advantage" if has_variance else "zero_variance"


def _sequence(sequence: TokenSequence, episode: int, advantage: float, used: bool) -> TrainingSequence:
    return TrainingSequence(
        ids=sequence.ids,
        spans=sequence.spans,
        episode=episode,
        sample_mask=float(used),
        advantage=np.full(sequence.num_trained, advantage, np.float32),
        sampled_logprob=np.array(sequence.logprobs, np.float32),
    )


def _figures(scores: EpisodeScores, result: EpisodeAdvantages, rows: list[Row], num_failures: int) -> dict[str, float]:
    reward, advantage = scores.reward, result.advantage
    varied = len(np.unique(scores.group[result.has_variance]))
    return {
        "reward": float(reward.mean()) if len(reward) else math.nan,
        "reward_std": float(reward.std()) if len(reward) else math.nan,
        "groups_with_variance": varied / max(1, len(np.unique(scores.group))),
        "advantages/mean": float(advantage.mean()) if len(advantage) else 0.0,
        "advantages/max": float(advantage.max(initial=0.0)),
        "advantages/min": float(advantage.min(initial=0.0)),
        "truncation_rate": float(scores.truncated.mean()) if len(reward) else 0.0,
        "mean_gen_tokens_per_sample": float(scores.length.mean()) if len(reward) else 0.0,
        "turns_per_sample": float(np.mean([row["num_turns"] for row in rows])) if rows else 0.0,
        "num_episodes": float(len(rows)),
        "num_failed": float(num_failures),
        **_component_figures(rows),
    }


def _environment(row: Row) -> str:
    return str(row.get("_ng_environment_server"))


def rewards_by_environment(rows: list[Row], ledger: EpisodeLedger) -> dict[str, float]:
    """Mean reward of each environment, where the ledger has several."""
    figures: dict[str, float] = {}
    for name in sorted(ledger) if len(ledger) > 1 else ():
        rewards = [row["reward"] for row in rows if _environment(row) == name]
        figures[f"environment/{name}/reward"] = float(np.mean(rewards)) if rewards else math.nan
    return figures


def _component_figures(rows: list[Row]) -> dict[str, float]:
    """The mean of each reward component, over the episodes that have it."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in (row.get("reward_components") or {}).items():
            if _is_number(value):
                values.setdefault(name, []).append(float(value))
    return {f"reward/{name}": sum(found) / len(found) for name, found in sorted(values.items())}
