"""Where a training step's sequences come from: a data set, or episodes played with the current weights.

In: a step number. Out: a `Batch`: training sequences, the normalisers of the whole batch, metrics, and a ledger in
which every row or episode stands in exactly one bucket. The order depends on the seed and the step alone, so a resumed
run sees the same batches. Refuses: a ledger that does not balance; dynamic sampling that finds too few groups.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regimen.algorithms.grpo import GRPO
from regimen.config.schema import TrainConfig
from regimen.errors import RunError
from regimen.generation.base import Generation, Sampling
from regimen.gym.agent import Limits
from regimen.gym.collect import MAX_FAILURE_RATE, Collection, collect_rollouts
from regimen.gym.environment import Environment, Task
from regimen.pipelines.batch import Batch, EpisodeLedger, add_episodes, in_total
from regimen.pipelines.datasets import Dataset
from regimen.pipelines.processes import pooled
from regimen.pipelines.scoring import (
    check_episodes,
    dropped_episodes,
    rewards_by_environment,
    score_episodes,
    varied_tasks,
    with_tokens,
)
from regimen.policy.ranks import Ranks, current_ranks
from regimen.tokens.forest import normalisers
from regimen.tokens.template import Renderer


class BatchSource(Protocol):
    """A source of global batches."""

    total_steps: int

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        ...

    def settle(self) -> None:
        """Wait until nothing is being played: the weights are about to change."""
        ...

    def close(self) -> None:
        """Free what the source holds."""
        ...


def shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `size` things in an epoch: a function of seed and epoch alone."""
    return np.random.Generator(np.random.Philox([seed, epoch])).permutation(size)


class _AtOnce:
    """A source that makes each batch when it is asked for it."""

    def settle(self) -> None:
        """Nothing is ever under way."""

    def close(self) -> None:
        """Nothing is held."""


