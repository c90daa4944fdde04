"""Batches: their order, their normalisers, and the bucket of every row and episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regimen.algorithms.grpo import GRPO
from regimen.config.load import load_train_config
from regimen.errors import GenerationError
from regimen.gym.collect import Collection
from regimen.gym.environment import Task
from regimen.pipelines.batches import Agreement, DatasetBatches, EpisodeBatches, shuffled, with_reference
from regimen.pipelines.datasets import Dataset, Example
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
