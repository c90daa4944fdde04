"""Batches: their order, their normalisers, and the bucket of every row and episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regimen.algorithms.grpo import GRPO
from regimen.config.load import load_train_config
from regimen.errors import ConfigError, GenerationError, GymError, RunError
from regimen.gym.collect import Collection
from regimen.gym.environment import Task
from regimen.pipelines import scoring
from regimen.pipelines.batch import Batch, with_reference
from regimen.pipelines.batches import DatasetBatches, EpisodeBatches, shuffled
from regimen.pipelines.datasets import Dataset, Example
from regimen.pipelines.updates import Agreement
from regimen.tokens.forest import TrainingSequence


def dataset(size: int) -> Dataset:
    made = [TrainingSequence([1, *[2] * (index + 1)], [(1, index + 2)], episode=index) for index in range(size)]
    return Dataset([Example([sequence], index + 1) for index, sequence in enumerate(made)])


def rows_of(batches: DatasetBatches) -> list[list[int]]:
    return [[s.episode for s in batches.batch(step).sequences] for step in range(batches.total_steps)]


def batches_of(size: int = 10, **changes: Any) -> DatasetBatches:
    options = {"seed": 3, "shuffle": True, "max_epochs": 2, "max_steps": 100, **changes}
    return DatasetBatches(dataset(size), 4, **options)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert shuffled(6, 1, 0).tolist() == shuffled(6, 1, 0).tolist()
    orders = {tuple(shuffled(20, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}
    assert len(orders) == 4


def test_an_epoch_holds_every_row_once() -> None:
    rows = rows_of(batches_of())
    assert [len(part) for part in rows] == [4, 4, 2, 4, 4, 2]
    first, second = ([row for part in half for row in part] for half in (rows[:3], rows[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert rows_of(batches_of()) == rows
    assert [s.episode for s in batches_of().batch(4).sequences] == rows[4]  # without the steps before it
    assert rows_of(batches_of(seed=4)) != rows


def test_without_shuffling_and_with_a_limit() -> None:
    batches = batches_of(shuffle=False, max_steps=2)
    assert rows_of(batches) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    batch = batches.batch(0)
    assert (batch.valid_tokens, batch.valid_sequences) == (1 + 2 + 3 + 4, 4)


# Episodes


def config(**grpo: Any) -> Any:
    tree = {
        "defaults": "quickstart/grpo",
        "grpo": {
            "num_prompts_per_step": 2,
            "num_generations_per_prompt": 3,
            "max_num_epochs": 2,
            "max_num_steps": 100,
            "seed": 42,
            **grpo,
        },
    }
    return load_train_config(tree)


class ScriptedPlayer:
    def __init__(self, rows: list[dict[str, Any]], failures: list[dict[str, Any]]) -> None:
        self.rows, self.failures, self.played = rows, failures, list[Any]()

    def play(self, tasks: list[Task], repeats: int, seed: int, step: int, output: Path) -> Collection:
        self.played.append(([task.index for task in tasks], repeats, seed, step, output.name))
        return Collection(rows=self.rows, failures=self.failures)


def episode(task: int, reward: float, *, size: int = 2, outcome: str = "ok") -> dict[str, Any]:
    item = {
        "prompt_token_ids": [5, 6, task],
        "generation_token_ids": list(range(10, 10 + size)),
        "generation_log_probs": [-0.5] * size,
    }
    return {
        "response": {"output": [item]},
        "reward": reward,
        "_ng_task_index": task,
        "num_turns": 1,
        "regimen": {"outcome": outcome},
    }


def failure(task: int, kind: str = "timed_out") -> dict[str, Any]:
    return {"_ng_task_index": task, "_ng_failure_class": kind}


def numbered(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with the number of their repeat."""
    seen: dict[int, int] = {}
    result = []
    for row in rows:
        task = row["_ng_task_index"]
        result.append({**row, "_ng_rollout_index": seen.get(task, 0)})
        seen[task] = seen.get(task, 0) + 1
    return result


def source(tmp_path: Path, rows: list, failures: list = [], **grpo: Any) -> EpisodeBatches:  # noqa: B006
    loaded = config(**grpo)
    tasks = [Task(index=index, row={}) for index in range(5)]
    return EpisodeBatches(loaded, GRPO(loaded), ScriptedPlayer(rows, failures), tasks, tmp_path)  # type: ignore


