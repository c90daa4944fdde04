"""What one process of a training run has to hold, from its configuration and, where they were looked at, its batches.

In: a `TrainConfig`, and its first batches. Out: a `Workload` for `estimate_memory`. No tensor library is needed.
Refuses a path that holds no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from regimen.config.schema import TrainConfig
from regimen.diagnosis.memory import GenerationLoad, Workload
from regimen.diagnosis.shapes import LoraShape
from regimen.pipelines.models import resolve_model
from regimen.tokens.forest import Forest

_MOMENTS = {"SGD": 0, "Adagrad": 1, "RMSprop": 1, "Lion": 1, "Muon": 1}  # others keep two, as AdamW does


@dataclass(frozen=True, slots=True)
class PlannedBatches:
    """The first steps as forests. `plain`: those of one step's pass without gradient; `prompts`: of the first step."""

    steps: list[list[Forest]]
    total_steps: int
    plain: list[Forest] = field(default_factory=list[Forest])
    longest: Forest | None = None
    prompts: list[list[int]] = field(default_factory=list[list[int]])

    @property
    def largest(self) -> Forest:
        """The forest with the most tokens."""
        forests = [forest for step in self.steps for forest in step]
        return max([*forests, *([self.longest] if self.longest else [])], key=lambda forest: forest.num_tokens)

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step computes: shared prefixes once."""
        return sum(forest.num_tokens for step in self.steps for forest in step) / len(self.steps)


def num_processes(config: TrainConfig, started: int = 1) -> int:
    """How many processes train: `started` are known to; without them, what the configuration asks for."""
    if not config.policy.dtensor_cfg.enabled:
        return 1
    cluster = config.cluster
    return started if started > 1 else cluster.num_processes or cluster.gpus_per_node * cluster.num_nodes or 1


def workload_of(
    config: TrainConfig,
    batches: PlannedBatches | None = None,
    *,
    processes: int = 1,
    on_gpu: bool = False,
    libraries: int = 0,
) -> Workload:
    """What one process holds; without `batches`, of micro-batches as full as the token budget allows."""
    policy, division = config.policy, config.policy.dtensor_cfg
    lora = division.lora_cfg
    largest = None if batches is None else batches.largest
    plain = policy.logprob_token_budget if batches is None else _largest(batches.plain)
    return Workload(
        tokens=policy.train_token_budget if largest is None else largest.num_tokens,
        targets=None if largest is None else len(np.unique(largest.target)),
        plain_tokens=plain if _needs_plain_pass(config) else 0,
        precision=policy.precision,
        moments=_MOMENTS.get(policy.optimizer.name.rpartition(".")[2], 2),
        checkpointing=policy.activation_checkpointing,
        entropy_bonus=config.grpo is not None and bool(config.loss_fn.entropy_coefficient),
        reference=_reference(config),
        generation=_generation(config, batches, processes),
        saves_state=config.checkpointing.save_optimizer,
        copies=config.checkpointing.enabled and config.checkpointing.is_async,
        goes_on=batches is None or batches.total_steps > config.checkpointing.save_period,
        is_sharded=division.enabled,
        processes=processes,
        tensor_parallel=division.tensor_parallel_size if division.enabled else 1,
        sequence_parallel=division.enabled and division.sequence_parallel,
        offloads=division.enabled and division.cpu_offload,
        on_gpu=on_gpu,
        file=_bytes_on_disk(policy.model_name),
        libraries=libraries,
        lora=LoraShape(lora.dim, tuple(lora.target_modules), tuple(lora.exclude_modules), lora.load_in_4bit)
        if lora.enabled
        else None,
    )


def _largest(forests: Sequence[Forest]) -> int:
    return max((forest.num_tokens for forest in forests), default=0)


def _needs_plain_pass(config: TrainConfig) -> bool:
    """Whether log-probabilities are computed without a gradient: a reference's, the policy's own, or to validate."""
    if config.grpo is None:
        return config.dpo is not None or config.data.validation is not None
    return config.loss_fn.reference_policy_kl_penalty > 0 or config.updates_per_step > 1


def _reference(config: TrainConfig) -> Any:
    if config.dpo is not None:
        return "before"
    is_read = config.grpo is not None and config.loss_fn.reference_policy_kl_penalty > 0
    return "held" if is_read else "none"


def _generation(config: TrainConfig, batches: PlannedBatches | None, processes: int) -> GenerationLoad | None:
    settings = config.policy.generation
    if config.grpo is None or settings is None:
        return None
    length = config.policy.max_total_sequence_length
    prompts = [] if batches is None else [len(prompt) for prompt in batches.prompts]
    longest = max(prompts, default=length)
    answer, turns = settings.max_new_tokens, config.grpo.max_rollout_turns
    rows = min(settings.max_batch_size, -(-config.episodes_per_step // processes))
    groups = -(-rows // config.grpo.num_generations_per_prompt)
    return GenerationLoad(
        precision=settings.precision or config.policy.precision,
        rows=settings.max_batch_size,
        positions=min(length, longest + answer * turns),
        prefill=sum(sorted(prompts)[-groups:]) if prompts else groups * length,
        turns=turns,
    )


def _bytes_on_disk(model: str) -> int:
    folder = Path(resolve_model(model))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else 0
