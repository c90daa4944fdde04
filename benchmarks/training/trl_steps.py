"""TRL as a contestant: `python -m training.trl_steps ALGORITHM VARIANT SETTINGS`.

The trainers run as TRL has them; a callback waits for the word before each step and measures it. Variants: `default`
(what TRL does unasked, but in float32, in the data's order, and with micro-batches of the size asked for) and `tuned`
(no gradient checkpointing; for DPO the reference's log-probabilities computed before training). The fused AdamW and a
vocabulary head for trained tokens alone are TRL's defaults already.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from regimen.tokens.forest import TrainingSequence, build_forest
from regimen.tokens.template import Renderer
from training import data
from training.flops import training_flops
from training.processes import Channel
from training.settings import LEARNING_RATE, MAX_LENGTH, Settings

# Of each step: tokens that are trained, tokens that are computed (padding included), useful operations of the update.
Counts = list[tuple[int, int, float]]


def arguments(settings: Settings, batch_size: int, variant: str, folder: str) -> dict[str, Any]:
    """What all three trainers are told."""
    at_once = rows_at_once(settings, batch_size)
    common: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": batch_size // at_once,
        "max_steps": settings.total_steps,
        "learning_rate": LEARNING_RATE,
        "use_cpu": settings.device == "cpu",
        "bf16": settings.dtype == "bfloat16",
        "model_init_kwargs": {"dtype": "float32"},
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }
    return common if variant == "default" else {**common, "gradient_checkpointing": False}


def rows_at_once(settings: Settings, batch_size: int) -> int:
    """Rows of a micro-batch: the greatest number within what was asked for that cuts the batch into equal parts."""
    most = settings.micro_batch_rows or batch_size
    return next(rows for rows in range(min(most, batch_size), 0, -1) if batch_size % rows == 0)


def sft(settings: Settings, variant: str, folder: str) -> tuple[Any, Counts]:
    """Token ids with labels, as TRL prepares them from conversations."""
    rows = data.conversations(Renderer.load(settings.model), settings.total_steps * settings.conversations)
    table = [{"input_ids": row.ids, "labels": _labels(row)} for row in rows]
    config = SFTConfig(
        **arguments(settings, settings.conversations, variant, folder),
        max_length=MAX_LENGTH,
        train_sampling_strategy="sequential",
    )
    trainer = SFTTrainer(
        model=settings.model, args=config, train_dataset=Dataset.from_list(table), processing_class=_tokenizer(settings)
    )
    lengths = [len(row.ids) for row in rows]
    trained = [sum(stop - start for start, stop in row.spans) for row in rows]
    return trainer, _counts(
        trainer, lengths, trained, settings.conversations, rows_at_once(settings, settings.conversations)
    )


def _labels(row: data.Conversation) -> list[int]:
    labels = [-100] * len(row.ids)
    for start, stop in row.spans:
        labels[start:stop] = row.ids[start:stop]
    return labels


def dpo(settings: Settings, variant: str, folder: str) -> tuple[Any, Counts]:
    """Rendered prompts and completions, which TRL encodes."""
    renderer = Renderer.load(settings.model)
    rows = data.pairs(renderer, settings.total_steps * settings.pairs)
    table = [
        {
            "prompt": renderer.decode(row.prompt),
            "chosen": renderer.decode(row.chosen),
            "rejected": renderer.decode(row.rejected),
        }
        for row in rows
    ]
    config = DPOConfig(
        **arguments(settings, settings.pairs, variant, folder),
        max_length=MAX_LENGTH,
        train_sampling_strategy="sequential",
        precompute_ref_log_probs=variant == "tuned",
    )
    trainer = DPOTrainer(
        model=settings.model, args=config, train_dataset=Dataset.from_list(table), processing_class=_tokenizer(settings)
    )
    encoded = [
        (row["prompt_ids"], row[side]) for row in trainer.train_dataset for side in ("chosen_ids", "rejected_ids")
    ]
    lengths = [len(prompt) + len(completion) for prompt, completion in encoded]
    trained = [len(completion) for _, completion in encoded]
    return trainer, _counts(trainer, lengths, trained, 2 * settings.pairs, 2 * rows_at_once(settings, settings.pairs))


def grpo(settings: Settings, variant: str, folder: str) -> tuple[Any, Counts]:
    """Rendered prompts; completions of full length, so that all contestants train as many tokens."""
    renderer = Renderer.load(settings.model)
    rows = data.prompts(renderer, settings.total_steps * settings.prompts)
    size = settings.prompts * settings.group_size
    config = GRPOConfig(
        **arguments(settings, size, variant, folder),
        num_generations=settings.group_size,
        max_completion_length=settings.new_tokens,
        generation_kwargs={"min_new_tokens": settings.new_tokens},
        temperature=settings.temperature,
        shuffle_dataset=False,
        beta=0.0,
    )
    trainer = GRPOTrainer(
        model=settings.model,
        reward_funcs=_rewards,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": renderer.decode(row)} for row in rows]),
        processing_class=_tokenizer(settings, padding_side="left"),
    )
    lengths = [len(row) + settings.new_tokens for row in rows for _ in range(settings.group_size)]
    return trainer, _counts(trainer, lengths, [settings.new_tokens] * len(lengths), size, size)


def _rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [data.reward(ids) for ids in completion_ids]


def _tokenizer(settings: Settings, **options: Any) -> Any:
    return AutoTokenizer.from_pretrained(settings.model, **options)


def _counts(trainer: Any, lengths: list[int], trained: list[int], size: int, padded: int) -> Counts:
    """Of each step of `size` rows; `padded` rows have one length."""
    counts: Counts = []
    for start in range(0, len(lengths), size):
        part, targets = lengths[start : start + size], trained[start : start + size]
        rows = [TrainingSequence([0] * n, [(n - m, n)]) for n, m in zip(part, targets, strict=True)]
        flops = training_flops(trainer.model.config, build_forest(rows, share=False))
        computed = sum(padded * max(part[row : row + padded]) for row in range(0, size, padded))
        counts.append((sum(targets), computed, flops))
    return counts


class _Timed(TrainerCallback):
    """Waits for the word before a step and reports it once its loss is logged."""

    def __init__(self, channel: Channel, counts: Counts) -> None:
        self.channel, self.counts = channel, counts
        self.began = self.seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.channel.wait()
        self.began = self.channel.now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = self.channel.now() - self.began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        if not logs or "loss" not in logs:
            return
        trained, computed, flops = self.counts[state.global_step - 1]
        length = logs.get("completions/mean_length")
        if length is not None:
            trained = round(float(length) * rows_of(args))
        # A GRPO step of TRL tells nothing of how long its generation took, so its update has no rate.
        rate = {} if length is not None else {"update_flops": flops, "update_seconds": self.seconds}
        self.channel.send(
            seconds=self.seconds, loss=float(logs["loss"]), trained_tokens=trained, computed_tokens=computed, **rate
        )


def rows_of(args: Any) -> int:
    """Sequences of one step."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps)


TRAINERS: dict[str, Callable[[Settings, str, str], tuple[Any, Counts]]] = {"sft": sft, "dpo": dpo, "grpo": grpo}


def main() -> None:
    """Take the steps that the benchmark asks for."""
    algorithm, variant, text = sys.argv[1:]
    settings = Settings.parse(text)
    channel = Channel(settings.device)
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        trainer, counts = TRAINERS[algorithm](settings, variant, folder)
        trainer.add_callback(_Timed(channel, counts))
        trainer.train()
    channel.finish()


if __name__ == "__main__":
    main()
