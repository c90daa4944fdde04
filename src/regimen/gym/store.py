"""The files of a collection: opened, resumed, appended to, finished.

In: the episodes to play and what they were collected with. Out: the rows that are already there; then each episode on
disk as it ends. Refuses: existing output unless resuming or asked to overwrite, resuming what was collected otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from regimen.errors import RolloutError, RunError, UsageError
from regimen.gym.aggregate import aggregate_by_environment
from regimen.gym.environment import Task
from regimen.gym.protocol import Files, files_of, is_failure, materialized_row
from regimen.rollouts.writer import JsonLinesWriter, write_rows_atomically

Row = dict[str, Any]
Pair = tuple[int, int]


class Store:
    """The files of a collection."""

    def __init__(self, output: Path, resume: bool, overwrite: bool, environment: str) -> None:
        self.files: Files = files_of(output)
        self.resume = resume
        self.overwrite = overwrite
        self.environment = environment
        self._rows: JsonLinesWriter | None = None
        self._failures: JsonLinesWriter | None = None

    def open(self, pairs: dict[Pair, Task], identity: Row, settings: Row) -> list[Row]:
        """Check and prepare the files; returns the rows of `pairs` that are already there.

        `identity` is what every row tells of its making, `settings` all that must be the same on resuming.
        """
        files = self.files
        existing = check_output(files.rollouts, resume=self.resume, overwrite=self.overwrite)
        kept: list[Row] = []
        if self.resume:
            self._check_settings(settings)
            kept = self._resume(pairs, identity)
        else:
            for path in existing:
                path.unlink()
        if not (self.resume and existing):
            _write_json(files.settings, settings)
        if not self.resume:
            self._write_tasks(pairs, {})
        self._rows = JsonLinesWriter(files.rollouts)
        self._failures = JsonLinesWriter(files.failures)
        return kept

    def _check_settings(self, settings: Row) -> None:
        """Refuse settings that are not those of the file; collections without it tell theirs in the rows alone."""
        path = self.files.settings
        if not path.exists():
            return
        try:
            earlier = cast("object", json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise RunError(f"not JSON ({error})", where=str(path)) from None
        _refuse_others(cast("Row", earlier) if isinstance(earlier, dict) else {}, settings, str(path))

    def _resume(self, pairs: dict[Pair, Task], identity: Row) -> list[Row]:
        self._write_tasks(pairs, {pair_of(row): row for row in read_complete_lines(self.files.tasks)})
        rows = read_complete_lines(self.files.rollouts)
        for line, row in enumerate(rows, 1):
            _check_same(row, identity, f"{self.files.rollouts}:{line}")
        found = {pair_of(row): row for row in rows}
        failed = [row for row in read_complete_lines(self.files.failures) if pair_of(row) not in pairs]
        write_rows_atomically(self.files.failures, failed, overwrite=True)
        return [row for pair, row in found.items() if pair in pairs]

    def _write_tasks(self, pairs: dict[Pair, Task], earlier: dict[Pair, Row]) -> None:
        rows = dict(earlier)
        for pair, task in pairs.items():
            row = materialized_row(task.row, *pair, self.environment)
            if pair in earlier and earlier[pair] != json.loads(json.dumps(row)):
                raise UsageError(
                    f"task {pair[0]} differs from the one collected before",
                    where=str(self.files.tasks),
                    fix="resume with the environment, options, split and seed of the first run",
                )
            rows[pair] = row
        write_rows_atomically(self.files.tasks, [rows[pair] for pair in sorted(rows)], overwrite=True)

    def write(self, row: Row) -> None:
        """Append an episode to the rollouts or to the failures."""
        writer = self._failures if is_failure(row) else self._rows
        if writer is None:
            raise RunError("the collection's files are not open", where=str(self.files.rollouts))
        writer.write(row)

    def close(self) -> None:
        """Put everything on disk."""
        for writer in (self._rows, self._failures):
            if writer:
                writer.close()

    def finish(self, rows: Sequence[Row], failures: Sequence[Row]) -> None:
        """Write the aggregate metrics."""
        entries = aggregate_by_environment(rows, failures, self.environment)
        _write_json(self.files.metrics, entries)


def write_whole(
    output: Path,
    rows: Sequence[Row],
    failures: Sequence[Row],
    tasks: Sequence[Task],
    num_repeats: int,
    environment: str,
) -> None:
    """The files that a `Store` writes as it goes, of a collection that is whole; existing ones are replaced."""
    files = files_of(output)
    pairs = sorted(((task.index, repeat, task) for task in tasks for repeat in range(num_repeats)), key=lambda p: p[:2])
    materialized = [materialized_row(task.row, index, repeat, environment) for index, repeat, task in pairs]
    write_rows_atomically(files.tasks, materialized, overwrite=True)
    write_rows_atomically(files.failures, failures, overwrite=True)
    write_rows_atomically(files.rollouts, rows, overwrite=True)
    _write_json(files.metrics, aggregate_by_environment(rows, failures, environment))


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def check_output(output: Path, *, resume: bool, overwrite: bool) -> list[Path]:
    """The files of a collection that exist; raises `UsageError` when nobody said what to do with them."""
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other")
    if output.is_dir():
        raise UsageError(
            "the output is a folder", where=str(output), expected="the name of a file, like rollouts.jsonl"
        )
    files = files_of(output)
    listed = (files.rollouts, files.tasks, files.failures, files.metrics, files.settings)
    existing = [path for path in listed if path.exists()]
    if existing and not (resume or overwrite):
        raise UsageError(
            "the file exists",
            where=str(existing[0]),
            fix="continue it with resume, replace it with overwrite, or choose another output",
        )
    return existing


def read_complete_lines(path: Path) -> list[Row]:
    """The rows of a JSON lines file; [] where there is none. A torn last line, left by a kill, is not a row."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = cast("object", json.loads(line))
            if not isinstance(row, dict):
                raise ValueError("the line is not an object")
            pair_of(cast("Row", row))
        except (ValueError, KeyError) as error:
            if number == len(lines):
                break
            raise RolloutError(
                f"not a row of a collection ({error})", where=f"{path}:{number}", fix="repair or remove the line"
            ) from None
        rows.append(cast("Row", row))
    return rows


def _check_same(row: Row, identity: Row, where: str) -> None:
    """Refuse to mix rows that were collected otherwise."""
    earlier: Row = {**row.get("responses_create_params", {}), **row.get("regimen", {})}
    earlier["model"] = row.get("response", {}).get("model")
    _refuse_others(earlier, identity, where)


def _refuse_others(earlier: Row, now: Row, where: str) -> None:
    for key, value in now.items():
        if key in earlier and earlier[key] != value:
            raise UsageError(
                f"was collected with {key} {earlier[key]!r}, now it is {value!r}",
                where=where,
                fix="resume with the settings of the first run, or choose another output",
            )


def pair_of(row: Row) -> Pair:
    """Task and repeat of a row."""
    return row["_ng_task_index"], row["_ng_rollout_index"]