def test_which_tasks_are_played(tmp_path: Path) -> None:
    made = source(tmp_path, [episode(0, 1.0), episode(0, 0.0)])
    assert made.total_steps == 4  # 5 tasks, 2 a step, 2 epochs
    for step in range(4):
        made.batch(step)
    played = made.player.played  # type: ignore
    assert [entry[1:] for entry in played] == [(3, 42, step, f"step_{step + 1}.jsonl") for step in range(4)]
    for epoch in (played[:2], played[2:]):
        indices = [index for entry in epoch for index in entry[0]]
        assert len(set(indices)) == 4
    again = source(tmp_path, [episode(0, 1.0)])
    again.batch(3)
    assert again.player.played[0] == played[3]  # type: ignore


def test_failures_are_in_no_baseline_and_every_episode_in_one_bucket(tmp_path: Path) -> None:
    rows = [episode(0, 1.0), episode(0, 0.0), episode(1, 1.0), episode(1, 1.0, size=4)]
    batch = source(tmp_path, rows, [failure(0), failure(1), failure(1, "environment_failed")]).batch(0)
    assert batch.ledger == {
        "trained": 2,
        "zero_variance": 2,
        "failed:timed_out": 2,
        "failed:environment_failed": 1,
    }
    assert [sequence.episode for sequence in batch.sequences] == [0, 1]
    # Leave-one-out over two scored episodes: 1 against 0; no spread is left to divide by.
    assert [sequence.advantage.tolist() for sequence in batch.sequences] == [[1.0, 1.0], [-1.0, -1.0]]
    assert batch.metrics["reward"] == 0.75
    assert batch.metrics["num_failed"] == 3.0
    assert batch.metrics["groups_with_variance"] == 0.5


def test_an_episode_in_which_nothing_was_sampled_has_a_bucket_of_its_own(tmp_path: Path) -> None:
    silent = {**episode(0, 0.0), "response": {"output": []}}
    rows = [episode(0, 1.0), silent, episode(0, 0.5), episode(1, 1.0), silent | {"_ng_task_index": 1}]
    batch = source(tmp_path, rows, [failure(0)]).batch(0)
    assert batch.ledger == {"trained": 2, "zero_variance": 1, "no_tokens": 2, "failed:timed_out": 1}
    assert [sequence.advantage[0] for sequence in batch.sequences] == [0.5, -0.5]  # not in the baseline
    assert batch.metrics["reward"] == pytest.approx(2.5 / 3)


