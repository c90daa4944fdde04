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
from regimen.pipelines.batches import DatasetBatches, shuffled
from regimen.pipelines.datasets import load_dataset
from regimen.pipelines.tasks import environment_of, tasks_of_dataset
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
    training = config.sft or config.dpo
    assert training is not None
    assert config.data.train is not None
    dataset = load_dataset(
        config.data.train,
        renderer,
        config.policy.max_total_sequence_length,
        pairs=config.dpo is not None,
        only_final=config.sft is not None and config.sft.only_unmask_final,
    )
    source = DatasetBatches(
        dataset,
        config.global_batch_size,
        seed=training.seed,
        shuffle=config.data.shuffle,
        max_epochs=training.max_num_epochs,
        max_steps=training.max_num_steps,
    )
    steps = [source.batch(step).sequences for step in range(min(source.total_steps, STEPS_LOOKED_AT))]
    longest = max(dataset.examples, key=lambda example: sum(len(sequence.ids) for sequence in example.sequences))
    everything = [sequence for step in steps for sequence in step]
    return _Made(steps, source.total_steps, everything, longest.sequences)


def _of_episodes(config: TrainConfig, renderer: Renderer) -> _Made:
    grpo, data = config.grpo, config.data.train
    assert grpo is not None
    assert data is not None
    tasks = tasks_of_dataset(data, environment_of(config, data), "train")
    if len(tasks) < config.tasks_per_generation:
        raise ConfigError(f"{len(tasks)} tasks", where="data.train", expected=f"at least {config.tasks_per_generation}")
    per_epoch = max(1, len(tasks) // config.tasks_per_generation)
    total = min(grpo.max_num_epochs * per_epoch, grpo.max_num_steps)
    order = shuffled(len(tasks), grpo.seed, 0) if config.data.shuffle else np.arange(len(tasks))
    steps: list[list[TrainingSequence]] = []
    prompts: list[list[int]] = []
    for step in range(min(total, per_epoch, STEPS_LOOKED_AT)):
        first = step * config.tasks_per_generation
        sequences: list[TrainingSequence] = []
        for place in order[first : first + grpo.num_prompts_per_step].tolist():
            params = tasks[place].row["responses_create_params"]
            prompt = renderer.prompt_ids(input_messages(params), chat_tools(params))
            prompts.append(prompt)
            sequences += _full_answers(config, renderer, prompt, place)
        steps.append(sequences)
    return _Made(steps, total, prompts=prompts)


def _full_answers(config: TrainConfig, renderer: Renderer, prompt: list[int], task: int) -> Iterator[TrainingSequence]:
    """Random answers of the most tokens that there can be, which share nothing but the prompt."""
    grpo, generation = config.grpo, config.policy.generation
    if grpo is None or generation is None:
        raise ConfigError("there is no generation", where="policy.generation", expected="GRPO plays episodes")
    room = config.policy.max_total_sequence_length - len(prompt)
    size = min(room, generation.max_new_tokens * grpo.max_rollout_turns)
    if size < 1:
        return
    for repeat in range(grpo.num_generations_per_prompt):
        random = np.random.Generator(np.random.Philox([task, repeat]))
        answer = random.integers(0, len(renderer.tokenizer), size)
        yield TrainingSequence(ids=[*prompt, *answer.tolist()], spans=[(len(prompt), len(prompt) + size)])
