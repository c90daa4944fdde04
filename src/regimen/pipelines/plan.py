"""What a training run will take, before it is begun: memory of each process, tokens and seconds of a step.

In: a `TrainConfig`. Out: a `Plan`. Memory is arithmetic (`regimen.diagnosis.memory`) on the run's own first batches and
on what this process holds before it loads a model; time is measured by a few micro-batches, which are left out where
they would not fit. Of many processes each must call it. Refuses what training refuses of data and configuration.
"""

from __future__ import annotations

import msgspec

from regimen.config.schema import TrainConfig
from regimen.diagnosis.memory import GIGABYTE, MemoryEstimate, estimate_memory
from regimen.diagnosis.plan import MachineMemory, Plan, changes_to_fit
from regimen.pipelines.first_steps import planned_batches
from regimen.pipelines.machine import machine_memory, resident_bytes
from regimen.pipelines.models import check_positions, config_of, load_renderer, resolve_model
from regimen.pipelines.processes import joined
from regimen.pipelines.workload import PlannedBatches, num_processes, workload_of


def plan(config: TrainConfig, *, with_probe: bool = True, device_memory: float | None = None) -> Plan:
    """The plan of `config` for this machine, or for GPUs of `device_memory` GB each, where nothing is measured."""
    with joined(config) as ranks:
        policy = config.policy
        check_positions(policy)
        processes = num_processes(config, ranks.size)
        shares = max(1, processes // (policy.dtensor_cfg.tensor_parallel_size if policy.dtensor_cfg.enabled else 1))
        machine = machine_memory() if device_memory is None else _wanted(device_memory)
        batches = planned_batches(config, load_renderer(policy), shares)
        libraries = _libraries() if machine.kind == "RAM" else 0
        found = _without_time(config, batches, machine, processes, libraries)
        is_here = device_memory is None and processes == ranks.size
        return _timed(found, config, batches, is_here=is_here, with_probe=with_probe)


def _wanted(gigabytes: float) -> MachineMemory:
    size = int(gigabytes * GIGABYTE)
    return MachineMemory(kind="GPU", total=size, available=size)


def _libraries() -> int:
    """What a training process holds without a model: this one, with all that training imports."""
    from transformers.models.llama import modeling_llama  # noqa: F401  likewise: any decoder's code is about as large

    import regimen.pipelines.train  # noqa: F401  for its size

    return resident_bytes()


def _without_time(
    config: TrainConfig, batches: PlannedBatches, machine: MachineMemory, processes: int, libraries: int
) -> Plan:
    on_gpu = machine.kind == "GPU"
    work = workload_of(config, batches, processes=processes, on_gpu=on_gpu, libraries=libraries)
    model = config_of(resolve_model(config.policy.model_name), config.policy.trust_remote_code)
    memory = estimate_memory(model, work)
    each = machine.available if on_gpu else machine.available // processes
    fits = None if memory is None else memory.total <= each
    longest = batches.longest.num_tokens if batches.longest is not None else config.policy.max_total_sequence_length
    number = len(batches.steps)
    return Plan(
        algorithm=config.algorithm,
        processes=processes,
        machine=machine,
        memory=memory,
        needed=None if memory is None else memory.total * (1 if on_gpu else processes),
        fits=fits,
        changes=changes_to_fit(model, work, each, longest=longest) if fits is False else [],
        total_steps=batches.total_steps,
        steps_looked_at=number,
        tokens_per_step=batches.tokens_per_step,
        sequences_per_step=sum(len(forest.row) for step in batches.steps for forest in step) / number,
        micro_batches_per_step=sum(map(len, batches.steps)) / number,
        largest_micro_batch=work.tokens,
        seconds={},
        notes=[*config.notes, *_notes(config, memory)],
    )


def _notes(config: TrainConfig, memory: MemoryEstimate | None) -> list[str]:
    notes: list[str] = []
    if memory is None:
        notes.append("no estimate of memory: the model's config.json is not there or names its sizes otherwise")
    if config.grpo is not None:
        notes.append(
            "every answer is taken to be as long as policy.generation.max_new_tokens allows, none to be left out"
        )
    return notes


def _timed(found: Plan, config: TrainConfig, batches: PlannedBatches, *, is_here: bool, with_probe: bool) -> Plan:
    """The plan with its seconds, or with the reason why there are none."""
    why = None
    if not with_probe:
        why = "no time was measured, as asked"
    elif not is_here:
        why = "no time was measured: this is another machine, or not all processes are here"
    elif found.fits is False:
        why = "no time was measured, as it does not fit"
    if why is not None:
        return msgspec.structs.replace(found, notes=[*found.notes, why])
    return msgspec.structs.replace(found, seconds=_seconds(config, batches, found.tokens_per_step))


def _seconds(config: TrainConfig, batches: PlannedBatches, tokens: float) -> dict[str, float]:
    """The parts of a step, from what a few micro-batches took."""
    from regimen.pipelines.probe import probe  # torch, which a plan without time does without

    grpo, generation = config.grpo, config.policy.generation
    passes = 0
    if grpo is not None:
        passes = (config.loss_fn.reference_policy_kl_penalty > 0) + (config.updates_per_step > 1)
    measured = probe(config, batches, plain=passes > 0)
    seconds = {
        "policy_training": measured.round * tokens / measured.tokens + measured.optimiser * config.updates_per_step
    }
    if passes:
        seconds["policy_and_reference_logprobs"] = passes * measured.plain * tokens / measured.tokens
    if grpo is not None and generation is not None:
        waves = -(-config.episodes_per_step // measured.rows) * grpo.max_rollout_turns
        seconds["generation"] = waves * (measured.prefill + generation.max_new_tokens * measured.token)
    return seconds