def of(environment: str, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with the stamp of their environment."""
    return [{**row, "_ng_environment_server": environment} for row in rows]


def test_the_ledger_is_told_for_each_environment(tmp_path: Path) -> None:
    silent = {**episode(0, 0.0), "response": {"output": []}}
    rows = of("sums", episode(0, 1.0), episode(0, 0.0), silent) + of("words", episode(1, 1.0), episode(1, 1.0))
    batch = source(tmp_path, rows, of("words", failure(1)) + of("maps", failure(2))).batch(0)
    assert batch.episodes == {
        "sums": {"trained": 2, "no_tokens": 1},
        "words": {"zero_variance": 2, "failed:timed_out": 1},
        "maps": {"failed:timed_out": 1},
    }
    assert batch.ledger == {"trained": 2, "no_tokens": 1, "zero_variance": 2, "failed:timed_out": 2}
    metrics = batch.ledger_metrics()
    assert metrics["environment/words/episodes/failed:timed_out"] == 1.0
    assert metrics["episodes/failed:timed_out"] == 2.0
    assert len(metrics) == 4 + 5
    assert (batch.metrics["environment/sums/reward"], batch.metrics["environment/words/reward"]) == (0.5, 1.0)
    assert np.isnan(batch.metrics["environment/maps/reward"])


def test_a_single_environment_has_no_metrics_of_its_own(tmp_path: Path) -> None:
    batch = source(tmp_path, of("sums", episode(0, 1.0), episode(0, 0.0))).batch(0)
    assert batch.ledger_metrics() == {"episodes/trained": 2.0}
    assert not any(name.startswith("environment/") for name in batch.metrics)


def test_an_episode_that_an_environment_lacks_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of `sums` is lost and one of `words` counted twice: the sum over both is right, and each is wrong."""
    rows = of("sums", episode(0, 1.0), episode(0, 0.0)) + of("words", episode(1, 1.0), episode(1, 0.0))
    honest = scoring.with_tokens

    def twisted(rows: list[dict[str, Any]], ledger: Any) -> Any:
        return honest([*rows[1:], rows[-1]], ledger)

    monkeypatch.setattr(scoring, "with_tokens", twisted)
    with pytest.raises(RunError, match=r"episodes of the environment 'sums': 1; expected 2"):
        source(tmp_path, rows).batch(0)


def test_what_has_no_gradient_still_counts_in_the_normalisers(tmp_path: Path) -> None:
    rows = [episode(0, 1.0), episode(0, 0.0), episode(1, 1.0, size=4), episode(1, 1.0, size=5)]
    batch = source(tmp_path, rows).batch(0)
    assert (batch.valid_tokens, batch.valid_sequences) == (2 + 2 + 4 + 5, 4)
    assert batch.sequences[0].sampled_logprob.tolist() == [-0.5, -0.5]
    assert batch.sequences[0].spans == [(3, 5)]


def test_truncated_episodes_are_filtered_when_asked(tmp_path: Path) -> None:
    rows = [episode(0, 1.0), episode(0, 0.0), episode(0, 0.0, size=9, outcome="truncated")]
    plain = source(tmp_path, rows).batch(0)
    assert plain.ledger == {"trained": 3}
    filtered = source(tmp_path, rows, overlong_filtering=True).batch(0)
    assert filtered.ledger == {"trained": 2, "filtered": 1}
    assert (filtered.valid_tokens, filtered.valid_sequences) == (4, 2)
    assert [s.advantage[0] for s in filtered.sequences] == [1.0, -1.0]  # not in the baseline either


def test_an_episode_of_average_reward_has_zero_advantage_in_a_group_that_differs(tmp_path: Path) -> None:
    rows = [episode(0, 1.0), episode(0, 0.0), episode(0, 0.5)]
    batch = source(tmp_path, rows).batch(0)
    assert batch.ledger == {"trained": 2, "zero_advantage": 1}


def test_a_reference_keeps_episodes_without_advantage_in_the_loss(tmp_path: Path) -> None:
    loaded = load_train_config({"defaults": "quickstart/grpo", "loss_fn": {"reference_policy_kl_penalty": 0.1}})
    made = EpisodeBatches(loaded, GRPO(loaded), None, [Task(index=0, row={})] * 8, tmp_path)  # type: ignore
    batch = made.of_rows([episode(0, 1.0), episode(0, 1.0)], [])
    assert len(batch.sequences) == 2
    assert batch.ledger == {"trained": 2}


def test_a_step_in_which_everything_failed(tmp_path: Path) -> None:
    batch = source(tmp_path, [], [failure(0)] * 6).batch(0)
    assert batch.sequences == []
    assert batch.ledger == {"failed:timed_out": 6}
    assert np.isnan(batch.metrics["reward"])  # and not 0


# Several optimiser steps for one batch of episodes


def divided(tmp_path: Path, size: int, rows: list, failures: list = []) -> EpisodeBatches:  # noqa: B006
    tree = {
        "defaults": "quickstart/grpo",
        "grpo": {"num_prompts_per_step": 2, "num_generations_per_prompt": 3},
        "policy": {"train_global_batch_size": size},
    }
    loaded = load_train_config(tree)
    tasks = [Task(index=index, row={}) for index in range(5)]
    return EpisodeBatches(loaded, GRPO(loaded), ScriptedPlayer(rows, failures), tasks, tmp_path)  # type: ignore


def parts_of(batch: Batch) -> list[tuple[list[int], float, float]]:
    """Of each optimiser step: the tokens that name its sequences' tasks, and its divisors."""
    return [
        ([int(batch.sequences[row].ids[2]) for row in part.rows], part.valid_tokens, part.valid_sequences)
        for part in batch.divided()
    ]


def test_a_batch_is_divided_by_whole_groups(tmp_path: Path) -> None:
    rows = numbered(
        episode(1, 1.0, size=1), episode(1, 0.0, size=2), episode(1, 0.5, size=3),
        episode(4, 0.0, size=4), episode(4, 1.0, size=5), episode(4, 1.0, size=6),
    )  # fmt: skip
    batch = divided(tmp_path, 3, rows).of_rows(rows, [], [4, 1])
    # Task 4 was drawn first. The 0.5 of task 1 lies between the others: no advantage, counted in the divisor alone.
    assert parts_of(batch) == [([4, 4, 4], 15.0, 3.0), ([1, 1], 6.0, 3.0)]
    assert (batch.valid_tokens, batch.valid_sequences) == (21.0, 6.0)
    assert batch.ledger == {"trained": 5, "zero_advantage": 1}


def test_parts_that_are_no_whole_groups_are_cut_by_repeat(tmp_path: Path) -> None:
    rows = numbered(*(episode(task, reward) for task in (0, 1) for reward in (1.0, 0.0, 0.0)))
    batch = divided(tmp_path, 2, rows).of_rows(rows, [], [0, 1])
    assert parts_of(batch) == [([0, 0], 4.0, 2.0), ([0, 1], 4.0, 2.0), ([1, 1], 4.0, 2.0)]


def test_a_failed_episode_leaves_its_place_empty_and_a_part_without_gradient_is_no_step(tmp_path: Path) -> None:
    rows = numbered(*(episode(0, 1.0) for _ in range(3)), episode(1, 1.0), episode(1, 0.0))
    batch = divided(tmp_path, 3, rows).of_rows(rows, [failure(1)], [0, 1])
    assert parts_of(batch) == [([1, 1], 4.0, 2.0)]
    assert batch.ledger == {"zero_variance": 3, "trained": 2, "failed:timed_out": 1}


def test_one_update_takes_everything(tmp_path: Path) -> None:
    rows = numbered(episode(0, 1.0), episode(0, 0.0))
    assert parts_of(divided(tmp_path, 6, rows).of_rows(rows, [])) == [([0, 0], 4.0, 2.0)]


# Dynamic sampling


class VaryingPlayer:
    """Rewards by task: the tasks of `varied` differ within their group; task 9 fails once."""

    def __init__(self, varied: set[int]) -> None:
        self.varied, self.played = varied, list[tuple[list[int], str]]()
        self.environments = ["one"]  # whose the tasks are, in turn

    def play(self, tasks: list[Task], repeats: int, seed: int, step: int, output: Path) -> Collection:
        self.played.append(([task.index for task in tasks], output.name))
        rows, failures = [], []
        for task in tasks:
            rewards = [1.0, 0.0, 0.0] if task.index in self.varied else [1.0, 1.0, 1.0]
            environment = self.environments[task.index % len(self.environments)]
            made = of(environment, *numbered(*(episode(task.index, reward) for reward in rewards)))
            rows += made[task.index == 9 :]
            failures += of(environment, failure(9)) if task.index == 9 else []
        return Collection(rows=rows, failures=failures)


def dynamic(tmp_path: Path, varied: set[int], num_tasks: int = 12, **grpo: Any) -> EpisodeBatches:
    loaded = config(use_dynamic_sampling=True, **grpo)
    tasks = [Task(index=index, row={}) for index in range(num_tasks)]
    return EpisodeBatches(loaded, GRPO(loaded), VaryingPlayer(varied), tasks, tmp_path)  # type: ignore


def test_dynamic_sampling_plays_until_enough_groups_differ(tmp_path: Path) -> None:
    varied = {0, 3, 6}
    made = dynamic(tmp_path, varied)
    batch = made.batch(1)
    played = made.player.played  # type: ignore
    drawn = [task for tasks, _ in played for task in tasks]
    kept = [task for task in drawn if task in varied][:2]
    assert len(set(drawn)) == len(drawn)  # no task twice in a step
    assert [name for _, name in played][:2] == ["step_2.jsonl", "step_2_batch_2.jsonl"]
    assert drawn[:2] == shuffled(12, 42, 0)[2:4].tolist()  # the step's own tasks first
    assert drawn.index(kept[1]) >= len(drawn) - 2  # and it stops when there are enough
    assert [int(sequence.ids[2]) for sequence in batch.sequences] == sorted(kept * 3)
    surplus = sum(3 for task in drawn if task in varied and task not in kept)
    dropped = sum(3 - (task == 9) for task in drawn if task not in varied)
    assert batch.ledger["trained"] == 6
    assert batch.ledger["dropped_zero_variance"] == dropped
    assert batch.ledger["dropped_surplus"] == surplus
    assert sum(batch.ledger.values()) == 3 * len(drawn)
    assert batch.metrics["filtered_reward"] == pytest.approx(1 / 3)
    assert batch.metrics["reward"] == pytest.approx((6 / 3 + dropped + surplus / 3) / (3 * len(drawn) - (9 in drawn)))
    assert batch.metrics["dynamic_sampling_num_gen_batches"] == len(played)
    again = dynamic(tmp_path, varied)
    again.batch(1)
    assert again.player.played == played  # type: ignore


def test_what_is_more_than_enough_and_what_fails_is_counted(tmp_path: Path) -> None:
    made = dynamic(tmp_path, varied=set(range(9)), num_tasks=10, batch_multiplier=5)  # ten tasks at once
    batch = made.batch(0)
    assert batch.ledger == {"trained": 6, "dropped_surplus": 21, "dropped_zero_variance": 2, "failed:timed_out": 1}
    assert batch.metrics["dynamic_sampling_num_discarded_valid_samples"] == 21.0


def test_what_dynamic_sampling_drops_is_counted_for_its_environment(tmp_path: Path) -> None:
    """Of ten tasks the odd ones are of `odd`; task 9 differs in nothing and fails once."""
    made = dynamic(tmp_path, varied=set(range(9)), num_tasks=10, batch_multiplier=5)
    made.player.environments = ["even", "odd"]  # type: ignore
    batch = made.batch(0)
    assert {name: sum(buckets.values()) for name, buckets in batch.episodes.items()} == {"even": 15, "odd": 15}
    assert batch.episodes["odd"]["dropped_zero_variance"] == 2
    assert batch.episodes["odd"]["failed:timed_out"] == 1
    dropped = [buckets["dropped_surplus"] for buckets in batch.episodes.values()]
    assert sum(dropped) == 21
    counted = batch.ledger_metrics()
    assert sum(n for name, n in counted.items() if name.startswith("environment/")) == 30.0
    # The environments' rewards are of all that was played, as the batch's is.
    means = [batch.metrics[f"environment/{name}/reward"] for name in ("even", "odd")]
    assert (15 * means[0] + 14 * means[1]) / 29 == pytest.approx(batch.metrics["reward"])


def test_a_filter_comes_after_dynamic_sampling(tmp_path: Path) -> None:
    """A group that differs only by its truncated episode is kept, as its rewards differ, and trains nothing."""
    loaded = config(use_dynamic_sampling=True, overlong_filtering=True, num_prompts_per_step=1)
    rows = numbered(episode(0, 0.0, outcome="truncated"), episode(0, 1.0), episode(0, 1.0))
    player = ScriptedPlayer(rows, [])
    batch = EpisodeBatches(loaded, GRPO(loaded), player, [Task(0, {})], tmp_path).batch(0)  # type: ignore
    assert batch.ledger == {"filtered": 1, "zero_variance": 2}
    assert batch.metrics["groups_with_variance"] == 0.0


@pytest.mark.parametrize(
    ("grpo", "message"),
    [
        ({"dynamic_sampling_max_gen_batches": 2}, "0 groups of 2 differ in reward after 2 batches of tasks;"),
        ({}, "0 groups of 2 differ in reward after 6 batches of tasks, which are all there are"),
    ],
)
def test_dynamic_sampling_that_finds_too_few_groups_stops(tmp_path: Path, grpo: dict, message: str) -> None:
    made = dynamic(tmp_path, varied=set(), **grpo)
    with pytest.raises(RunError) as caught:
        made.batch(0)
    assert message in str(caught.value) + ";"


# Rewards with several components


def two(task: int, correct: float, style: float) -> dict[str, Any]:
    return {**episode(task, correct + style), "reward_components": {"style": style, "correct": correct}}


def with_components(rows: list, tmp_path: Path, **estimator: Any) -> Batch:
    return source(tmp_path, rows, adv_estimator={"name": "gdpo", **estimator}).batch(0)


def test_gdpo_compares_each_component(tmp_path: Path) -> None:
    """Equal totals: GRPO sees nothing, GDPO two components that differ.

    Leave-one-out of three, deviations of the two others: correct 1, 0, 0 gives 1, -1/2 / sqrt(1/2) twice; style 0, 1, 1
    the negative of it. Weighted 1 (correct) and 3 (style): -2 times the first; whitened over the batch.
    """
    rows = [two(0, 1.0, 0.0), two(0, 0.0, 1.0), two(0, 0.0, 1.0)]
    assert source(tmp_path, rows).batch(0).ledger == {"zero_variance": 3}
    batch = with_components(rows, tmp_path, reward_weights=[1.0, 3.0])  # by name: correct, style
    raw = -2 * np.array([1.0, -0.5 / (0.5**0.5 + 1e-6), -0.5 / (0.5**0.5 + 1e-6)])
    expected = (raw - raw.mean()) / raw.std(ddof=1)
    assert [s.advantage[0] for s in batch.sequences] == pytest.approx(expected, rel=1e-6)
    assert batch.ledger == {"trained": 3}
    assert batch.metrics["groups_with_variance"] == 1.0
    assert (batch.metrics["reward/correct"], batch.metrics["reward/style"]) == pytest.approx((1 / 3, 2 / 3))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([episode(0, 1.0)], "gives no reward components"),
        ([{**episode(0, 1.0), "reward_components": {"correct": 1.0}}], r"gives one reward component \(correct\)"),
        ([two(0, 1.0, 0.0), episode(0, 1.0)], r"some episodes have the reward components \[\]"),
    ],
)
def test_gdpo_without_components_is_refused(rows: list, message: str, tmp_path: Path) -> None:
    with pytest.raises(GymError, match=message):
        with_components(rows, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), None, "good"])
