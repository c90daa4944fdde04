"""All of GRPO in one file: play, compare with the group, clip, step. Read it from top to bottom.

    python examples/grpo_loop.py MODEL --steps 8

MODEL is a folder or a hub name, or smollm2-135m-instruct, the small model of the quickstart. `regimen train` does the
same with prefix sharing, resuming and the other losses; a test holds the losses of the two equal.

Shapes: B episodes of a step, in groups of G per task; R token rows (an episode has one, or more where its history was
rewritten); L tokens of the longest row, shorter ones padded on the right; V words of the vocabulary.
    ids   [R, L]    mask  [R, L]    1 where the token was sampled by the model, prompts and tool outputs being 0
    logp  [R, L-1]  log-probability of token t+1 given tokens 0..t
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from regimen.generation.base import Sampling
from regimen.generation.transformers import TransformersGeneration
from regimen.gym.agent import Limits
from regimen.gym.collect import collect_rollouts
from regimen.gym.environment import load_environment
from regimen.pipelines.models import resolve_model
from regimen.rollouts.turns import TokenSequence, sequences_of, turns_of
from regimen.tokens.template import Renderer


@dataclass
class Settings:
    """Everything that can be chosen."""

    model: str
    environment: str = "calculator"
    chat_template: str | None = "tools"
    steps: int = 8
    tasks_per_step: int = 8
    group_size: int = 8
    learning_rate: float = 2e-5
    clip: float = 0.2
    max_grad_norm: float = 1.0
    temperature: float = 0.7
    max_new_tokens: int = 64
    max_turns: int = 4
    max_length: int = 1024
    rows_at_once: int = 2
    seed: int = 0


@dataclass
class Step:
    """What a step was like."""

    loss: float
    grad_norm: float
    reward: float


def main(settings: Settings) -> list[Step]:
    """Train `settings.steps` steps and return their figures."""
    folder = resolve_model(settings.model)
    environment = load_environment(settings.environment)
    renderer = Renderer.load(folder, settings.chat_template)
    sampler = TransformersGeneration.load(folder, precision="float32")  # plays episodes, with its own key-value cache
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(sampler.model.device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    tasks = environment.tasks("train")
    steps_per_epoch = len(tasks) // settings.tasks_per_step
    sampling = Sampling(
        temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, stop_ids=renderer.stop_ids
    )
    limits = Limits(max_turns=settings.max_turns, max_sequence_length=settings.max_length)

    history: list[Step] = []
    for step in range(settings.steps):
        # 1. Play: the next tasks, each G times, with the current weights. The order of the tasks depends on seed and
        # epoch alone, and every model call is seeded by step, task, repeat and turn.
        epoch, within = divmod(step, steps_per_epoch)
        order = np.random.Generator(np.random.Philox([settings.seed, epoch])).permutation(len(tasks))
        first = within * settings.tasks_per_step
        chosen = [tasks[index] for index in order[first : first + settings.tasks_per_step]]
        played = asyncio.run(
            collect_rollouts(
                chosen,
                settings.group_size,
                environment,
                sampler,
                renderer,
                sampling,
                seed=settings.seed,
                step=step,
                concurrency=len(chosen) * settings.group_size,
                limits=limits,
            )
        )
        # Episodes that failed for reasons that are not the model's are in played.failures: no reward, no baseline.
        rewards = np.array([row["reward"] for row in played.rows])  # [B]
        groups = np.array([row["_ng_task_index"] for row in played.rows])  # [B]

        # 2. Advantages: how much better than the other attempts at the same task.
        advantages = group_advantages(rewards, groups)  # [B]

        # 3. Loss and gradient, a few rows at a time; the divisor is that of the whole step, so the parts add up.
        rows = [
            (sequence, advantage)
            for row, advantage in zip(played.rows, advantages, strict=True)
            for sequence in sequences_of(turns_of(row["response"]["output"]))  # sampled ids, never re-tokenised text
        ]
        num_sampled = sum(sequence.num_trained for sequence, _ in rows)
        rows = [(sequence, advantage) for sequence, advantage in rows if advantage != 0]  # the rest has no gradient
        if not rows:
            print(f"step {step + 1}: reward {rewards.mean():.3f}, no task with different rewards: nothing to learn")
            continue
        optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for start in range(0, len(rows), settings.rows_at_once):
            part = clipped_loss(policy, rows[start : start + settings.rows_at_once], num_sampled, settings)
            part.backward()
            loss += part.item()

        # 4. One step, and the new weights go to the sampler.
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm).item()
        optimizer.step()
        asyncio.run(sampler.update(step + 1, policy.named_parameters()))
        history.append(Step(loss, norm, float(rewards.mean())))
        print(f"step {step + 1}: reward {rewards.mean():.3f}, loss {loss:+.6f}, gradient norm {norm:.4f}")
    asyncio.run(sampler.close())
    return history


def group_advantages(rewards: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`(r - mean) / std` of the other episodes of the task; only `r - mean` where the others all have one reward."""
    advantages = np.zeros(len(rewards))
    for index in range(len(rewards)):
        others = rewards[(groups == groups[index]) & (np.arange(len(rewards)) != index)]
        if len(others) == 0:
            continue
        spread = others.std(ddof=1) if len(others) > 1 else 0.0
        advantages[index] = (rewards[index] - others.mean()) / (spread + 1e-6 if spread > 0 else 1.0)
    return advantages


def clipped_loss(policy: Any, rows: list[tuple[TokenSequence, float]], num_sampled: int, settings: Settings) -> Tensor:
    """This part's share of the mean over all sampled tokens of -min(ratio · A, clip(ratio) · A)."""
    ids, mask, attention = padded([sequence for sequence, _ in rows], policy.device)
    advantage = torch.tensor([a for _, a in rows], dtype=torch.float32, device=policy.device)[:, None]  # [R, 1]
    logits = policy(input_ids=ids, attention_mask=attention).logits[:, :-1] / settings.temperature  # [R, L-1, V]
    logp = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)  # [R, L-1]
    # One step per batch: the policy before the step is this one, so the ratio is 1 and carries the gradient. With
    # several steps per batch `before` would be the log-probabilities kept from the first, and the clip would bite.
    before = logp.detach()
    ratio = (logp - before).exp()
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    per_token = -torch.minimum(ratio * advantage, clipped * advantage)  # [R, L-1]
    return (per_token * mask[:, 1:]).sum() / num_sampled


def padded(sequences: list[TokenSequence], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`ids`, `mask` (sampled tokens) and attention mask (real tokens), each `[R, L]`."""
    length = max(len(sequence.ids) for sequence in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.int64)
    mask, attention = torch.zeros(len(sequences), length), torch.zeros(len(sequences), length, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        attention[row, : len(sequence.ids)] = 1
        for start, stop in sequence.spans:
            mask[row, start:stop] = 1
    return ids.to(device), mask.to(device), attention.to(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--environment", default="calculator")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    given = parser.parse_args()
    main(Settings(given.model, given.environment, steps=given.steps, learning_rate=given.learning_rate))
