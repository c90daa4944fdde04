"""Where a training step's sequences come from: a data set, or episodes played with the current weights.

In: a step number. Out: a `Batch`: training sequences, the normalisers of the whole batch, metrics, and a ledger in
which every row or episode stands in exactly one bucket. The order depends on the seed and the step alone, so a resumed
run sees the same batches. Refuses: a ledger that does not balance.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from regimen.algorithms.grpo import GRPO, EpisodeScores
from regimen.config.schema import TrainConfig
from regimen.errors import GenerationError, RunError
from regimen.generation.base import Generation, Sampling
from regimen.gym.agent import Limits
from regimen.gym.collect import MAX_FAILURE_RATE, Collection, collect_rollouts
from regimen.gym.environment import Environment, Task
from regimen.pipelines.datasets import Dataset
from regimen.pipelines.processes import pooled
from regimen.policy.ranks import Ranks, current_ranks
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.turns import TokenSequence, sequences_of, turns_of
from regimen.tokens.forest import TrainingSequence, normalisers
from regimen.tokens.template import Renderer


@dataclass(slots=True)
class Batch:
    """One global batch. `sequences` are those to compute; the normalisers count those left out as inert too."""

    sequences: list[TrainingSequence]
    valid_tokens: float
    valid_sequences: float
    metrics: dict[str, float] = field(default_factory=dict)
    ledger: Counter[str] = field(default_factory=Counter)


class BatchSource(Protocol):
    """A source of global batches."""

    total_steps: int

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        ...


def shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `size` things in an epoch: a function of seed and epoch alone."""
    return np.random.Generator(np.random.Philox([seed, epoch])).permutation(size)


class DatasetBatches:
    """Rows or pairs of a data set, in a new order each epoch; the last batch of an epoch may be smaller."""

    def __init__(
        self, dataset: Dataset, batch_size: int, *, seed: int, shuffle: bool, max_epochs: int, max_steps: int
    ) -> None:
        self.dataset, self.batch_size, self.seed, self.shuffle = dataset, batch_size, seed, shuffle
        self.steps_per_epoch = math.ceil(len(dataset.examples) / batch_size)
        self.total_steps = min(max_epochs * self.steps_per_epoch, max_steps)

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

    def play(self, tasks: list[Task], repeats: int, seed: int, step: int, output: Path | None) -> Collection:
        """Play `tasks`, `repeats` times each, with the weights of `step`; then leave the memory to training.

        Of many processes each plays its share; all get the episodes of all, and the first writes them.
        """
        ranks = current_ranks()
        if ranks.size == 1:
            return asyncio.run(self._play(tasks, repeats, seed, step, output))
        share = tasks[ranks.rank :: ranks.size]
        played = asyncio.run(self._play(share, repeats, seed, step, None, max_failure_rate=1.0))
        return pooled(played, ranks, tasks, repeats, self.environment.name, output)

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