def test_a_component_that_is_no_number_is_refused_by_gdpo_and_in_no_mean(value: Any, tmp_path: Path) -> None:
    rows = [two(0, 1.0, 0.0), two(0, 0.0, 1.0)]
    rows[1]["reward_components"]["style"] = value
    with pytest.raises(GymError, match=r"^task 0: the reward component 'style' is"):
        with_components(rows, tmp_path)
    assert source(tmp_path, rows).batch(0).metrics["reward/style"] == 0.0


def test_gdpo_with_a_weight_too_many_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 weights for 2 reward components"):
        with_components([two(0, 1.0, 0.0)], tmp_path, reward_weights=[1.0, 1.0, 1.0])


def test_reinforce_plus_plus_whitens_over_tokens(tmp_path: Path) -> None:
    """Reward minus group mean: 0.5, -0.5 (2 and 6 tokens), 0, 0. Token mean -2/16, variance 2/16 - (1/8)^2."""
    rows = [episode(0, 1.0, size=2), episode(0, 0.0, size=6), episode(1, 1.0, size=4), episode(1, 1.0, size=4)]
    batch = source(tmp_path, rows, adv_estimator={"name": "reinforce_plus_plus"}).batch(0)
    std = (2 / 16 - 1 / 64) ** 0.5
    expected = [(0.5 + 0.125) / std, (-0.5 + 0.125) / std, 0.125 / std, 0.125 / std]
    assert [s.advantage[0] for s in batch.sequences] == pytest.approx(expected, rel=1e-6)


