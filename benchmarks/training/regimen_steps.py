"""Regimen as a contestant: `python -m training.regimen_steps ALGORITHM VARIANT SETTINGS`.

It takes the steps of `regimen.pipelines.train` through the same policy, packing, losses and engine. Variants:
`forest` (as it is), `packed` (every sequence a tree of its own: what remains when nothing is shared), for DPO
`reference` (the reference's log-probabilities inside the step: the cost of an only epoch, where `forest` has them from
before training, as the pipeline does), and for GRPO `checkpointed` (activations are computed again in the backward
pass instead of kept).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.algorithms.advantages import group_advantages
from regimen.algorithms.losses import (
    PolicyGradientOptions,
    PreferenceOptions,
    dpo_loss,
    policy_gradient_loss,
    sft_loss,
)
from regimen.generation.base import Sample, Sampling
from regimen.generation.transformers import TransformersGeneration
from regimen.pipelines.batch import with_reference
from regimen.pipelines.prepare import logprobs_of
from regimen.policy.base import Loss, LossOutput, Supervision
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.packing import micro_batches
from regimen.tokens.template import Renderer
from training import data
from training.flops import training_flops
from training.processes import Channel
from training.settings import LEARNING_RATE, Settings

Figures = dict[str, Any]
Step = Callable[[int], Figures]


def load_policy(settings: Settings, *, train: bool = True, checkpointed: bool = False) -> LocalPolicy:
    """The model with float32 weights and the fused AdamW."""
    options = LocalPolicyOptions(
        precision=settings.dtype,
        temperature=settings.temperature,
        optimizer_kwargs={"lr": LEARNING_RATE},
        activation_checkpointing=checkpointed,
        train=train,
    )
    return LocalPolicy.load(settings.model, options)


def update(policy: LocalPolicy, sequences: list[TrainingSequence], loss: Loss, budget: int, *, share: bool) -> Figures:
    """One optimiser step and what it computed, at most `budget` tokens at once."""
    forests = micro_batches(sequences, budget, share=share)
    began = time.perf_counter()
    result = policy.train_step(forests, loss)
    return {
        "loss": result.loss,
        "trained_tokens": sum(sequence.num_trained for sequence in sequences),
        "computed_tokens": result.computed_tokens,
        "update_seconds": time.perf_counter() - began,
        "update_flops": sum(training_flops(policy.model.config, forest) for forest in forests),
    }


def sft(settings: Settings, variant: str) -> Step:
    """Multi-turn conversations."""
    rows = data.conversations(Renderer.load(settings.model), settings.total_steps * settings.conversations)
    policy = load_policy(settings)

    def step(index: int) -> Figures:
        part = rows[index * settings.conversations : (index + 1) * settings.conversations]
        sequences = [TrainingSequence(ids=row.ids, spans=row.spans) for row in part]
        return update(policy, sequences, sft_loss, settings.micro_batch_tokens, share=variant == "forest")

    return step


def dpo(settings: Settings, variant: str) -> Step:
    """Pairs with a prompt in common."""
    rows = data.pairs(Renderer.load(settings.model), settings.total_steps * settings.pairs)
    sequences = [sequence for index, pair in enumerate(rows) for sequence in _pair(pair, index)]
    reference = load_policy(settings, train=False)
    if variant != "reference":
        sequences = _with_logprobs(reference, sequences, settings.micro_batch_tokens)
        del reference
    policy = load_policy(settings)
    size = 2 * settings.pairs

    def step(index: int) -> Figures:
        part = sequences[index * size : (index + 1) * size]
        if variant == "reference":
            part = _with_logprobs(reference, part, settings.micro_batch_tokens)
        loss = partial(dpo_loss, options=PreferenceOptions())
        return update(policy, part, loss, settings.micro_batch_tokens, share=variant != "packed")

    return step


def _pair(pair: data.Pair, index: int) -> Iterator[TrainingSequence]:
    for ids, is_chosen in ((pair.chosen, True), (pair.rejected, False)):
        whole = [*pair.prompt, *ids]
        yield TrainingSequence(ids=whole, spans=[(len(pair.prompt), len(whole))], pair=index, is_chosen=is_chosen)


def _with_logprobs(reference: LocalPolicy, sequences: list[TrainingSequence], budget: int) -> list[TrainingSequence]:
    return with_reference(sequences, logprobs_of(reference, sequences, budget))


def grpo(settings: Settings, variant: str) -> Step:
    """Sample, reward, compare with the group, step, hand the weights to the sampler."""
    rows = data.prompts(Renderer.load(settings.model), settings.total_steps * settings.prompts)
    policy = load_policy(settings, checkpointed=variant == "checkpointed")
    engine = TransformersGeneration.load(settings.model, precision=settings.dtype)
    # Without stop ids every completion has its full length, so that all contestants train as many tokens.
    sampling = Sampling(temperature=settings.temperature, max_new_tokens=settings.new_tokens)
    groups = np.repeat(np.arange(settings.prompts), settings.group_size)

    async def play(prompts: list[list[int]], index: int) -> list[Sample]:
        seeds = range(index * len(groups), (index + 1) * len(groups))
        waiting = [engine.sample(prompts[g], sampling, seed) for g, seed in zip(groups.tolist(), seeds, strict=True)]
        return list(await asyncio.gather(*waiting))

    def step(index: int) -> Figures:
        began = time.perf_counter()
        prompts = rows[index * settings.prompts : (index + 1) * settings.prompts]
        samples = asyncio.run(play(prompts, index))
        generated = time.perf_counter() - began
        rewards = np.array([data.reward(sample.ids) for sample in samples])
        advantages = group_advantages(rewards, groups, use_leave_one_out_baseline=False).advantages
        sequences = [
            _episode(prompts[group], sample, advantage)
            for group, sample, advantage in zip(groups.tolist(), samples, advantages.tolist(), strict=True)
        ]
        figures = update(policy, sequences, _grpo_loss, settings.micro_batch_tokens, share=variant != "packed")
        asyncio.run(engine.update(index + 1, policy.named_tensors()))
        return {**figures, "generation_seconds": generated}

    return step


def _episode(prompt: list[int], sample: Sample, advantage: float) -> TrainingSequence:
    return TrainingSequence(
        ids=[*prompt, *sample.ids],
        spans=[(len(prompt), len(prompt) + len(sample.ids))],
        advantage=np.full(len(sample.ids), advantage, np.float32),
        sampled_logprob=np.array(sample.logprobs, np.float32),
    )


_OPTIONS = PolicyGradientOptions(reference_policy_kl_penalty=0.0)


def _grpo_loss(logprob: Tensor, batch: Supervision) -> LossOutput:
    """As `regimen.algorithms.grpo.GRPO.loss`: the policy before the step is the current one."""
    return policy_gradient_loss(logprob, replace(batch, previous_logprob=logprob.detach()), _OPTIONS)


STEPS: dict[str, Callable[[Settings, str], Step]] = {"sft": sft, "dpo": dpo, "grpo": grpo}


def main() -> None:
    """Take the steps that the benchmark asks for."""
    algorithm, variant, text = sys.argv[1:]
    settings = Settings.parse(text)
    channel = Channel(settings.device)
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    step = STEPS[algorithm](settings, variant)
    for index in range(settings.total_steps):
        channel.wait()
        began = channel.now()
        figures = step(index)
        channel.send(seconds=channel.now() - began, **figures)
    channel.finish()


if __name__ == "__main__":
    main()