class DatasetBatches(_AtOnce):
    """Rows or pairs of a data set, in a new order each epoch; the last batch of an epoch may be smaller."""

    def __init__(
        self, dataset: Dataset, batch_size: int, *, seed: int, shuffle: bool, max_epochs: int, max_steps: int
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.steps_per_epoch = math.ceil(len(dataset.examples) / batch_size)
        self.total_steps = min(max_epochs * self.steps_per_epoch, max_steps)

    @classmethod
    def of(cls, config: TrainConfig, dataset: Dataset) -> DatasetBatches:
        """The batches that SFT or DPO trains on."""
        training = config.sft or config.dpo
        assert training is not None
        return cls(
            dataset,
            config.global_batch_size,
            seed=training.seed,
            shuffle=config.data.shuffle,
            max_epochs=training.max_num_epochs,
            max_steps=training.max_num_steps,
        )

    def batch(self, step: int) -> Batch:
        """The batch of `step`."""
        epoch, within = divmod(step, self.steps_per_epoch)
        size = len(self.dataset.examples)
        order = shuffled(size, self.seed, epoch) if self.shuffle else np.arange(size)
        rows = order[within * self.batch_size : (within + 1) * self.batch_size]
        return self.of_rows(rows.tolist())

    def of_rows(self, rows: list[int]) -> Batch:
        """The batch of these examples."""
        sequences = [sequence for row in rows for sequence in self.dataset.examples[row].sequences]
        tokens, count = normalisers(sequences)
        metrics = {"num_rows": float(len(rows)), "global_valid_toks": tokens, "global_valid_seqs": count}
        return Batch(sequences, tokens, count, metrics)


class EpisodePlayer(Protocol):
    """Who plays the episodes, and is handed new weights. `on_episode` hears of each one that ends."""

    on_episode: Callable[[], None]

    def play(self, tasks: list[Task], repeats: int, seed: int, step: int, output: Path | None) -> Collection:
        """Play `tasks`, `repeats` times each, with the weights of `step`."""
        ...

    def update(self, version: int, named_tensors: Any) -> None:
        """Take new weights."""
        ...

    def close(self) -> None:
        """Free what is held."""
        ...


@dataclass(slots=True)
class Player:
    """What plays episodes: an environment and a generation that is handed new weights."""

    environment: Environment
    generation: Generation
    renderer: Renderer
    sampling: Sampling
    limits: Limits
    concurrency: int
    model_name: str
    ranks: Ranks = field(default_factory=current_ranks)
    on_episode: Callable[[], None] = field(default=lambda: None)  # hears of each episode that ends

    def play(self, tasks: list[Task], repeats: int, seed: int, step: int, output: Path | None) -> Collection:
        """Play `tasks`, `repeats` times each, with the weights of `step`; then leave the memory to training.

        Of many processes each plays its share; all get the episodes of all, and the first writes them.
        """
        if self.ranks.size == 1:
            return asyncio.run(self._play(tasks, repeats, seed, step, output))
        share = tasks[self.ranks.rank :: self.ranks.size]
        played = asyncio.run(self._play(share, repeats, seed, step, None, max_failure_rate=1.0))
        return pooled(played, self.ranks, tasks, repeats, self.environment.name, output)

    async def _play(
        self,
        tasks: list[Task],
        repeats: int,
        seed: int,
        step: int,
        output: Path | None,
        max_failure_rate: float = MAX_FAILURE_RATE,
    ) -> Collection:
        played = await collect_rollouts(
            tasks,
            repeats,
            self.environment,
            self.generation,
            self.renderer,
            self.sampling,
            seed=seed,
            step=step,
            concurrency=self.concurrency,
            limits=self.limits,
            output=output,
            overwrite=True,
            on_row=lambda _: self.on_episode(),
            model_name=self.model_name,
            max_failure_rate=max_failure_rate,
        )
        await self.generation.release()
        return played

    def update(self, version: int, named_tensors: Any) -> None:
        """Hand new weights to the generation."""
        asyncio.run(self.generation.update(version, named_tensors))

    def close(self) -> None:
        """Free the generation."""
        asyncio.run(self.generation.close())


class TaskOrder:
    """Which tasks GRPO plays in each step, in a new order each epoch; those that fill no step are left out."""

    def __init__(self, config: TrainConfig, tasks: list[Task]) -> None:
        assert config.grpo is not None
        self.tasks, self.seed, self.shuffle = tasks, config.grpo.seed, config.data.shuffle
        self.num_tasks = config.tasks_per_generation
        self.steps_per_epoch = max(1, len(tasks) // self.num_tasks)
        self.total_steps = min(config.grpo.max_num_epochs * self.steps_per_epoch, config.grpo.max_num_steps)

    def draws(self, step: int) -> Iterator[list[Task]]:
        """The tasks of `step`, then more for dynamic sampling, until each task was drawn once."""
        epoch, within = divmod(step, self.steps_per_epoch)
        size = len(self.tasks)
        order = shuffled(size, self.seed, epoch) if self.shuffle else np.arange(size)
        first = within * self.num_tasks
        yield [self.tasks[index] for index in order[first : first + self.num_tasks]]
        others = np.concatenate([order[:first], order[first + self.num_tasks :]])
        others = others[np.random.Generator(np.random.Philox([self.seed, epoch, step])).permutation(len(others))]
        for start in range(0, len(others), self.num_tasks):
            yield [self.tasks[index] for index in others[start : start + self.num_tasks]]


class EpisodeBatches(_AtOnce):
    """GRPO: each step plays fresh episodes of the next tasks and turns them into sequences with advantages."""

    def __init__(
        self, config: TrainConfig, algorithm: GRPO, player: EpisodePlayer, tasks: list[Task], folder: Path
    ) -> None:
        assert config.grpo is not None
        self.config, self.grpo, self.algorithm = config, config.grpo, algorithm
        self.player, self.folder = player, folder
        self.order = TaskOrder(config, tasks)
        self.total_steps = self.order.total_steps

    def batch(self, step: int) -> Batch:
        """Play the tasks of `step` and score them."""
        if self.grpo.use_dynamic_sampling:
            return self._dynamic(step)
        tasks = next(self.order.draws(step))
        played = self._play(tasks, step, 1)
        return self.of_rows(played.rows, played.failures, [task.index for task in tasks])

    def of_rows(
        self, rows: list[dict[str, Any]], failures: list[dict[str, Any]], order: Sequence[int] | None = None
    ) -> Batch:
        """Advantages and sequences of played episodes; `order` is that in which optimiser steps take the tasks."""
        if self.config.updates_per_step == 1:
            return score_episodes(self.algorithm, rows, failures, None)
        order = order or sorted({row["_ng_task_index"] for row in (*rows, *failures)})
        place = {task: position * self.grpo.num_generations_per_prompt for position, task in enumerate(order)}
        size = self.config.global_batch_size
        updates = [(place[row["_ng_task_index"]] + row["_ng_rollout_index"]) // size for row in rows]
        return score_episodes(self.algorithm, rows, failures, updates)

    def _play(self, tasks: list[Task], step: int, attempt: int) -> Collection:
        name = f"step_{step + 1}.jsonl" if attempt == 1 else f"step_{step + 1}_batch_{attempt}.jsonl"
        output = self.folder / "rollouts" / name
        output.parent.mkdir(parents=True, exist_ok=True)
        return self.player.play(tasks, self.grpo.num_generations_per_prompt, self.grpo.seed, step, output)

    def _dynamic(self, step: int) -> Batch:
        """Play batches of tasks until enough groups differ in reward; the others are counted and left out."""
        wanted, limit = self.grpo.num_prompts_per_step, self.grpo.dynamic_sampling_max_gen_batches
        kept: list[int] = []
        rows, failures, scored = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
        everything, dropped = list[dict[str, Any]](), EpisodeLedger()
        attempt = 0
        for attempt, tasks in enumerate(self.order.draws(step), 1):
            played = self._play(tasks, step, attempt)
            everything += [*played.rows, *played.failures]
            scored += with_tokens(played.rows, {})[0]
            varied = varied_tasks(self.algorithm, played.rows)
            chosen = [task.index for task in tasks if task.index in varied]
            room = wanted - len(kept)
            kept += chosen[:room]
            for group in (task.index for task in tasks):
                of_group = _of_task(played.rows, group), _of_task(played.failures, group)
                if group in kept:
                    rows += of_group[0]
                    failures += of_group[1]
                else:
                    bucket = "dropped_surplus" if group in varied else "dropped_zero_variance"
                    add_episodes(dropped, dropped_episodes(*of_group, bucket))
            if len(kept) == wanted or attempt == limit:
                break
        if len(kept) < wanted:
            raise _too_few_groups(len(kept), wanted, attempt, attempt < limit)
        batch = self.of_rows(rows, failures, kept)
        add_episodes(batch.episodes, dropped)
        check_episodes(batch.episodes, everything)
        batch.metrics |= {
            "reward": float(np.mean([row["reward"] for row in scored])),
            **rewards_by_environment(scored, batch.episodes),
            "filtered_reward": batch.metrics["reward"],
            "dynamic_sampling_num_gen_batches": float(attempt),
            "dynamic_sampling_num_discarded_valid_samples": float(in_total(dropped)["dropped_surplus"]),
        }
        return batch


def _of_task(rows: list[dict[str, Any]], task: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["_ng_task_index"] == task]


def _too_few_groups(found: int, wanted: int, attempts: int, used_up: bool) -> RunError:
    seen = f"{found} groups of {wanted} differ in reward after {attempts} batches of tasks"
    return RunError(
        f"{seen}, which are all there are" if used_up else seen,
        where="grpo.use_dynamic_sampling",
        fix="train on tasks that the model solves sometimes; lower grpo.num_prompts_per_step; raise "
        "grpo.num_generations_per_prompt or grpo.dynamic_sampling_max_gen_batches",
    )
