"""A whole training configuration, looked at before any GPU time: data, tokenizer, lengths, batches, memory.

In: a `TrainConfig`. Out: a `Checkup`. One pass over each data file, one row in memory at a time; no model is loaded.
What would stop a run (a missing file, a broken row, no tokenizer) is a finding, so that the rest is looked at too.
Refuses, as training does, a configuration that this build cannot run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from regimen.config.schema import TrainConfig
from regimen.config.schema_data import DatasetConfig
from regimen.convert.sidecar import EpisodeRecord, PairRecord
from regimen.diagnosis.batches import Schedule, batch_findings, plan_batches
from regimen.diagnosis.codes import ORDER
from regimen.diagnosis.findings import Finding, finding, in_order
from regimen.diagnosis.leaks import answers_of, holds_truth
from regimen.diagnosis.memory import GIGABYTE, MemoryEstimate, estimate_memory
from regimen.diagnosis.thresholds import DEFAULT_THRESHOLDS, Thresholds
from regimen.diagnosis.tokens import TokenDiagnosis, TokenRow
from regimen.diagnosis.training import TrainingDiagnosis, TrainingRow
from regimen.errors import ConfigError, RegimenError
from regimen.gym.environment import Split, Task
from regimen.pipelines.datasets import has_no_rows, pair_messages, rows_of, sft_messages
from regimen.pipelines.models import check_positions, config_of, load_renderer, resolve_model
from regimen.pipelines.tasks import tasks_to_play
from regimen.pipelines.workload import num_processes, workload_of
from regimen.rollouts.messages import chat_tools, input_messages
from regimen.rollouts.records import Source
from regimen.tokens.template import Renderer

SPLITS: tuple[Split, ...] = ("train", "validation")
LEAVES_OUT = ("over_length", "nothing_to_train")  # codes of rows that training goes on without


class SplitReport(msgspec.Struct, frozen=True, kw_only=True):
    """One data set: `usable` rows can be trained on; `longest` is in tokens, 0 without a tokenizer."""

    source: str
    rows: int
    usable: int
    longest: int


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything `regimen doctor` shows; `ok` when no finding is an error. `memory` is an estimate, in bytes."""

    version: int = 1
    algorithm: str
    ok: bool
    notes: list[str]
    data: dict[str, SplitReport]
    schedule: Schedule | None
    memory: MemoryEstimate | None
    findings: list[Finding]


