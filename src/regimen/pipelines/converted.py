"""What a conversion leaves: pieces put together into the folder's files, and the paper that goes with them.

In: `Piece`s in order, and the index they came from. Out: `Totals`, the lists and warnings of the manifest, and the
error of a conversion that leaves nothing. Of every written row 8 bytes stay in memory, to find prompts on both sides.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from regimen.convert import dpo, grpo, sft
from regimen.convert.ledger import Ledger
from regimen.convert.manifest import Counts, InputFile, OutputFile, input_file, output_file
from regimen.convert.options import ConvertOptions
from regimen.convert.screen import Screen, Screened
from regimen.errors import ConvertError
from regimen.pipelines.pieces import Piece, Written
from regimen.pipelines.selection import SIDES
from regimen.rollouts.index import RolloutIndex
from regimen.rollouts.siblings import failures_beside, tasks_beside
from regimen.rollouts.sources import STDIN
from regimen.rollouts.writer import JsonLinesWriter

QUARANTINE = "quarantine.jsonl"
MOST_WAITING = 2  # pieces that wait to be written, for each file
GROUPS_OF_AN_ERROR = 100_000  # tasks whose rewards an error message looks at


class _Output:
    """A file that is written and hashed in one go, by a thread: neither holds the interpreter."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("wb", buffering=0)
        self.hash = xxhash.xxh3_128()
        self.size = 0
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def write(self, lines: bytes | bytearray | str) -> None:
        """Write lines, or those of a file, later; raises what a write before it met."""
        self._waiting.append(self._thread.submit(self._write, lines))
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popleft().result()

    def _write(self, lines: bytes | bytearray | str) -> None:
        if isinstance(lines, str):
            data = Path(lines).read_bytes()
            Path(lines).unlink()
        else:
            data = lines
        rest = memoryview(data)
        while rest:
            rest = rest[self.file.write(rest) :]
        self.hash.update(data)
        self.size += len(data)

    def close(self) -> None:
        """Wait for everything to be written."""
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)
            self.file.close()


class Totals:
    """The sum of the pieces; also the writer of the folder's files."""

    def __init__(self, folder: Path, options: ConvertOptions, quarantines: bool) -> None:
        self.folder = folder
        self.quarantines = quarantines
        self.ledger = Ledger()
        self.num_bad = 0
        self.tokenizers: Counter[str] = Counter()
        self.templates: Counter[str] = Counter()
        self.environments: Counter[str] = Counter()
        self.num_rows = dict.fromkeys(SIDES, 0)
        self.num_tasks = dict.fromkeys(SIDES, 0)
        self.tasks_seen = self.tasks_failed = self.tasks_with_several_prompts = self.truth_nowhere = 0
        self._screen = Screen(options)
        self._prompts = {side: array("Q") for side in SIDES}
        self._nearest: dict[str, tuple[float, str]] = {}
        self._files: dict[str, _Output] = {}
        self._quarantine: JsonLinesWriter | None = None

    @classmethod
    @contextmanager
    def begin(cls, folder: Path, options: ConvertOptions, *, quarantines: bool) -> Generator[Totals]:
        """Totals with their files open; `quarantines` says whether bad rows are written down, or were before."""
        totals = cls(folder, options, quarantines)
        try:
            yield totals
        finally:
            totals._close()

    @property
    def num_examples(self) -> int:
        """Rows written on both sides."""
        return sum(self.num_rows.values())

    def finish_screen(self) -> Screened:
        """What the screen kept out; raises `ConvertError` for a condition on a field that no row has."""
        return self._screen.finish()

    def take(self, piece: Piece) -> None:
        """Add a piece: its lines, its counts, its bad rows."""
        self.ledger.add(piece.ledger)
        self._screen.add(piece.screen)
        self.tokenizers.update(piece.tokenizers)
        self.templates.update(piece.templates)
        self.environments.update(piece.environments)
        self.tasks_seen += piece.tasks_seen
        self.tasks_failed += piece.tasks_failed
        self.tasks_with_several_prompts += piece.tasks_with_several_prompts
        self.truth_nowhere += piece.truth_nowhere
        for side in SIDES:
            self._append(side, getattr(piece, side))
        for side, place in piece.nearest.items():
            known = self._nearest.get(side, place)
            self._nearest[side] = min(place, known) if side == "train" else max(place, known)
        for bad in piece.bad if self.quarantines else ():
            if self._quarantine is None:
                self._quarantine = JsonLinesWriter(self.folder / QUARANTINE)
            self._quarantine.write(bad)
        self.num_bad += len(piece.bad)

    def _append(self, side: str, written: Written) -> None:
        if not written.num_rows:
            return
        self.num_rows[side] += written.num_rows
        self.num_tasks[side] += written.num_tasks
        self._prompts[side].extend(written.prompts)
        for name, lines in ((f"{side}.jsonl", written.rows), (f"{side}.sidecar.jsonl", written.records)):
            if name not in self._files:
                self._files[name] = _Output(self.folder / name)
            self._files[name].write(lines)

    def _close(self) -> None:
        for output in self._files.values():
            output.close()
        if self._quarantine is not None:
            self._quarantine.close()

    def outputs(self, num_bad: int) -> list[OutputFile]:
        """Every file that was written; a side without a row has none, since loaders refuse empty files."""
        written = [
            OutputFile(name=name, rows=self.num_rows[name.split(".")[0]], size=file.size, xxh128=file.hash.hexdigest())
            for name, file in sorted(self._files.items(), key=lambda item: item[0].split("."))
        ]
        return written + ([output_file(self.folder / QUARANTINE, num_bad)] if num_bad else [])

    def moved(self, fraction: float) -> dict[str, str]:
        """The task that must change sides so that, of at least two tasks, both sides have one."""
        empty = [side for side in SIDES if not self.num_tasks[side]]
        if len(empty) != 1 or fraction <= 0 or sum(self.num_tasks.values()) < 2:
            return {}
        (full,) = set(SIDES) - set(empty)
        return {self._nearest[full][1]: empty[0]}

    def counts(self) -> Counts:
        """Rows and tasks for the manifest."""
        return Counts(
            train_rows=self.num_rows["train"],
            validation_rows=self.num_rows["val"],
            train_tasks=self.num_tasks["train"],
            validation_tasks=self.num_tasks["val"],
            tasks_seen=self.tasks_seen,
        )

    def num_leaked(self) -> int:
        """Validation rows whose prompt stands in a training row too."""
        train, validation = (np.frombuffer(self._prompts[side], np.uint64) for side in SIDES)
        return int(np.isin(validation, train).sum())