class EpisodeBatches:
    """GRPO: each step plays fresh episodes of the next tasks and turns them into sequences with advantages."""

    def __init__(self, config: TrainConfig, algorithm: GRPO, player: Player, tasks: list[Task], folder: Path) -> None:
        assert config.grpo is not None
        self.config, self.grpo, self.algorithm = config, config.grpo, algorithm
        self.player, self.tasks, self.folder = player, tasks, folder
        self.steps_per_epoch = max(1, len(tasks) // self.grpo.num_prompts_per_step)
        self.total_steps = min(self.grpo.max_num_epochs * self.steps_per_epoch, self.grpo.max_num_steps)

    def batch(self, step: int) -> Batch:
        """Play the tasks of `step` and score them."""
        epoch, within = divmod(step, self.steps_per_epoch)
        count = self.grpo.num_prompts_per_step
        size = len(self.tasks)
        order = shuffled(size, self.grpo.seed, epoch) if self.config.data.shuffle else np.arange(size)
        tasks = [self.tasks[index] for index in order[within * count : (within + 1) * count]]
        output = self.folder / "rollouts" / f"step_{step + 1}.jsonl"
        output.parent.mkdir(parents=True, exist_ok=True)
        played = self.player.play(tasks, self.grpo.num_generations_per_prompt, self.grpo.seed, step, output)
        return self.of_rows(played.rows, played.failures)

    def of_rows(self, rows: list[dict[str, Any]], failures: list[dict[str, Any]]) -> Batch:
        """Advantages and sequences of played episodes.

        Failures, and episodes in which nothing was sampled, are counted and stay out of every baseline.
        """
        num_episodes = len(rows) + len(failures)
        ledger: Counter[str] = Counter(f"failed:{row['_ng_failure_class']}" for row in failures)
        rows, episodes = _with_tokens(rows, ledger)
        scores = EpisodeScores(
            reward=np.array([row["reward"] for row in rows], np.float64),
            group=np.array([row["_ng_task_index"] for row in rows], np.int64),
            length=np.array([sum(s.num_trained for s in episode) for episode in episodes], np.int64),
            truncated=np.array([row["regimen"]["outcome"] == Outcome.TRUNCATED for row in rows], bool),
        )
        result = self.algorithm.advantages(scores)
        everything: list[TrainingSequence] = []
        computed: list[TrainingSequence] = []
        for index, episode in enumerate(episodes):
            advantage = float(result.advantage[index])
            made = [_sequence(s, index, advantage, bool(result.used[index])) for s in episode]
            everything.extend(made)
            inert = self.algorithm.is_inert(advantage)
            ledger[_bucket(bool(result.used[index]), bool(result.has_variance[index]), inert)] += 1
            if result.used[index] and not inert:
                computed.extend(made)
        if sum(ledger.values()) != num_episodes:
            raise RunError(f"{dict(ledger)} does not add up to {num_episodes} episodes")
        tokens, count = normalisers(everything)
        return Batch(computed, tokens, count, _figures(scores, result.advantage, rows, len(failures)), ledger)


def _with_tokens(
    rows: list[dict[str, Any]], ledger: Counter[str]
) -> tuple[list[dict[str, Any]], list[list[TokenSequence]]]:
    """The episodes in which something was sampled, and their sequences; the ledger takes the others."""
    kept: list[dict[str, Any]] = []
    episodes: list[list[TokenSequence]] = []
    for row in rows:
        sequences = sequences_of(turns_of(row["response"]["output"]))
        if any(sequence.num_trained for sequence in sequences):
            kept.append(row)
            episodes.append(sequences)
        else:
            ledger["no_tokens"] += 1
    return kept, episodes


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


def _figures(
    scores: EpisodeScores, advantage: np.ndarray, rows: list[dict[str, Any]], num_failures: int
) -> dict[str, float]:
    reward = scores.reward
    groups = {int(g): reward[scores.group == g] for g in np.unique(scores.group)}
    return {
        "reward": float(reward.mean()) if len(reward) else math.nan,
        "reward_std": float(reward.std()) if len(reward) else math.nan,
        "groups_with_variance": sum(float(np.ptp(g) > 0) for g in groups.values()) / max(1, len(groups)),
        "advantages/mean": float(advantage.mean()) if len(advantage) else 0.0,
        "advantages/max": float(advantage.max(initial=0.0)),
        "advantages/min": float(advantage.min(initial=0.0)),
        "truncation_rate": float(scores.truncated.mean()) if len(reward) else 0.0,
        "mean_gen_tokens_per_sample": float(scores.length.mean()) if len(reward) else 0.0,
        "turns_per_sample": float(np.mean([row["num_turns"] for row in rows])) if rows else 0.0,
        "num_episodes": float(len(rows)),
        "num_failed": float(num_failures),
    }


class Agreement:
    """Compares the generator's log-probabilities with the policy's own, each step, before the weights change.

    float32: at most 1e-4 on every token. bfloat16: a mean of at most 0.06, rounding being what it is.
    """

    def __init__(self, precision: str) -> None:
        self.exact = precision == "float32"
        self.reset()

    def reset(self) -> None:
        """Begin a step."""
        self.total, self.count, self.largest = 0.0, 0, 0.0

    def add(self, difference: np.ndarray) -> None:
        """Take the differences of a micro-batch's trained tokens."""
        absolute = np.abs(difference)
        self.total += float(absolute.sum())
        self.count += absolute.size
        self.largest = float(np.maximum(self.largest, absolute.max(initial=0.0)))  # NaN stays NaN, unlike with max

    def pool(self, ranks: Ranks) -> None:
        """Take what every process saw, so that all judge alike."""
        parts = ranks.gather([self.total, self.count, self.largest])
        self.total, self.count = sum(part[0] for part in parts), sum(part[1] for part in parts)
        self.largest = float(np.max([part[2] for part in parts]))

    def check(self) -> dict[str, float]:
        """The step's figures; raises `GenerationError` beyond the bound."""
        mean = self.total / max(1, self.count)
        figures = {"gen_logprob_error_mean": mean, "gen_logprob_error_max": self.largest}
        seen, bound = (self.largest, 1e-4) if self.exact else (mean, 0.06)
        if not seen <= bound:
            raise GenerationError(
                f"log-probabilities differ from the policy's by {seen:.2g} ({'largest' if self.exact else 'mean'})",
                expected=f"at most {bound:g}",
                fix="the generator has other weights, another temperature or another precision than the policy",
            )
        return figures


def with_reference(sequences: list[TrainingSequence], values: list[np.ndarray]) -> list[TrainingSequence]:
    """The sequences with their reference log-probabilities."""
    return [replace(s, reference_logprob=v) for s, v in zip(sequences, values, strict=True)]
