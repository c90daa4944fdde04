"""Training: one loop for SFT, DPO and GRPO, from a configuration to a run folder.

In: a `TrainConfig`. Out: a `TrainResult` and the folder described in `regimen.pipelines.run`.
Each step: a batch from its source, log-probabilities of the reference where the loss reads them, micro-batches as
forests, one optimiser step, metrics; validation and checkpoints when they are due. Everything random is a function of
seed and step, so a run that was killed continues to the same result. A loss that is not finite, counts that do not
balance and a stage that hangs stop the run; what is needed to find out why is in the folder's `failures/`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from regimen.algorithms.base import Algorithm
from regimen.config.load import dump
from regimen.config.schema import TrainConfig
from regimen.errors import ConfigError, NonFiniteError, RunError
from regimen.pipelines.batch import Batch, with_previous, with_reference
from regimen.pipelines.guards import (
    WITHOUT_VARIANCE,
    check_forests,
    check_weights,
    keep_failed_batch,
    nothing_to_learn,
    steps_without_variance,
)
from regimen.pipelines.prepare import Prepared, logprobs_of, prepare
from regimen.pipelines.processes import joined
from regimen.pipelines.result import TrainResult
from regimen.pipelines.run import (
    INFO_FILE,
    LEDGER_FILE,
    SHARDS_FOLDER,
    STATE_FILE,
    RunFolder,
    StopSignal,
    listening_for_stop,
    publish_model,
    write_text,
)
from regimen.pipelines.run_ledger import RunLedger
from regimen.pipelines.samples import samples_of
from regimen.pipelines.saving import Checkpointer
from regimen.pipelines.show import show_first_batch
from regimen.pipelines.stages import (
    CHECKPOINT,
    DATA,
    GENERATION,
    HAND_OVER,
    REFERENCE,
    TRAINING,
    VALIDATION,
    Stages,
    rates,
)
from regimen.pipelines.trackers import open_run_trackers
from regimen.pipelines.updates import Agreement, step_figures
from regimen.pipelines.watchdog import Watchdog
from regimen.policy.base import LossOutput, StepResult, Supervision
from regimen.policy.checkpoint import load_state
from regimen.policy.randomness import deterministic_kernels, restore_random_state, seed_everything
from regimen.policy.ranks import Ranks
from regimen.tokens.forest import Forest, TrainingSequence
from regimen.tokens.packing import micro_batches
from regimen.tracking.base import TrackerGroup

Progress = Callable[..., None]
# The name under which users know each validation's figure, and ours.
KNOWN_METRIC = {"rows": ("val_loss", "loss"), "pairs": ("val_loss", "loss"), "episodes": ("accuracy", "reward")}


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    allow_changed: bool = False,
    show_batch: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train what `config` says. `show_batch` prints the first batch and trains nothing.

    `allow_changed`: resume although data, model, tokenizer, chat template or configuration differ.
    Raises `UsageError` for a folder in use, `NonFiniteError` for a step that is not finite, `GenerationError` when the
    sampler and the policy disagree, `RunError` for a stage that hangs.
    """
    seed_everything(config.seed)
    with joined(config) as ranks, deterministic_kernels(config.run.deterministic):
        if show_batch:
            show_first_batch(config)
            return TrainResult(Path(config.checkpointing.checkpoint_dir), None, 0, {}, {})
        folder = Path(config.checkpointing.checkpoint_dir)
        run = RunFolder(folder, dump(config), resume=resume, allow_changed=allow_changed)
        prepared = prepare(config, folder, for_training=True)
        run.check_rendering(prepared.renderer.fingerprint, prepared.renderer.template_fingerprint)
        ranks.wait()  # every process has looked at the folder as it was
        if ranks.is_first:
            _open(run, prepared)
        with Watchdog(run.failures(ranks.rank), config.run.stage_timeout) as watchdog:
            try:
                return _Trainer(config, run, prepared, ranks, progress or _silent, watchdog).run_all()
            finally:
                prepared.close()


def _open(run: RunFolder, prepared: Prepared) -> None:
    run.open()
    for change in run.changes:
        print(f"note: changed since the run was begun: {change}", file=sys.stderr, flush=True)
    if prepared.policy.unrolled is not None:
        print(f"note: no prefixes are shared, each sequence is a row: {prepared.policy.unrolled}", file=sys.stderr)
    if prepared.data:
        write_text(run.path / LEDGER_FILE, json.dumps(prepared.data, indent=2) + "\n")


def _silent(*_: object, **__: object) -> None:
    pass


