"""What to change when training does not fit: settings, and the memory that each of them would leave needed.

In: a model's config.json, the work of one process, the bytes there are for it. Out: `Change`s, the cheapest in time
first, at the end all of them together where none is enough. Nothing is suggested that saves nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from regimen.diagnosis.memory import Workload, estimate_memory
from regimen.diagnosis.shapes import Config

replace = msgspec.structs.replace


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """Overrides for the command line, the bytes that a process then needs, and whether those are there."""

    settings: list[str]
    total: int
    fits: bool


def changes_to_fit(model: Config, work: Workload, available: int, *, longest: int) -> list[Change]:
    """What would help, alone and together; `longest`: the tokens that no smaller micro-batch divides."""
    before = _total(model, work)
    changes: list[Change] = []
    together, settings = work, list[str]()
    for offer in (_fewer_tokens, _fewer_rows, _no_thread, _checkpointing, _bfloat16, _no_reference, _offload):
        found = offer(model, work, available, longest)
        if found is None:
            continue
        setting, changed = found
        total = _total(model, changed)
        if total >= before:
            continue
        changes.append(Change(settings=[setting], total=total, fits=total <= available))
        combined = offer(model, together, available, longest)
        if combined is not None:
            settings, together = [*settings, combined[0]], combined[1]
    if len(settings) > 1 and not any(change.fits for change in changes):
        total = _total(model, together)
        changes.append(Change(settings=settings, total=total, fits=total <= available))
    return changes


def _total(model: Config, work: Workload) -> int:
    estimate = estimate_memory(model, work)
    return 0 if estimate is None else estimate.total


Offer = tuple[str, Workload] | None


def _fewer_tokens(model: Config, work: Workload, available: int, longest: int) -> Offer:
    """The largest half, quarter, … of the micro-batch that fits; where none does, the longest sequence alone."""

    def with_tokens(tokens: int) -> Workload:
        targets = None if work.targets is None else -(-work.targets * tokens // work.tokens)
        return replace(work, tokens=tokens, targets=targets)

    tokens = _halved(work.tokens, longest, lambda size: _total(model, with_tokens(size)) <= available)
    return None if tokens is None else (f"policy.train_micro_batch_tokens={tokens}", with_tokens(tokens))


def _fewer_rows(model: Config, work: Workload, available: int, longest: int) -> Offer:
    load = work.generation
    if load is None:
        return None

    def with_rows(rows: int) -> Workload:
        return replace(work, generation=replace(load, rows=rows, prefill=-(-load.prefill * rows // load.rows)))

    rows = _halved(load.rows, 1, lambda size: _total(model, with_rows(size)) <= available)
    return None if rows is None else (f"policy.generation.max_batch_size={rows}", with_rows(rows))


def _halved(size: int, least: int, fits: Callable[[int], bool]) -> int | None:
    """The first of a half, a quarter, … that fits, not below `least`; None where there is none below `size`."""
    while size > least:
        size = max(least, size // 2)
        if size == least or fits(size):
            return size
    return None


def _no_thread(_: Config, work: Workload, __: int, ___: int) -> Offer:
    return ("checkpointing.is_async=false", replace(work, copies=False)) if work.copies else None


def _checkpointing(_: Config, work: Workload, __: int, ___: int) -> Offer:
    if work.checkpointing:
        return None
    return "policy.activation_checkpointing=true", replace(work, checkpointing=True)


def _bfloat16(_: Config, work: Workload, __: int, ___: int) -> Offer:
    if work.precision == "bfloat16":
        return None
    load = work.generation
    generation = None if load is None else replace(load, precision="bfloat16")
    return "policy.precision=bfloat16", replace(work, precision="bfloat16", generation=generation)


def _no_reference(_: Config, work: Workload, __: int, ___: int) -> Offer:
    if work.reference != "held":
        return None
    return "loss_fn.reference_policy_kl_penalty=0", replace(work, reference="none")


def _offload(_: Config, work: Workload, __: int, ___: int) -> Offer:
    if not work.on_gpu or not work.is_sharded or work.offloads:
        return None
    return "policy.dtensor_cfg.cpu_offload=true", replace(work, offloads=True)