# Agreement


@pytest.mark.parametrize(
    "precision, difference, figure",
    [("float32", [0.0, 9e-5], "max"), ("bfloat16", [0.11, 0.0], "mean")],
)
def test_agreement_within_the_bound(precision: str, difference: list[float], figure: str) -> None:
    agreement = Agreement(precision)
    agreement.add(np.array(difference[:1]))
    agreement.add(-np.array(difference[1:]))
    figures = agreement.check()
    assert figures["gen_logprob_error_max"] == pytest.approx(max(difference))
    assert figures["gen_logprob_error_mean"] == pytest.approx(sum(difference) / 2)


@pytest.mark.parametrize(
    "precision, difference",
    [("float32", [0.0, 2e-4]), ("float32", [float("nan")]), ("bfloat16", [0.13, 0.0]), ("bfloat16", [float("nan")])],
)
def test_agreement_beyond_the_bound_stops_the_run(precision: str, difference: list[float]) -> None:
    agreement = Agreement(precision)
    agreement.add(np.array(difference))
    with pytest.raises(GenerationError, match="differ from the policy's"):
        agreement.check()
    agreement.reset()
    assert agreement.check() == {"gen_logprob_error_mean": 0.0, "gen_logprob_error_max": 0.0}


def test_reference_values_go_to_their_sequences() -> None:
    sequences = [example.sequences[0] for example in dataset(2).examples]
    filled = with_reference(sequences, [np.array([1.0], np.float32), np.array([2.0, 3.0], np.float32)])
    assert [s.reference_logprob.tolist() for s in filled] == [[1.0], [2.0, 3.0]]
    with pytest.raises(ValueError, match="zip"):
        with_reference(sequences, [])


class TwoRanks:
    """The second of two processes; the first saw two tokens, one of them 0.5 off."""

    def gather(self, value: Any) -> list[Any]:
        return [[0.5, 2, 0.5], value]


def test_processes_judge_the_generator_by_what_all_of_them_saw() -> None:
    agreement = Agreement("float32")
    agreement.add(np.array([0.0, 0.0]))
    agreement.pool(TwoRanks())  # type: ignore
    with pytest.raises(GenerationError, match=r"0\.5 \(largest\)"):
        agreement.check()
    loose = Agreement("bfloat16")
    loose.add(np.zeros(18))
    loose.pool(TwoRanks())  # type: ignore
    assert loose.check() == {"gen_logprob_error_mean": 0.025, "gen_logprob_error_max": 0.5}  # 0.5 over 20 tokens
