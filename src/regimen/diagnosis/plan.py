"""The plan of a run, and what to change when it does not fit: settings, and the memory that each would leave needed.

In: a model's config.json, the work of one process, the bytes there are for it. Out: `Change`s, the cheapest in time
first, at the end all of them together where none is enough. Nothing is suggested that saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from regimen.diagnosis.memory import MemoryEstimate, Workload, estimate_memory
from regimen.diagnosis.shapes import Config

replace = msgspec.structs.replace


class MachineMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What holds the model: GPUs of `available` bytes, one for each process, or the processor's memory for all."""

    kind: Literal["GPU", "RAM"]
    total: int
    available: int


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Overrides for the command line, the bytes that a process then needs, and whether those are there."""

    settings: list[str]
    total: int
    fits: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `regimen plan` shows. `memory` is of one process, in bytes; `needed` of all that share `machine`.

    `tokens_per_step` counts what is computed, shared prefixes once; figures of batches are means over the
    `steps_looked_at`. `seconds` has the parts of a step's time; without a probe it is empty.
    """

    version: int = 1
    algorithm: str
    processes: int
    machine: MachineMemory
    memory: MemoryEstimate | None
    needed: int | None
    fits: bool | None
    changes: list[Change]
    total_steps: int
    steps_looked_at: int
    tokens_per_step: float
    sequences_per_step: float
    micro_batches_per_step: float
    largest_micro_batch: int
    seconds: dict[str, float]
    notes: list[str]

    @property
    def seconds_per_step(self) -> float | None:
        """The whole step, or None where nothing was measured."""
        return sum(self.seconds.values()) if self.seconds else None


class _Limits(msgspec.Struct, frozen=True):
    """What there is: a model, the bytes for it, and the tokens that no smaller micro-batch divides."""

    model: Config
    available: int
    longest: int

    def total(self, work: Workload) -> int:
        estimate = estimate_memory(self.model, work)
        return 0 if estimate is None else estimate.total

    def hold(self, work: Workload) -> bool:
        return self.total(work) <= self.available


def changes_to_fit(model: Config, work: Workload, available: int, *, longest: int) -> list[Change]:
    """What would help, alone and together; `longest`: the tokens that no smaller micro-batch divides."""
    limits = _Limits(model, available, longest)
    changes: list[Change] = []
    together, settings = work, list[str]()
    for offer in (_fewer_tokens, _fewer_rows, _no_thread, _checkpointing, _bfloat16, _no_reference, _offload):
        found = offer(limits, work)
        if found is not None and limits.total(found[1]) < limits.total(work):
            changes.append(_change(limits, [found[0]], found[1]))
        added = offer(limits, together)
        if added is not None and limits.total(added[1]) < limits.total(together):
            together = added[1]
            settings.append(added[0])
    if len(settings) > 1 and not any(change.fits for change in changes):
        changes.append(_change(limits, settings, together))
    return changes


def _change(limits: _Limits, settings: list[str], work: Workload) -> Change:
    return Change(settings=settings, total=limits.total(work), fits=limits.hold(work))


Offer = tuple[str, Workload] | None


def _fewer_tokens(limits: _Limits, work: Workload) -> Offer:
    """The largest half, quarter, … of the micro-batch that fits; where none does, the longest sequence alone."""

    def with_tokens(tokens: int) -> Workload:
        targets = None if work.targets is None else -(-work.targets * tokens // work.tokens)
        return replace(work, tokens=tokens, targets=targets)

    tokens = _halved(work.tokens, limits.longest, lambda size: limits.hold(with_tokens(size)))
    return None if tokens is None else (f"policy.train_micro_batch_tokens={tokens}", with_tokens(tokens))


def _fewer_rows(limits: _Limits, work: Workload) -> Offer:
    load = work.generation
    if load is None:
        return None

    def with_rows(rows: int) -> Workload:
        return replace(work, generation=replace(load, rows=rows, prefill=-(-load.prefill * rows // load.rows)))

    rows = _halved(load.rows, 1, lambda size: limits.hold(with_rows(size)))
    return None if rows is None else (f"policy.generation.max_batch_size={rows}", with_rows(rows))


def _halved(size: int, least: int, fits: Callable[[int], bool]) -> int | None:
    """The first of a half, a quarter, … that fits, not below `least`; None where there is none below `size`."""
    while size > least:
        size = max(least, size // 2)
        if size == least or fits(size):
            return size
    return None


def _no_thread(_: _Limits, work: Workload) -> Offer:
    return ("checkpointing.is_async=false", replace(work, copies=False)) if work.copies else None


def _checkpointing(_: _Limits, work: Workload) -> Offer:
    return None if work.checkpointing else ("policy.activation_checkpointing=true", replace(work, checkpointing=True))


def _bfloat16(_: _Limits, work: Workload) -> Offer:
    if work.precision == "bfloat16":
        return None
    load = work.generation
    generation = None if load is None else replace(load, precision="bfloat16")
    return "policy.precision=bfloat16", replace(work, precision="bfloat16", generation=generation)


def _no_reference(_: _Limits, work: Workload) -> Offer:
    if work.reference != "held":
        return None
    return "loss_fn.reference_policy_kl_penalty=0", replace(work, reference="none")


def _offload(_: _Limits, work: Workload) -> Offer:
    if not work.on_gpu or not work.is_sharded or work.offloads:
        return None
    return "policy.dtensor_cfg.cpu_offload=true", replace(work, offloads=True)