def keep_quarantine(path: Path, out: Path) -> Path | None:
    """Keep the quarantine of a conversion that fails, under a name that is free, beside the folder."""
    if not path.exists():
        return None
    names = (f"{out.name}_quarantine{number}.jsonl" for number in ["", *(f"_{n}" for n in range(2, 1000))])
    saved = next(free for name in names if not (free := out.with_name(name)).exists())
    path.rename(saved)
    return saved


def inputs_of(paths: Sequence[Path], tasks: Path | str | None, against: str | None) -> list[tuple[Path, str]]:
    """Every file that a conversion reads, and what it is."""
    files: list[tuple[Path, str]] = []
    for path in paths:
        files.append((path, "rollouts"))
        beside = tasks_beside(path) if tasks is None else None
        failures = failures_beside(path)
        files += [
            (sibling, role) for sibling, role in ((beside, "tasks"), (failures, "failures")) if sibling is not None
        ]
    files += [] if tasks is None else [(Path(tasks), "tasks")]
    return files + ([] if against is None else [(Path(against), "evaluation")])


def described(files: Sequence[tuple[Path, str]]) -> list[InputFile]:
    """The files with their hashes; standard input is described by the copy that was made of it."""
    return [input_file(path, role) for path, role in files if path != STDIN]


def nothing_left(to: str, index: RolloutIndex, options: ConvertOptions, ledger: Ledger) -> ConvertError:
    """Why a conversion leaves no row."""
    if to == "sft":
        rewards = np.concatenate(list(index.rewards()) or [np.zeros(0)])
        return sft.nothing_to_train([float(reward) for reward in rewards], options, ledger)
    groups: dict[tuple[str, int], list[float]] = {}
    for group in islice(index.groups(), GROUPS_OF_AN_ERROR):
        for row in group:
            if row.reward is not None:
                groups.setdefault((row.task_id, row.prompt), []).append(row.reward)
    nothing = dpo.nothing_to_pair if to == "dpo" else grpo.nothing_to_play
    return nothing(list(groups.values()), options, ledger)


def warnings_about(to: str, totals: Totals) -> list[str]:
    """What a person should know before training on the folder."""
    found: list[str] = []
    num_train = totals.num_rows["train"]
    if to == "sft" and num_train < sft.FEW_ROWS:
        found.append(
            f"only {num_train} training rows: {sft.FEW_ROWS} are a usual minimum; collect more, or lower the threshold"
        )
    if not totals.num_rows["val"]:
        found.append("no validation rows: a single task, or --validation-fraction 0")
    for what, fingerprints in (("tokenizer", totals.tokenizers), ("template", totals.templates)):
        if len(fingerprints) > 1:
            found.append(f"rollouts of {len(fingerprints)} different {what}s: token ids of one do not fit the others")
    if totals.tasks_failed:
        found.append(
            f"{totals.tasks_failed} tasks have only failed episodes and are left out: see the failures' reasons"
        )
    if totals.tasks_with_several_prompts:
        found.append(
            f"{totals.tasks_with_several_prompts} task identities stand for several prompts (files collected from "
            "different task lists?); only rows with the same prompt were compared"
        )
    leaked = totals.num_leaked()
    if leaked:
        found.append(f"{leaked} validation rows have the prompt of a training row, under another task identity")
    if totals.truth_nowhere:
        found.append(
            f"{totals.truth_nowhere} tasks have no verifier fields: their rewards may all be 0 unless the environment "
            "needs none; keep X_materialized_inputs.jsonl beside X.jsonl, or name it with --tasks"
        )
    return found
