"""Rollout files to a folder of training rows: read, decide, split by task, write, balance.

In: rollout files, a target (sft, dpo or grpo) and `ConvertOptions`.
Out: a folder with train.jsonl and val.jsonl, a sidecar beside each, quarantine.jsonl where rows were unreadable, and
manifest.json; and the `Manifest`. The folder appears whole or not at all.
Refuses: a folder in use, options without a meaning for the target, an input that leaves nothing to train on
(`ConvertError` with what would), and a ledger that does not balance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec

from regimen.convert import dpo, grpo, sft
from regimen.convert.balance import MixCount, TaskRows, mixed_tasks
from regimen.convert.episodes import RowKey, episode_of, num_sampled_ids
from regimen.convert.folder import folder_written_whole
from regimen.convert.ledger import FAILED, Ledger
from regimen.convert.manifest import (
    Counts,
    InputFile,
    Manifest,
    OutputFile,
    count_fingerprints,
    input_file,
    now,
    output_file,
    rewards_of,
    tool_version,
    write_manifest,
)
from regimen.convert.options import FORMATS, ConvertOptions, check_for_target, with_reasoning
from regimen.convert.screen import Screen
from regimen.convert.sidecar import Example, TaskRecord
from regimen.convert.split import validation_tasks
from regimen.errors import ConvertError, RolloutError
from regimen.pipelines.verify import verify_folder
from regimen.rollouts.reader import BadRow, Paths, RolloutReader, checked_paths, read_failures
from regimen.rollouts.records import Rollout
from regimen.rollouts.siblings import failures_beside, tasks_beside
from regimen.rollouts.writer import JsonLinesWriter, encode_row, write_rows_atomically

QUARANTINE = "quarantine.jsonl"


class Target(msgspec.Struct, frozen=True):
    """How one target is made: a record of each scored rollout, and rows of all records."""

    make: Callable[[Rollout], Any]
    build: Callable[[Sequence[Any], ConvertOptions, Ledger], list[Example]]


TARGETS = {
    "sft": Target(episode_of, sft.build_sft),
    "dpo": Target(episode_of, dpo.build_dpo),
    "grpo": Target(grpo.task_rollout_of, grpo.build_grpo),
}


class Mix(msgspec.Struct, frozen=True):
    """How often each task stands in a mixture, and the counts of each environment; empty where nothing is mixed."""

    copies: dict[str, int] = {}
    counts: dict[str, MixCount] = {}


class Sieve(msgspec.Struct, frozen=True):
    """Where rows that go no further are decided and counted."""

    screen: Screen
    ledger: Ledger


class Intake(msgspec.Struct):
    """What was read: records of the rollouts that passed the screen, rewards of all that are scored, and totals."""

    records: list[Any] = []
    rewards: list[float] = []
    num_rows: int = 0
    num_tokens: int = 0
    num_bad: int = 0
    failed_tasks: set[str] = set()
    unmapped: list[BadRow] = []


def convert(
    rollouts: Paths,
    to: str,
    out: Path | str,
    options: ConvertOptions | None = None,
    *,
    tasks: Path | str | None = None,
    overwrite: bool = False,
    verify: bool = False,
) -> Manifest:
    """Convert rollout files into the folder `out` and return its manifest.

    `verify` reads every written row back and compares it with its rollouts; a difference is a `ConvertError`.
    `tasks` names the task rows where they do not stand beside the rollouts as `*_materialized_inputs.jsonl`.
    """
    options = options or ConvertOptions()
    check_for_target(options, to)
    paths, out, target = checked_paths(rollouts), Path(out).absolute(), TARGETS[to]
    ledger, screen = Ledger(), Screen(options)
    with folder_written_whole(out, overwrite) as folder:
        intake = _read(paths, tasks, target, options, Sieve(screen, ledger), folder, out)
        screened = screen.finish()
        resolved = resolve(options, to, intake)
        examples, mix = _mixed(target.build(intake.records, resolved, ledger), intake.records, resolved, ledger)
        if not examples:
            raise nothing_left(to, intake.records, resolved, ledger)
        train, validation = split(examples, intake.records, resolved, ledger)
        _count_written(intake.records, {"trained": train, "validation": validation}, ledger)
        train = [repeated for example in train for repeated in [example] * mix.copies.get(example.task_id, 1)]
        written = _write(folder, train, validation, intake.num_bad)
        manifest = Manifest(
            created=now(),
            tool={"name": "regimen", "version": tool_version()},
            target=to,
            format=resolved.format,
            options=resolved,
            inputs=_inputs(paths, tasks, options.against),
            rewards=rewards_of(intake.rewards),
            counts=_counts(intake, train, validation),
            ledger=ledger.close(intake.num_rows, intake.num_tokens),
            outputs=written,
            tokenizers=count_fingerprints(record.tokenizer for record in intake.records),
            templates=count_fingerprints(record.template for record in intake.records),
            warnings=warnings_about(to, intake, train, validation),
            environments=count_fingerprints(example.environment for example in [*train, *validation]),
            mix=mix.counts,
            screened=screened if options.where is not None or options.against is not None else None,
            verified_rows=verify_folder(folder, paths, tasks, resolved) if verify else None,
        )
        write_manifest(manifest, folder)
    return manifest


def nothing_left(to: str, records: Sequence[Any], options: ConvertOptions, ledger: Ledger) -> ConvertError:
    """Why a conversion leaves no row."""
    if to == "sft":
        return sft.nothing_to_train([record.reward for record in records], options, ledger)
    groups: dict[tuple[str, str], list[float]] = {}
    for record in records:
        groups.setdefault((record.task_id, record.prompt_key), []).append(record.reward)
    nothing = dpo.nothing_to_pair if to == "dpo" else grpo.nothing_to_play
    return nothing(list(groups.values()), options, ledger)


def _mixed(
    examples: list[Example], records: Sequence[Any], options: ConvertOptions, ledger: Ledger
) -> tuple[list[Example], Mix]:
    """The examples of the tasks that the mixture keeps, and how often each stands."""
    if options.mix is None or not examples:
        return examples, Mix()
    tasks = list({example.task_id: TaskRows(example.environment, example.task_id) for example in examples}.values())
    copies, counts = mixed_tasks(tasks, options.mix, options.upsample, options.seed)
    kept = [example for example in examples if copies[example.task_id]]
    left_out = [example for example in examples if not copies[example.task_id]]
    _count_written(records, {"left_out_of_mix": left_out}, ledger)
    return kept, Mix(copies, counts)


def split(
    examples: Sequence[Example], records: Sequence[Any], options: ConvertOptions, ledger: Ledger
) -> tuple[list[Example], list[Example]]:
    """Training and validation rows, by task; a pair across tasks of both sides stands on neither."""
    task_ids = {task_id for example in examples for task_id in (example.task_id, example.other_task_id) if task_id}
    held_out = validation_tasks(task_ids, options.validation_fraction, options.seed)
    sides: tuple[list[Example], list[Example]] = ([], [])
    apart: list[Example] = []
    for example in examples:
        other = example.other_task_id
        if other is not None and (other in held_out) != (example.task_id in held_out):
            apart.append(example)
        else:
            sides[example.task_id in held_out].append(example)
    if apart:
        staying = {key for side in sides for example in side for key in example.keys}
        _count_written(records, {"no_partner": apart}, ledger, staying)
        ledger.use("pairs_on_both_sides_dropped", len(apart))
    return sides


def resolve(options: ConvertOptions, to: str, intake: Intake) -> ConvertOptions:
    """`options` with everything that the data decides filled in, as the manifest records it."""
    if to == "dpo":
        format_name = dpo.dpo_format(options.format, [dpo.is_said_in_strings(record) for record in intake.records])
    else:
        format_name = FORMATS[to][0] if options.format == "auto" else options.format
    threshold = options.reward_threshold
    if to != "dpo":
        threshold = sft.reward_threshold(intake.rewards, threshold)
    resolved = msgspec.structs.replace(options, format=format_name, reward_threshold=threshold)
    return with_reasoning(resolved, format_name)


def _read(
    paths: Sequence[Path],
    tasks: Path | str | None,
    target: Target,
    options: ConvertOptions,
    sieve: Sieve,
    folder: Path,
    out: Path,
) -> Intake:
    """Read every row; unscored ones are counted at once, unreadable ones go to quarantine."""
    intake = Intake()
    reader = RolloutReader(paths, quarantine=folder / QUARANTINE, tasks=tasks, max_bad=options.max_bad)
    try:
        try:
            with reader:
                for rollout in reader:
                    _take(rollout, target, sieve, intake)
        finally:
            _set_aside(intake.unmapped, folder / QUARANTINE)
        for path in paths:
            for rollout in read_failures(path):
                _take(rollout, target, sieve, intake)
                intake.num_rows += 1
        intake.num_rows += reader.report.rows
        intake.num_bad += reader.report.bad
        _judge(intake, reader.report.rows, options)
    except (RolloutError, ConvertError) as error:
        saved = _save_quarantine(folder / QUARANTINE, out)
        if saved is None:
            raise
        fix = f"{error.fix or 'mend the rows'}; they are kept, with reasons, in {saved}"
        raise type(error)(error.message, where=error.where, expected=error.expected, fix=fix) from error
    sieve.ledger.count_many("quarantined", reader.report.bad)
    return intake


def _take(rollout: Rollout, target: Target, sieve: Sieve, intake: Intake) -> None:
    """Count an unscored or screened row, or keep the record of another. Tokens are counted from the row itself."""
    ledger = sieve.ledger
    key = (rollout.source.path, rollout.source.line)
    num_tokens = num_sampled_ids(rollout)
    intake.num_tokens += num_tokens
    if rollout.reward is None:
        ledger.count(key, f"{FAILED}{rollout.outcome}", num_tokens)
        intake.failed_tasks.add(rollout.task_id)
        return
    intake.rewards.append(rollout.reward)
    bucket = sieve.screen.bucket_of(rollout)
    if bucket is not None:
        ledger.count(key, bucket, num_tokens)
        return
    try:
        record = target.make(rollout)
    except RolloutError as error:
        intake.unmapped.append(BadRow(*key, str(error), encode_row(rollout.row).decode().rstrip("\n")))
        ledger.count(key, "quarantined", num_tokens)
        intake.num_bad += 1
        return
    intake.records.append(record)


def _set_aside(rows: Sequence[BadRow], path: Path) -> None:
    """Append the rows that could be read but not mapped to those that the reader has set aside."""
    if rows:
        with JsonLinesWriter(path) as quarantine:
            for row in rows:
                quarantine.write(row)


def _judge(intake: Intake, num_rows: int, options: ConvertOptions) -> None:
    if intake.num_bad > options.max_bad * num_rows:
        raise ConvertError(
            f"{intake.num_bad} of {num_rows} rows cannot be converted",
            expected=f"at most {options.max_bad:g} of the rows",
            fix="mend the rows, or allow more with --max-bad",
        )


def _save_quarantine(path: Path, out: Path) -> Path | None:
    """Keep the quarantine of a conversion that fails, under a name that is free, beside the folder."""
    if not path.exists():
        return None
    names = (f"{out.name}_quarantine{number}.jsonl" for number in ["", *(f"_{n}" for n in range(2, 1000))])
    saved = next(free for name in names if not (free := out.with_name(name)).exists())
    path.rename(saved)
    return saved


def _count_written(
    records: Sequence[Any],
    sides: dict[str, list[Example]],
    ledger: Ledger,
    counted_elsewhere: Collection[RowKey] = (),
) -> None:
    tokens = {record.key: record.num_sampled for record in records}
    for bucket, examples in sides.items():
        for key in dict.fromkeys(key for example in examples for key in example.keys):
            if key not in counted_elsewhere:
                ledger.count(key, bucket, tokens[key])


def _counts(intake: Intake, train: Sequence[Example], validation: Sequence[Example]) -> Counts:
    return Counts(
        train_rows=len(train),
        validation_rows=len(validation),
        train_tasks=len({example.task_id for example in train}),
        validation_tasks=len({example.task_id for example in validation}),
        tasks_seen=len({record.task_id for record in intake.records}),
    )


def _inputs(paths: Sequence[Path], tasks: Path | str | None, against: str | None) -> list[InputFile]:
    files: list[InputFile] = []
    for path in paths:
        files.append(input_file(path, "rollouts"))
        beside = tasks_beside(path) if tasks is None else None
        failures = failures_beside(path)
        files.extend(
            input_file(sibling, role)
            for sibling, role in ((beside, "tasks"), (failures, "failures"))
            if sibling is not None
        )
    if tasks is not None:
        files.append(input_file(Path(tasks), "tasks"))
    if against is not None:
        files.append(input_file(Path(against), "evaluation"))
    return files


def _write(folder: Path, train: Sequence[Example], validation: Sequence[Example], num_bad: int) -> list[OutputFile]:
    """Write rows and sidecars; no validation file where no task validates, since loaders refuse empty files."""
    written: list[OutputFile] = []
    for name, examples in (("train", train), ("val", validation)):
        if examples:
            rows, sidecar = folder / f"{name}.jsonl", folder / f"{name}.sidecar.jsonl"
            written.append(output_file(rows, write_rows_atomically(rows, (example.row for example in examples))))
            num_records = write_rows_atomically(sidecar, (example.record for example in examples))
            written.append(output_file(sidecar, num_records))
    if num_bad:
        written.append(output_file(folder / QUARANTINE, num_bad))
    return written


def warnings_about(to: str, intake: Intake, train: Sequence[Example], validation: Sequence[Example]) -> list[str]:
    """What a person should know before training on the folder."""
    records, found = intake.records, list[str]()
    if to == "sft" and len(train) < sft.FEW_ROWS:
        found.append(
            f"only {len(train)} training rows: {sft.FEW_ROWS} are a usual minimum; collect more, or lower the threshold"
        )
    if not validation:
        found.append("no validation rows: a single task, or --validation-fraction 0")
    for what in ("tokenizer", "template"):
        if len(fingerprints := {getattr(record, what) for record in records} - {None}) > 1:
            found.append(f"rollouts of {len(fingerprints)} different {what}s: token ids of one do not fit the others")
    only_failed = intake.failed_tasks - {record.task_id for record in records}
    if only_failed:
        found.append(f"{len(only_failed)} tasks have only failed episodes and are left out: see the failures' reasons")
    found.extend(_prompt_warnings(records, train, validation))
    records_of_tasks = [example.record for example in [*train, *validation]] if to == "grpo" else []
    nowhere = sum(isinstance(record, TaskRecord) and record.truth == "nowhere" for record in records_of_tasks)
    if nowhere:
        found.append(
            f"{nowhere} tasks have no verifier fields: their rewards may all be 0 unless the environment needs none; "
            "keep X_materialized_inputs.jsonl beside X.jsonl, or name it with --tasks"
        )
    return found


def _prompt_warnings(records: Sequence[Any], train: Sequence[Example], validation: Sequence[Example]) -> list[str]:
    found: list[str] = []
    prompts: dict[str, set[str]] = {}
    for record in records:
        prompts.setdefault(record.task_id, set()).add(record.prompt_key)
    several = sum(len(keys) > 1 for keys in prompts.values())
    if several:
        found.append(
            f"{several} task identities stand for several prompts (files collected from different task lists?); "
            "only rows with the same prompt were compared"
        )
    prompt_of = {record.key: record.prompt_key for record in records}
    trained = {prompt_of[example.keys[0]] for example in train}
    leaked = sum(prompt_of[example.keys[0]] in trained for example in validation)
    if leaked:
        found.append(f"{leaked} validation rows have the prompt of a training row, under another task identity")
    return found
