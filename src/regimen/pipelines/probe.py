"""How long a step takes here, from a few real micro-batches on the configured model.

In: a configuration and its first batches. Out: a `Probe` in seconds. Weights change in memory only and are dropped.
One micro-batch warms up; then one optimiser step over one round of micro-batches, and one over two: their
difference is a round, the rest the optimiser. With many processes all must call it. Refuses nothing of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from torch import Tensor

from regimen.config.schema import TrainConfig
from regimen.generation.base import Sampling
from regimen.pipelines.models import free_memory
from regimen.pipelines.prepare import load_generation, load_policy
from regimen.pipelines.workload import PlannedBatches
from regimen.policy.base import LossOutput, Supervision
from regimen.policy.local import LocalPolicy
from regimen.policy.ranks import current_ranks
from regimen.tokens.forest import Forest

TOKENS_ON_CPU = 512  # beyond, a token takes a processor as long as here
SHORT, LONG = 4, 12  # tokens sampled; the difference is that of decoding


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. `tokens`: computed in a round of micro-batches; `plain`: of such a round without gradient.

    `prefill` and `token`: of prompts for all rows at once, and of one more token for each of them.
    """

    tokens: int
    round: float
    optimiser: float
    plain: float
    rows: int = 0
    prefill: float = 0.0
    token: float = 0.0


def probe(config: TrainConfig, batches: PlannedBatches, *, plain: bool) -> Probe:
    """Measure; `plain`: passes without gradient too."""
    found = _training(load_policy(config, train=True), batches, plain=plain)
    free_memory()
    return found if config.grpo is None else msgspec.structs.replace(found, **_generation(config, batches))


def _training(policy: LocalPolicy, batches: PlannedBatches, *, plain: bool) -> Probe:
    forests = _a_round(batches, policy.num_shares, is_on_processor=policy.device.type == "cpu")
    policy.train_step(forests, _mean)
    one = _seconds(lambda: policy.train_step(forests, _mean))
    two = _seconds(lambda: policy.train_step([*forests, *forests], _mean))
    return Probe(
        tokens=sum(forest.num_tokens for forest in forests),
        round=max(0.0, two - one),
        optimiser=max(0.0, 2 * one - two),
        plain=_seconds(lambda: policy.logprobs(forests)) if plain else 0.0,
    )


def _a_round(batches: PlannedBatches, num_shares: int, *, is_on_processor: bool) -> list[Forest]:
    """One micro-batch for each share: the smallest of at least the tokens that keep a processor busy."""
    forests = sorted((forest for step in batches.steps for forest in step), key=lambda forest: forest.num_tokens)
    wanted = TOKENS_ON_CPU if is_on_processor else forests[-1].num_tokens
    first = next((place for place, forest in enumerate(forests) if forest.num_tokens >= wanted), len(forests) - 1)
    chosen = forests[max(0, first - num_shares + 1) : first + 1]
    return chosen + [chosen[-1]] * (num_shares - len(chosen))


def _mean(logprob: Tensor, _: Supervision) -> LossOutput:
    return LossOutput(-logprob.mean(), {})


def _seconds(work: Callable[[], Any]) -> float:
    """Device work ends before a step's figures are there."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _generation(config: TrainConfig, batches: PlannedBatches) -> dict[str, Any]:
    settings, grpo = config.policy.generation, config.grpo
    assert settings is not None
    assert grpo is not None
    engine = load_generation(config, settings)
    episodes = -(-config.episodes_per_step // current_ranks().size)
    rows = min(settings.max_batch_size, episodes)
    prompts = [batches.prompts[row // grpo.num_generations_per_prompt % len(batches.prompts)] for row in range(rows)]
    try:
        asyncio.run(_sampled(engine, prompts, 1))
        short = _seconds(lambda: asyncio.run(_sampled(engine, prompts, SHORT)))
        long = _seconds(lambda: asyncio.run(_sampled(engine, prompts, LONG)))
    finally:
        asyncio.run(engine.close())
    token = max(0.0, (long - short) / (LONG - SHORT))
    return {"rows": rows, "token": token, "prefill": max(0.0, short - SHORT * token)}


async def _sampled(engine: Any, prompts: Sequence[list[int]], count: int) -> None:
    """`count` tokens of each prompt, which nothing ends before; then free the memory, as a run does between steps."""
    sampling = Sampling(max_new_tokens=count, stop_ids=())
    await asyncio.gather(*(engine.sample(prompt, sampling, seed) for seed, prompt in enumerate(prompts)))
    await engine.release()
