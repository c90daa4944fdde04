"""metrics.jsonl: one line per logged step, `{"step": 3, "train/loss": 0.5}`, written at once; samples.jsonl beside it.

In: metrics, sample episodes. Out: lines of JSON; a value that is not finite is null. A resumed run drops the lines of
the steps it will run again, and a line that a kill cut short. Refuses: a fresh run over an old file (`UsageError`), a
broken line before the last (`RunError`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from regimen.errors import RunError, UsageError
from regimen.tracking.base import Sample, full_name, is_number

FILE_NAME = "metrics.jsonl"
SAMPLES_NAME = "samples.jsonl"


class JsonLinesTracker:
    """Appends to `folder/metrics.jsonl`."""

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        self.path, self.samples_path = folder / FILE_NAME, folder / SAMPLES_NAME
        folder.mkdir(parents=True, exist_ok=True)
        if resume_step is not None:
            _keep_steps_before(self.path, resume_step)
            _keep_steps_before(self.samples_path, resume_step)
        elif self.path.exists() and self.path.stat().st_size > 0:
            raise UsageError(
                "the folder already holds the metrics of a run",
                where=str(self.path),
                fix="resume that run, or choose another folder",
            )
        self._file = self.path.open("ab")

    def log(self, step: int, metrics: Mapping[str, float], prefix: str = "") -> None:
        """Append one line; it is handed to the system before this returns."""
        row: dict[str, float | int | None] = {"step": step}
        for name, value in metrics.items():
            number = float(value)
            row[full_name(prefix, name)] = number if is_number(number) else None
        self._file.write(msgspec.json.encode(row) + b"\n")
        self._file.flush()

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The run folder has the configuration as it is."""

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Append a line for each episode to samples.jsonl."""
        rows = [{"step": step, **msgspec.to_builtins(sample)} for sample in samples]
        with self.samples_path.open("ab") as file:
            file.writelines(msgspec.json.encode(row) + b"\n" for row in rows)

    def close(self) -> None:
        """Sync to disk and close; closing twice is harmless."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, in order; a cut-off last line is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise RunError("there is no metrics file", where=str(path), expected=FILE_NAME) from None
    # Every whole line ends in a newline, so what follows the last one is empty or was cut off.
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines[:-1], start=1) if line.strip()]


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise RunError(f"not JSON: {error}", where=where) from None
    if not isinstance(row, dict) or type(cast("dict[str, Any]", row).get("step")) is not int:
        raise RunError("the line has no step", where=where, expected='an object with a whole number in "step"')
    return cast("dict[str, Any]", row)


def _keep_steps_before(path: Path, step: int) -> None:
    """Rewrite the file without the steps from `step` on, atomically."""
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] < step]
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.writelines(msgspec.json.encode(row) + b"\n" for row in kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
