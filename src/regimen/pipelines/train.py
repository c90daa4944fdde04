"""Training: one loop for SFT, DPO and GRPO, from a configuration to a run folder.

In: a `TrainConfig`. Out: a `TrainResult` and the folder described in `regimen.pipelines.run`.
Each step: a batch from its source, log-probabilities of the reference where the loss reads them, micro-batches as
forests, one optimiser step, metrics; validation and checkpoints when they are due. Everything random is a function of
seed and step, so a run that was killed continues to the same result.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.algorithms.base import Algorithm
from regimen.config import check_runnable
from regimen.config.load import dump
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError, RunError
from regimen.pipelines.batches import Agreement, Batch, with_reference
from regimen.pipelines.prepare import Prepared, logprobs_of, prepare
from regimen.pipelines.processes import joined, write_together
from regimen.pipelines.run import (
    INFO_FILE,
    SHARDS_FOLDER,
    STATE_FILE,
    RunFolder,
    StopSignal,
    listening_for_stop,
    publish_model,
    write_text,
)
from regimen.pipelines.show import show_first_batch
from regimen.policy.base import LossOutput, StepResult, Supervision
from regimen.policy.checkpoint import load_state, save_state
from regimen.policy.ranks import Ranks
from regimen.tokens.forest import Forest
from regimen.tokens.packing import micro_batches
from regimen.tracking.base import TrackerGroup, open_trackers

Progress = Callable[..., None]


@dataclass(slots=True)
class TrainResult:
    """What a run left: its folder, the model to use, the steps done, the last metrics, the ledger of the whole run."""

    folder: Path
    model: Path | None
    num_steps: int
    metrics: dict[str, float]
    ledger: dict[str, int]
    stopped: bool = False
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        state = "stopped by a signal; continue with --resume" if self.stopped else "done"
        figures = ", ".join(
            f"{name} {self.metrics[name]:.4g}"
            for name in ("train/loss", "train/reward", "validation/loss", "validation/reward")
            if name in self.metrics
        )
        ledger = ", ".join(f"{count} {name}" for name, count in sorted(self.ledger.items()))
        lines = [f"{state}: {self.num_steps} steps in {self.seconds:.0f} s; {figures}", f"rows: {ledger or 'none'}"]
        return "\n".join([*lines, f"model: {self.model}" if self.model else f"folder: {self.folder}"])


def train(
    config: TrainConfig, *, resume: bool = False, show_batch: bool = False, progress: Progress | None = None
) -> TrainResult:
    """Train what `config` says. `show_batch` prints the first batch and trains nothing.

    Raises `UsageError` for a folder in use, `PolicyError` for a step that is not finite, `GenerationError` when the
    sampler and the policy disagree.
    """
    check_runnable(config)
    with joined(config) as ranks:
        return _train(config, ranks, resume, show_batch, progress or _silent)


def _train(config: TrainConfig, ranks: Ranks, resume: bool, show_batch: bool, progress: Progress) -> TrainResult:
    folder = Path(config.checkpointing.checkpoint_dir)
    torch.manual_seed(config.seed)
    if show_batch:
        with tempfile.TemporaryDirectory() as scratch:  # episodes of a look must not replace those of a run
            prepared = prepare(config, Path(scratch), for_training=False)
            try:
                show_first_batch(prepared, config)
            finally:
                prepared.close()
        return TrainResult(folder, None, 0, {}, {})
    run = RunFolder(folder, dump(config), resume=resume)
    prepared = prepare(config, folder, for_training=True)
    ranks.wait()  # every process has looked at the folder as it was
    if ranks.is_first:
        run.open()
    if prepared.data and ranks.is_first:
        write_text(run.path / "ledger.json", json.dumps(prepared.data, indent=2) + "\n")
    trainer = _Trainer(config, run, prepared, ranks, progress if ranks.is_first else _silent)
    try:
        return trainer.run_all()
    finally:
        prepared.close()


def _silent(*_: object, **__: object) -> None:
    pass


class _Trainer:
    """One run: the loop and what it counts."""

    def __init__(
        self, config: TrainConfig, run: RunFolder, prepared: Prepared, ranks: Ranks, progress: Progress
    ) -> None:
        self.config, self.run, self.prepared, self.ranks, self.progress = config, run, prepared, ranks, progress
        self.algorithm: Algorithm = prepared.algorithm
        self.policy = prepared.policy
        self.agreement = Agreement(config.policy.precision)
        self.latest: dict[str, float] = {}
        self.ledger: Counter[str] = Counter(prepared.ledger)
        self.losses: list[float] = []
        self.saved_step = run.start_step
        self.last_validated = -1

    def run_all(self) -> TrainResult:
        """Every step from where the run stands, then the final model."""
        started = time.monotonic()
        total = self.prepared.source.total_steps
        start = self._restore()
        names = ["tensorboard"] if self.config.logger.tensorboard_enabled else []
        log_folder = Path(self.config.logger.log_dir or self.run.path)
        first = start + 1 if start else 0  # a run without a checkpoint validates at its start again
        tracker = TrackerGroup([])
        if self.ranks.is_first:
            tracker = open_trackers(log_folder, names, resume_step=first if self.run.resume else None)
        step = start
        try:
            with listening_for_stop() as stop:
                if start == 0 and self.config.training.val_at_start:
                    self._validate(0, tracker)
                while step < total and not self._stops(stop):
                    self._step(step, tracker)
                    step += 1
                    self._after(step, total, tracker, stopping=self._stops(stop))
                    self.progress(f"train {self.algorithm.name}", step, total, self._note())
                if step > self.saved_step and self.config.checkpointing.enabled:  # stopped while validating
                    self._save(step, with_state=True)
        finally:
            tracker.close()
        model = self._publish(step == total)
        return TrainResult(
            folder=self.run.path,
            model=model,
            num_steps=step,
            metrics=self.latest,
            ledger=dict(self.ledger),
            stopped=step < total,
            seconds=time.monotonic() - started,
            losses=self.losses,
        )

    def _stops(self, stop: StopSignal) -> bool:
        """Whether any process was told to stop: all stop after the same step."""
        return any(self.ranks.gather(stop.received))

    def _restore(self) -> int:
        checkpoint = self.run.checkpoint
        if checkpoint is None:
            return 0
        if self.run.is_finished and not (checkpoint / STATE_FILE).is_file():  # only the model is left to publish
            info = json.loads((checkpoint / INFO_FILE).read_text(encoding="utf-8"))
            self.ledger, self.latest = Counter(info["ledger"]), dict(info["metrics"])
            return self.run.start_step
        state = load_state(checkpoint / STATE_FILE)
        self.policy.load_shards(checkpoint / SHARDS_FOLDER)
        self.policy.load_state(state["policy"])
        self.ledger = Counter(state["ledger"])
        self.latest = dict(state["metrics"])
        self._hand_over(self.run.start_step)
        return self.run.start_step

    def _step(self, step: int, tracker: TrackerGroup) -> None:
        began = time.monotonic()
        batch = self.prepared.source.batch(step)
        generated = time.monotonic()
        self.ledger.update(batch.ledger)
        metrics = {**batch.metrics, **{f"episodes/{name}": float(n) for name, n in batch.ledger.items()}}
        if batch.sequences:
            metrics |= self._update(batch)
            self._hand_over(step + 1)
        else:
            metrics["skipped"] = 1.0
        self._log(step + 1, metrics, "train", tracker)
        ended = time.monotonic()
        timing = {"total": ended - began, "batch": generated - began, "update": ended - generated}
        tracker.log(step + 1, timing, "timing/train")

    def _update(self, batch: Batch) -> dict[str, float]:
        sequences = batch.sequences
        if self.prepared.reference is not None:
            values = logprobs_of(self.prepared.reference, sequences, self.config.policy.logprob_token_budget)
            sequences = with_reference(sequences, values)
        forests = micro_batches(
            sequences,
            self.config.policy.train_token_budget,
            valid_tokens=batch.valid_tokens,
            valid_sequences=batch.valid_sequences,
            num_shares=self.policy.num_shares,
        )
        self.agreement.reset()
        checked: dict[str, float] = {}
        result = self.policy.train_step(forests, self._loss, before_step=lambda: checked.update(self._check()))
        self.losses.append(result.loss)
        return {**_figures(result, forests), **checked}

    def _loss(self, logprob: Tensor, batch: Supervision) -> LossOutput:
        if self.algorithm.batches == "episodes":
            self.agreement.add((logprob.detach() - batch.sampled_logprob).cpu().numpy())
        return self.algorithm.loss(logprob, batch)

    def _check(self) -> dict[str, float]:
        if self.algorithm.batches != "episodes":
            return {}
        self.agreement.pool(self.ranks)
        return self.agreement.check()

    def _hand_over(self, version: int) -> None:
        """Give the generator the weights that the next episodes are played with."""
        if self.prepared.player is not None:
            self.prepared.player.update(version, self.policy.named_tensors())

    def _after(self, step: int, total: int, tracker: TrackerGroup, *, stopping: bool) -> None:
        training = self.config.training
        due = training.val_period > 0 and step % training.val_period == 0
        if self.config.grpo is not None:
            due = due and step >= self.config.grpo.val_start_at
        if due or (step == total and training.val_at_end):
            self._validate(step, tracker)
        period = self.config.checkpointing.save_period
        if self.config.checkpointing.enabled and (step % period == 0 or step == total or stopping):
            self._save(step, with_state=self.config.checkpointing.save_optimizer or stopping)

    def _validate(self, step: int, tracker: TrackerGroup) -> None:
        if self.prepared.validation is not None and step != self.last_validated:
            self.last_validated = step
            metrics = self.prepared.validation(self.policy, step)
            self._check_metric(metrics)
            self._log(step, metrics, "validation", tracker)

    def _check_metric(self, metrics: dict[str, float]) -> None:
        """Checkpoints cannot be ranked by what validation does not measure."""
        wanted = self.config.checkpoint_metric
        if self.config.checkpointing.enabled and wanted and wanted[0] == "val" and wanted[1] not in metrics:
            raise ConfigError(
                f"validation gives no {wanted[1]!r}",
                where="checkpointing.metric_name",
                expected=f"one of {', '.join(f'val:{name}' for name in metrics)}",
            )

    def _log(self, step: int, metrics: dict[str, float], prefix: str, tracker: TrackerGroup) -> None:
        tracker.log(step, metrics, prefix)
        self.latest.update({f"{prefix}/{name}": float(value) for name, value in metrics.items()})

    def _note(self) -> str:
        parts = [("loss", "train/loss"), ("reward", "train/reward"), ("validation reward", "validation/reward")]
        return ", ".join(f"{name} {self.latest[key]:.3f}" for name, key in parts if key in self.latest)

    def _save(self, step: int, *, with_state: bool) -> None:
        settings = self.config.checkpointing
        metric = self._metric(step)
        state: dict[str, Any] = {"ledger": dict(self.ledger), "metrics": self.latest}

        def write(folder: Path) -> None:
            self.policy.save(folder)
            if with_state:
                self.policy.save_shards(folder / SHARDS_FOLDER)
            if self.ranks.is_first:
                self.prepared.renderer.save(folder)
                if with_state:
                    save_state({"policy": self.policy.state(), **state}, folder / STATE_FILE)

        self.saved_step = step
        if not self.ranks.is_first:
            write_together(write, self.run.unfinished(step), self.ranks)
            return
        self.run.save(
            step,
            lambda folder: write_together(write, folder, self.ranks),
            {"metric": metric, "total_steps": self.prepared.source.total_steps, **state},
            keep=settings.keep_top_k,
            higher_is_better=settings.higher_is_better,
        )

    def _metric(self, step: int) -> float | None:
        """What ranks the checkpoint of `step`: a figure of validation only where that was of this very step."""
        wanted = self.config.checkpoint_metric
        if wanted is None:
            return None
        if wanted[0] != "val":
            return self.latest.get(f"{wanted[0]}/{wanted[1]}")
        return self.latest.get(f"validation/{wanted[1]}") if self.last_validated == step else None

    def _publish(self, finished: bool) -> Path | None:
        if not finished or not self.config.checkpointing.enabled or not self.ranks.is_first:
            return None
        best = self.run.best(higher_is_better=self.config.checkpointing.higher_is_better)
        if best is None:
            raise RunError("no checkpoint was written", where=str(self.run.path))
        model = self.run.path / "model"
        publish_model(best, model)
        return model


def _figures(result: StepResult, forests: list[Forest]) -> dict[str, float]:
    """A step's figures: the loss's own, and how many tokens sharing prefixes saved."""
    unrolled = sum(int(np.sum(forest.depth[_last_targets(forest)] + 1)) for forest in forests)
    # The loss's own figures are means over all valid tokens; those of inert episodes were not computed.
    computed = sum(float(forest.weight.sum()) for forest in forests)
    share = computed / forests[0].valid_tokens
    return {
        **{name: value / share for name, value in result.metrics.items()},
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "lr": result.learning_rate,
        "computed_tokens": float(result.computed_tokens),
        "tokens_without_sharing": float(unrolled),
        "micro_batches": float(len(forests)),
    }


def _last_targets(forest: Forest) -> np.ndarray:
    """The last token of each sequence."""
    ends = np.flatnonzero(np.append(np.diff(forest.sequence) > 0, True)) if len(forest.sequence) else []
    return forest.target[ends]
