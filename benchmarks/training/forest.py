"""What sharing a prefix saves by itself, what length costs, and the machine's best rate.

    python -m training.forest PART SETTINGS

A group of completions of one prompt, forward and backward, in three layouts that compute the same gradient: `forest`
(the prompt once), `packed` (the same code, every sequence a tree of its own) and `padded` (transformers with SDPA on
rows of equal length). The head is computed for the trained tokens alone in all three. The cost of length: forward and
backward of one sequence whose last quarter is trained. PART is `ceiling` for the rate alone, or `forest`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.models import load_model
from regimen.policy.base import LossOutput, Supervision
from regimen.policy.local import LocalPolicy
from regimen.policy.logprobs import selected_logprobs
from regimen.tokens.forest import TrainingSequence
from regimen.tokens.packing import micro_batches
from training.flops import matmul_ceiling, num_parameters, training_flops
from training.processes import Channel
from training.regimen_steps import load_policy
from training.settings import Settings

RATIOS = (0.25, 1.0, 4.0)
GROUPS = (4, 8, 16)
LAYOUTS = ("forest", "packed", "padded")
SHORTEST = 128  # of the cost curve, which doubles from there


@dataclass(frozen=True, slots=True)
class Case:
    """A group: prompt length in multiples of the mean completion, and how many completions."""

    ratio: float
    group: int

    def sequences(self, settings: Settings, vocabulary: int) -> list[TrainingSequence]:
        """Random ids; completions of half to one and a half times the mean length."""
        random = np.random.default_rng([self.group, round(100 * self.ratio)])
        mean = settings.forest_completion
        prompt = random.integers(2, vocabulary, max(1, round(self.ratio * mean))).tolist()
        lengths = np.linspace(0.5 * mean, 1.5 * mean, self.group).round().astype(int).tolist()
        rows = [[*prompt, *random.integers(2, vocabulary, length).tolist()] for length in lengths]
        return [TrainingSequence(ids=ids, spans=[(len(prompt), len(ids))]) for ids in rows]


class _GradientsReadyError(Exception):
    """Ends a training step before the optimiser's part."""


def _stop() -> None:
    raise _GradientsReadyError


def _mean_loss(logprob: Tensor, batch: Supervision) -> LossOutput:
    loss = -logprob.sum() / batch.valid_tokens
    return LossOutput(loss, {})


def with_policy(policy: LocalPolicy, sequences: list[TrainingSequence], *, share: bool) -> tuple[int, float]:
    """Computed tokens and seconds of forward, backward and gradient norm, which waits for the device."""
    forests = micro_batches(sequences, sum(len(sequence.ids) for sequence in sequences), share=share)
    began = time.perf_counter()
    with contextlib.suppress(_GradientsReadyError):
        policy.train_step(forests, _mean_loss, before_step=_stop)
    return sum(forest.num_tokens for forest in forests), time.perf_counter() - began


def curve(policy: LocalPolicy, settings: Settings) -> list[dict[str, float]]:
    """The cost of one sequence by its length: the faster of two steps each, behind one to warm up."""
    rows: list[dict[str, float]] = []
    random = np.random.default_rng(0)
    length = SHORTEST
    while length <= settings.longest:
        ids = random.integers(2, int(policy.model.config.vocab_size), length)  # type: ignore[union-attr]
        sequence = TrainingSequence(ids=ids, spans=[(length - length // 4, length)])
        (forest,) = micro_batches([sequence], length)
        if not rows:
            with_policy(policy, [sequence], share=True)
        seconds = min(with_policy(policy, [sequence], share=True)[1] for _ in range(2))
        rate = training_flops(policy.model.config, forest) / seconds
        rows.append({"tokens": length, "seconds": seconds, "flops_per_second": rate})
        length *= 2
    return rows


def with_padding(model: Any, sequences: list[TrainingSequence], dtype: torch.dtype) -> tuple[int, float]:
    """The same with rows padded on the right and transformers' own attention."""
    length = max(len(sequence.ids) for sequence in sequences)
    device = next(model.parameters()).device
    ids = torch.zeros(len(sequences), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    rows, columns = [], []
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
        positions = sequence.trained_positions()
        rows.append(np.full(len(positions), row))
        columns.append(positions)
    row, column = (
        torch.from_numpy(np.concatenate(rows)).to(device),
        torch.from_numpy(np.concatenate(columns)).to(device),
    )
    ids, mask = ids.to(device), mask.to(device)
    began = time.perf_counter()
    model.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    head = model.get_output_embeddings().weight.to(dtype)
    logprob = selected_logprobs(hidden[row, column - 1].to(dtype), head, None, ids[row, column])
    (-logprob.mean()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    return ids.numel(), time.perf_counter() - began


def compare(policy: LocalPolicy, settings: Settings) -> list[dict[str, Any]]:
    """Every case in every layout, the layouts taking turns."""
    plain = load_model(settings.model, torch.float32).to(settings.device)
    plain.train()
    cases = {Case(ratio, group): {name: [] for name in LAYOUTS} for ratio in RATIOS for group in GROUPS}

    def measure(layout: str, sequences: list[TrainingSequence]) -> tuple[int, float]:
        if layout == "padded":
            return with_padding(plain, sequences, getattr(torch, settings.dtype))
        return with_policy(policy, sequences, share=layout == "forest")

    vocabulary = int(policy.model.config.vocab_size)  # type: ignore[union-attr]
    for layout in LAYOUTS:  # warm-up
        measure(layout, next(iter(cases)).sequences(settings, vocabulary))
    for turn in range(settings.forest_rounds):
        for case, found in cases.items():
            for layout in LAYOUTS if turn % 2 == 0 else LAYOUTS[::-1]:
                found[layout].append(measure(layout, case.sequences(settings, vocabulary)))
    return [_row(case, found) for case, found in cases.items()]


def _row(case: Case, found: dict[str, list[tuple[int, float]]]) -> dict[str, Any]:
    return {
        "ratio": case.ratio,
        "group": case.group,
        "tokens": {name: values[0][0] for name, values in found.items()},
        "seconds": {name: float(np.median([seconds for _, seconds in values])) for name, values in found.items()},
    }


def ceiling(settings: Settings) -> dict[str, float]:
    """Best matrix-product rates: a large square, and a batch of tokens through the model's feed-forward."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(settings.model)
    kind = {"dtype": settings.dtype, "device": settings.device}
    return {
        "square": matmul_ceiling(4096, 4096, 4096, **kind),
        "feed_forward": matmul_ceiling(1024, config.hidden_size, config.intermediate_size, **kind),
    }


def main() -> None:
    """Measure and report once."""
    part, text = sys.argv[1:]
    settings = Settings.parse(text)
    channel = Channel(settings.device)
    torch.set_num_threads(settings.threads)
    if part == "ceiling":
        channel.send(ceiling=ceiling(settings), parameters=num_parameters(settings.model))
        return
    policy = load_policy(settings)
    channel.send(forest=compare(policy, settings), curve=curve(policy, settings))


if __name__ == "__main__":
    main()