class _Trainer:
    """One run: the loop and what it counts."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        prepared: Prepared,
        ranks: Ranks,
        progress: Progress,
        watchdog: Watchdog,
    ) -> None:
        self.config, self.run, self.prepared, self.ranks = config, run, prepared, ranks
        self.progress = progress if ranks.is_first else _silent
        self.algorithm: Algorithm = prepared.algorithm
        self.policy = prepared.policy
        self.agreement = Agreement(config.policy.precision)
        self.latest: dict[str, float] = {}
        self.ledger = RunLedger(prepared.ledger)
        self.losses: list[float] = []
        self.last_validated = -1
        self.done = run.start_step
        self.tokens_per_second = 0.0
        self.stages = Stages(watchdog, self._show_stage)
        self.saver = Checkpointer(config.checkpointing, run, self.policy, prepared.renderer, ranks)
        if prepared.player is not None:
            prepared.player.on_episode = watchdog.beat

    def run_all(self) -> TrainResult:
        """Every step from where the run stands, then the final model."""
        started = time.monotonic()
        total = self.prepared.source.total_steps
        start = self._restore()
        first = start + 1 if start else 0  # a run without a checkpoint validates at its start again
        tracker = TrackerGroup([])
        if self.ranks.is_first:
            tracker = open_run_trackers(self.config, self.run.path, first if self.run.resume else None)
        step = start
        try:
            with listening_for_stop() as stop:
                if start == 0 and self.config.training.val_at_start:
                    self._validate(0, tracker)
                while step < total and not self._stops(stop):
                    self._step(step, tracker)
                    step += 1
                    self.done = step
                    self._after(step, total, tracker, stopping=self._stops(stop))
                    self.progress(f"train {self.algorithm.name}", step, total, self._note())
                if step > self.saver.saved_step and self.config.checkpointing.enabled:  # stopped while validating
                    self._save(step, with_state=True)
                self.saver.wait()
        finally:
            self.saver.close()
            tracker.close()
            if self.ranks.is_first:
                self.ledger.write(self.run.path)
        model = self._publish(step >= total)
        return TrainResult(
            folder=self.run.path,
            model=model,
            num_steps=step,
            metrics=self.latest,
            ledger=self.ledger.total,
            stopped=step < total,
            seconds=time.monotonic() - started,
            losses=self.losses,
            environments=self.ledger.environments,
        )

    def _show_stage(self, stage: str) -> None:
        note = ", ".join(filter(None, (stage, self._note())))
        self.progress(f"train {self.algorithm.name}", self.done, self.prepared.source.total_steps, note)

    def _stops(self, stop: StopSignal) -> bool:
        """Whether any process was told to stop: all stop after the same step."""
        return any(self.ranks.gather(stop.received))

    def _restore(self) -> int:
        checkpoint = self.run.checkpoint
        if checkpoint is None:
            return 0
        if not (checkpoint / STATE_FILE).is_file():  # only the model is left to publish
            if self.run.start_step < self.prepared.source.total_steps:
                raise self.run.without_state()
            info = json.loads((checkpoint / INFO_FILE).read_text(encoding="utf-8"))
            self.ledger.restore(info)
            self.latest = dict(info["metrics"])
            return self.run.start_step
        state = load_state(checkpoint / STATE_FILE)
        self.policy.load_shards(checkpoint / SHARDS_FOLDER)
        self.policy.load_state(state["policy"])
        self.ledger.restore(state)
        self.latest = dict(state["metrics"])
        self._hand_over(self.run.start_step)
        restore_random_state(state["random"])
        return self.run.start_step

    def _step(self, step: int, tracker: TrackerGroup) -> None:
        self.saver.check()
        self.stages.take()  # what came before, saving and validating, is not the step's
        self.stages.enter(GENERATION if self.prepared.player is not None else DATA)
        batch = self.prepared.source.batch(step)
        self.ledger.add(batch.episodes)
        metrics = {**batch.metrics, **batch.ledger_metrics()}
        if batch.sequences:
            metrics |= self._update(batch, step + 1)
        elif self.algorithm.batches == "episodes":
            metrics["skipped"] = 1.0
        else:
            raise RunError("the batch holds nothing to train", where=f"step {step + 1}", fix="look at --show-batch")
        self._hand_over(step + 1)
        if self.config.grpo is not None:
            metrics[WITHOUT_VARIANCE] = steps_without_variance(metrics, self.latest)
        num_tokens = sum(len(sequence.ids) for sequence in batch.sequences)
        self._log(step + 1, {**metrics, "total_num_tokens": float(num_tokens)}, "train", tracker)
        seconds = self.stages.take()
        speed = rates(num_tokens, seconds)
        self.tokens_per_second = speed["tokens_per_sec_per_gpu"]
        tracker.log(step + 1, speed, "performance")
        tracker.log(step + 1, {**seconds, "total_step_time": sum(seconds.values())}, "timing/train")
        self._check_variance(step + 1)

    def _check_variance(self, step: int) -> None:
        """Stop a run in which there is nothing to learn, with its weights saved."""
        limit = self.config.grpo.max_steps_without_variance if self.config.grpo is not None else None
        if limit is None or self.latest[f"train/{WITHOUT_VARIANCE}"] < limit:
            return
        if self.config.checkpointing.enabled:
            self._save(step, with_state=True)
            self.saver.wait()
        raise nothing_to_learn(limit, step)

    def _update(self, batch: Batch, step: int) -> dict[str, float]:
        """One optimiser step, or several where the batch is divided."""
        sequences, adjusted = self.algorithm.with_logprobs(self._with_logprobs(batch.sequences))
        self.stages.enter(TRAINING)
        updates = batch.divided()
        steps: list[tuple[StepResult, list[Forest]]] = []
        checked: dict[str, float] = {}
        self.agreement.reset()
        if self.algorithm.needs_previous:
            for sequence in sequences:
                self.agreement.add(sequence.previous_logprob - sequence.sampled_logprob)
            checked = self._check(batch)
        for number, update in enumerate(updates, 1):
            rows = [sequences[row] for row in update.rows]
            forests = micro_batches(
                rows,
                self.config.policy.train_token_budget,
                valid_tokens=update.valid_tokens,
                valid_sequences=update.valid_sequences,
                num_shares=self.policy.num_shares,
                padded=self.policy.unrolled is not None,
            )
            check_forests(forests, rows)
            if self.algorithm.batches != "episodes":  # of episodes, those without an advantage are left out
                check_weights(forests, batch)
            # The learning rate's schedule counts steps of the run, as it does where each has one update.
            more = {} if number == len(updates) else {"advance_schedule": False}
            before = None if self.algorithm.needs_previous else lambda: checked.update(self._check(batch))
            try:
                steps.append((self.policy.train_step(forests, self._loss, before_step=before, **more), forests))
            except NonFiniteError as error:
                place = self.run.failures(self.ranks.rank) / f"step_{step}"
                raise keep_failed_batch(error, place, step, self.policy, forests, self.prepared.renderer) from error
        figures = step_figures(steps)
        self.losses.append(figures["loss"])
        return {**figures, **adjusted, **checked}

    def _with_logprobs(self, sequences: list[TrainingSequence]) -> list[TrainingSequence]:
        """The sequences with what the loss compares with, by the policy and the reference as they are now."""
        budget = self.config.policy.logprob_token_budget
        if self.prepared.reference is None and not self.algorithm.needs_previous:
            return sequences
        self.stages.enter(REFERENCE)
        if self.prepared.reference is not None:
            sequences = with_reference(sequences, logprobs_of(self.prepared.reference, sequences, budget))
        if self.algorithm.needs_previous:
            sequences = with_previous(sequences, logprobs_of(self.policy, sequences, budget))
        return sequences

    def _loss(self, logprob: Tensor, batch: Supervision) -> LossOutput:
        self.stages.watchdog.beat()
        if self.algorithm.batches == "episodes" and not self.algorithm.needs_previous:
            self.agreement.add((logprob.detach() - batch.sampled_logprob).cpu().numpy())
        return self.algorithm.loss(logprob, batch)

    def _check(self, batch: Batch) -> dict[str, float]:
        """Whether sampler and policy agree; they need not where the episodes were played with earlier weights."""
        if self.algorithm.batches != "episodes":
            return {}
        self.agreement.pool(self.ranks)
        return self.agreement.figures() if batch.age else self.agreement.check()

    def _hand_over(self, version: int) -> None:
        """Give the generator the weights that the next episodes are played with."""
        if self.prepared.player is not None:
            self.stages.enter(HAND_OVER)
            self.prepared.source.settle()
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
            self.stages.take()
            self.stages.enter(VALIDATION)
            metrics = self.prepared.validation(self.policy, step)
            self._check_metric(metrics)
            known = KNOWN_METRIC[self.algorithm.batches]
            self._log(step, {**metrics, known[0]: metrics[known[1]]}, "validation", tracker)
            tracker.log(step, self.stages.take(), "timing/validation")
            episodes = self.run.path / "rollouts" / f"validation_{step}.jsonl"
            if episodes.is_file():
                tracker.log_samples(step, samples_of(episodes))

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
        shown = [f"{name} {self.latest[key]:.3f}" for name, key in parts if key in self.latest]
        shown += [f"{self.tokens_per_second:.0f} tokens/s"] if self.tokens_per_second else []
        return ", ".join(shown)

    def _save(self, step: int, *, with_state: bool) -> None:
        self.stages.enter(CHECKPOINT)
        info = {
            "metric": self._metric(step),
            "total_steps": self.prepared.source.total_steps,
            **self.ledger.record(),
            "metrics": dict(self.latest),
        }
        self.saver.save(step, info, with_state=with_state)
        self.stages.leave()

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