class _Split:
    """What is gathered about one data set."""

    def __init__(self, name: Split, entry: DatasetConfig, renderer: Renderer | None, max_length: int) -> None:
        self.name, self.entry = name, entry
        self.rows, self.tokens = TrainingDiagnosis(), TokenDiagnosis(renderer, max_length)
        self.usable = 0
        self.findings: list[Finding] = []

    def read(self, rows: Iterator[TrainingRow], failure: str) -> None:
        """Take every row; what ends the reading becomes a finding with the code `failure`."""
        try:
            for row in rows:
                self.rows.add(row)
                fitting = sum(map(self.tokens.add, row.conversations))  # every side is looked at
                self.usable += fitting == len(row.conversations)
        except (RegimenError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            self.findings.append(_stopped(failure, self.name, error))
        else:
            if not self.rows.num_rows:
                self.findings.append(finding("data_unreadable", 0, f"data.{self.name} holds no rows"))

    def finish(self) -> list[Finding]:
        """Everything found in this data set; what leaves rows out is an error where it leaves none."""
        found = [*self.findings, *self.rows.finish(), *self.tokens.finish()]
        if self.usable or not self.rows.num_rows:
            return found
        return [
            msgspec.structs.replace(problem, severity="error") if problem.code in LEAVES_OUT else problem
            for problem in found
        ]

    def report(self) -> SplitReport:
        """Its figures."""
        source = self.entry.data_path or f"environment {self.entry.env_name}"
        return SplitReport(source=source, rows=self.rows.num_rows, usable=self.usable, longest=self.tokens.longest)


def doctor(
    config: TrainConfig, *, device_memory: float | None = None, thresholds: Thresholds = DEFAULT_THRESHOLDS
) -> Checkup:
    """Look at everything a run would need; `device_memory` (in GB) is what the estimate is held against."""
    findings: list[Finding] = []
    renderer = _renderer(config, findings)
    splits: dict[str, _Split] = {}
    for name in SPLITS:
        entry: DatasetConfig | None = getattr(config.data, name)
        if entry is None or (name == "validation" and has_no_rows(entry)):  # without which training goes on, too
            continue
        splits[name] = _read(config, name, entry, renderer)
        findings += splits[name].finish()
    if len(splits) == len(SPLITS):
        findings += splits["validation"].rows.shared_with(splits["train"].rows)
    findings += _size_findings(config, splits, thresholds)
    schedule = _schedule(config, splits["train"].usable) if splits["train"].usable else None
    if schedule is not None:
        findings += batch_findings(schedule, drops=config.grpo is not None)
    memory = _memory(config, device_memory, findings)
    ordered = in_order(_merged(findings))
    return Checkup(
        algorithm=config.algorithm,
        ok=all(found.severity != "error" for found in ordered),
        notes=config.notes,
        data={name: split.report() for name, split in splits.items()},
        schedule=schedule,
        memory=memory,
        findings=ordered,
    )


def _renderer(config: TrainConfig, findings: list[Finding]) -> Renderer | None:
    policy = config.policy
    try:
        check_positions(policy)
    except ConfigError as error:
        findings.append(finding("length_over_positions", 1, str(error)))
    except RegimenError:
        pass  # the tokenizer below says it
    try:
        return load_renderer(policy)
    except (RegimenError, ImportError) as error:
        findings.append(finding("tokenizer_unusable", 1, _one_line(error)))
        return None


def _read(config: TrainConfig, name: Split, entry: DatasetConfig, renderer: Renderer | None) -> _Split:
    split = _Split(name, entry, renderer, config.policy.max_total_sequence_length)
    if config.grpo is not None:
        failure = "environment_unusable" if entry.dataset_name == "Environment" else "data_unreadable"
        split.read(_tasks(config, name, entry), failure)
        return split
    path = Path(entry.data_path or "")
    if not path.is_file():
        split.findings.append(finding("data_unreadable", 0, f"data.{name}: there is no file {path}"))
        return split
    rows = _pairs(path, entry) if config.dpo is not None else _conversations(path, entry)
    split.read(rows, "data_unreadable")
    return split


def _conversations(path: Path, entry: DatasetConfig) -> Iterator[TrainingRow]:
    for number, row, record in rows_of(path, EpisodeRecord):
        messages, tools = sft_messages(row, entry, f"{path}:{number}")
        source = Source(str(path), number)
        first = 0 if record is None else record.num_prompt_messages
        conversation = TokenRow(
            source=source, messages=messages, tools=tools, first_trained=first, recorded=_recorded(record)
        )
        yield TrainingRow(
            source=source,
            conversations=[conversation],
            prompt=messages[:first] if record is not None else messages,
            task=_task(record),
        )


def _pairs(path: Path, entry: DatasetConfig) -> Iterator[TrainingRow]:
    for number, row, record in rows_of(path, PairRecord):
        context, sides, tools = pair_messages(row, entry, f"{path}:{number}")
        source = Source(str(path), number)
        records = (None, None) if record is None else (record.chosen, record.rejected)
        conversations = [
            TokenRow(
                source=source,
                messages=[*context, *side],
                tools=tools,
                first_trained=len(context),
                recorded=_recorded(side_record),
            )
            for side, side_record in zip(sides, records, strict=True)
        ]
        yield TrainingRow(source=source, conversations=conversations, prompt=context, task=_task(records[0]))


def _recorded(record: EpisodeRecord | None) -> list[Any]:
    return [] if record is None else record.sequences


def _task(record: EpisodeRecord | None) -> str | None:
    """A task is named within the file that its rollouts were read from."""
    return None if record is None else f"{record.source.path}\0{record.task_id}"


def _tasks(config: TrainConfig, name: Split, entry: DatasetConfig) -> Iterator[TrainingRow]:
    for number, task in enumerate(tasks_to_play(config, entry, name)[1], 1):
        yield _task_row(task, Source(entry.data_path or f"{entry.env_name} {name}", number), entry)


def _task_row(task: Task, source: Source, entry: DatasetConfig) -> TrainingRow:
    params = task.row["responses_create_params"]
    prompt, tools = input_messages(params), chat_tools(params)
    conversation = TokenRow(source=source, messages=prompt, tools=tools, first_trained=len(prompt), is_prompt=True)
    answers: list[object] | None = answers_of(task.row, {}, params)
    if not answers and (entry.dataset_name in ("Environment", "Mixture") or holds_truth(task.row)):
        answers = None  # judged by something else than a named answer
    return TrainingRow(source=source, conversations=[conversation], prompt=prompt, answers=answers)


def _size_findings(config: TrainConfig, splits: dict[str, _Split], limits: Thresholds) -> list[Finding]:
    rows = splits["train"].rows.num_rows
    if config.sft is None or not 0 < rows < limits.sft_rows:
        return []
    message = f"{rows} training rows; SFT wants at least {limits.sft_rows}, better 1,000"
    return [finding("few_rows_for_sft", rows, message)]


def _schedule(config: TrainConfig, size: int) -> Schedule:
    training = config.training
    batch = config.global_batch_size if config.grpo is None else config.grpo.num_prompts_per_step
    unit = {"sft": "rows", "dpo": "pairs", "grpo": "tasks"}[config.algorithm]
    return plan_batches(
        unit, size, batch, training.max_num_epochs, training.max_num_steps, drops=config.grpo is not None
    )


def _memory(config: TrainConfig, device_memory: float | None, findings: list[Finding]) -> MemoryEstimate | None:
    policy = config.policy
    try:
        model = config_of(resolve_model(policy.model_name), policy.trust_remote_code)
    except (RegimenError, ImportError):
        return None
    work = workload_of(config, processes=num_processes(config), on_gpu=device_memory is not None)
    estimate = estimate_memory(model, work)
    if estimate is not None and device_memory is not None and estimate.total > device_memory * GIGABYTE:
        message = f"about {estimate.total / GIGABYTE:.1f} GB are needed, {device_memory:g} GB are there (an estimate)"
        findings.append(finding("memory_exceeded", 1, message))
    return estimate


def _merged(findings: list[Finding]) -> list[Finding]:
    """One finding per code: those of both data sets count together, at the graver severity, with one example."""
    merged: dict[str, Finding] = {}
    for found in findings:
        first = merged.get(found.code)
        if first is None:
            merged[found.code] = found
            continue
        merged[found.code] = msgspec.structs.replace(
            first,
            severity=min(first.severity, found.severity, key=ORDER.index),
            count=first.count + found.count,
            message=f"{first.message}; and {found.message}",
        )
    return list(merged.values())


def _stopped(code: str, name: str, error: Exception) -> Finding:
    if isinstance(error, RegimenError):
        return finding(code, 1, f"data.{name}: {_one_line(error)}")
    return finding(code, 1, f"data.{name}: a row has another shape than its data set: {type(error).__name__} {error}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
