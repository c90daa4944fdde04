"""The first steps of a run as training would make them, without training.

In: a `TrainConfig`, a renderer. Out: `PlannedBatches`. Episodes are not there before they are played: each is taken to
be as long as the configuration allows. Refuses what reading the data refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError
from regimen.pipelines.batches import DatasetBatches, TaskOrder
from regimen.pipelines.datasets import load_rows
from regimen.pipelines.tasks import training_tasks
from regimen.pipelines.workload import PlannedBatches
from regimen.rollouts.messages import chat_tools, input_messages
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.packing import micro_batches
from regimen.tokens.template import Renderer

STEPS_LOOKED_AT = 8


def planned_batches(config: TrainConfig, renderer: Renderer, num_shares: int = 1) -> PlannedBatches:
    """The batches of the first steps, as training would make them; of GRPO with answers of full length."""
    if config.data.train is None:
        raise ConfigError("there is no training data", where="data.train", expected="dataset_name and data_path")
    made = _of_episodes(config, renderer) if config.grpo is not None else _of_rows(config, renderer)
    policy = config.policy
    plain = made.sequences[0] if config.grpo is not None else made.everything
    single = [] if made.longest is None else micro_batches(made.longest, 1)
    return PlannedBatches(
        steps=[
            [
                forest
                for update in _updates(config, step)
                for forest in micro_batches(update, policy.train_token_budget, num_shares=num_shares)
            ]
            for step in made.sequences
        ],
        total_steps=made.total_steps,
        plain=micro_batches(plain, policy.logprob_token_budget, num_shares=num_shares),
        longest=max(single, key=lambda forest: forest.num_tokens, default=None),
        prompts=made.prompts,
    )


def _updates(config: TrainConfig, step: list[TrainingSequence]) -> list[list[TrainingSequence]]:
    """The sequences of each optimiser step: all, or of GRPO so many episodes."""
    size = config.global_batch_size if config.grpo is not None else len(step)
    return [step[start : start + size] for start in range(0, len(step), size)]


@dataclass(frozen=True, slots=True)
class _Made:
    sequences: list[list[TrainingSequence]]
    total_steps: int
    everything: list[TrainingSequence] = field(default_factory=list[TrainingSequence])
    longest: list[TrainingSequence] | None = None
    prompts: list[list[int]] = field(default_factory=list[list[int]])


def _of_rows(config: TrainConfig, renderer: Renderer) -> _Made:
    assert config.data.train is not None
    dataset = load_rows(config, config.data.train, renderer)
    source = DatasetBatches.of(config, dataset)
    steps = [source.batch(step).sequences for step in range(min(source.total_steps, STEPS_LOOKED_AT))]
    longest = max(dataset.examples, key=lambda example: sum(len(sequence.ids) for sequence in example.sequences))
    everything = [sequence for step in steps for sequence in step]
    return _Made(steps, source.total_steps, everything, longest.sequences)


def _of_episodes(config: TrainConfig, renderer: Renderer) -> _Made:
    grpo = config.grpo
    assert grpo is not None
    order = TaskOrder(config, training_tasks(config)[1])
    steps: list[list[TrainingSequence]] = []
    prompts: list[list[int]] = []
    for step in range(min(order.total_steps, order.steps_per_epoch, STEPS_LOOKED_AT)):
        sequences: list[TrainingSequence] = []
        for task in next(order.draws(step))[: grpo.num_prompts_per_step]:
            params = task.row["responses_create_params"]
            prompt = renderer.prompt_ids(input_messages(params), chat_tools(params))
            sequences += _full_answers(config, renderer, prompt, len(prompts))
            prompts.append(prompt)
        steps.append(sequences)
    return _Made(steps, order.total_steps, prompts=prompts)


def _full_answers(config: TrainConfig, renderer: Renderer, prompt: list[int], place: int) -> Iterator[TrainingSequence]:
    """Random answers of the most tokens that there can be, which share nothing but the prompt."""
    grpo, generation = config.grpo, config.policy.generation
    assert grpo is not None
    assert generation is not None
    room = config.policy.max_total_sequence_length - len(prompt)
    size = min(room, generation.max_new_tokens * grpo.max_rollout_turns)
    if size < 1:
        return
    for repeat in range(grpo.num_generations_per_prompt):
        random = np.random.Generator(np.random.Philox([place, repeat]))
        answer = random.integers(0, len(renderer.tokenizer), size)
        yield TrainingSequence(ids=[*prompt, *answer.tolist()], spans=[(len(prompt), len(prompt) + size)])
