"""The first pass over the files: each stretch of a file becomes a part of the index.

In: `Stretch`es of files, made by `plan`: whole files, or byte ranges of plain ones that end where lines end.
Out: for each a `Part`: a file of fixed-width records, one per good row; the bad rows; and the counts. Rows and lines
are numbered within the part, so that stretches can be read at the same time; whoever joins the parts adds what stands
before them.
Refuses what the reader refuses.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from regimen.errors import RegimenError, RolloutError
from regimen.rollouts.fields import RECORD
from regimen.rollouts.lines import check_first_line, is_blank, line_size, lines_of
from regimen.rollouts.partial import RowScanner, Where
from regimen.rollouts.processes import Processes
from regimen.rollouts.records import Source
from regimen.rollouts.report import bad_row
from regimen.rollouts.siblings import TaskIndex, TaskPlaces
from regimen.rollouts.sources import BLOCK, Kind, kind_of, open_file, open_lines
from regimen.rollouts.writer import encode_row

SMALLEST_STRETCH = 8 << 20
LARGEST_STRETCH = 256 << 20  # so that a long reading can tell how far it is
STRETCHES_PER_PROCESS = 16


class Stretch(msgspec.Struct, frozen=True):
    """A part of a file to be read; `end` is None for a whole file, `spool` names its copy where it has one."""

    number: int
    file: int
    path: str
    folder: str
    kind: Kind
    is_failures: bool = False
    start: int = 0
    end: int | None = None
    spool: str | None = None
    tasks: TaskPlaces | None = None


class Part(msgspec.Struct):
    """What was found in a stretch."""

    file: int
    records: str
    bad: str
    num_lines: int = 0
    num_rows: int = 0
    num_bad: int = 0
    blank_lines: int = 0
    with_task: int = 0
    outcomes: dict[str, int] = {}
    failures: dict[str, int] = {}
    environments: list[str | None] = []


def plan(files: Sequence[tuple[Path, bool, TaskPlaces | None]], folder: Path, num_processes: int) -> Iterator[Stretch]:
    """The stretches of all files in order; a file is its path, whether it holds failures, and its task rows."""
    number = 0
    for file, (path, is_failures, tasks) in enumerate(files):
        kind = kind_of(path)
        spool = None if kind is Kind.LINES else str(folder / f"{file}.jsonl")
        ends: list[int | None] = [None]
        if kind is Kind.LINES:
            most = num_processes * STRETCHES_PER_PROCESS if num_processes > 1 else 1
            ends = [*_cuts(path, max(most, path.stat().st_size // LARGEST_STRETCH)), None]
        start = 0
        for end in ends:
            yield Stretch(number, file, str(path), str(folder), kind, is_failures, start, end, spool=spool, tasks=tasks)
            number += 1
            start = end or 0


def _cuts(path: Path, most: int) -> list[int]:
    """Places at line ends that cut a file into stretches of like size."""
    size = path.stat().st_size
    pieces = max(1, min(most, size // SMALLEST_STRETCH))
    cuts: set[int] = set()
    with open_file(path) as file:
        for piece in range(1, pieces):
            file.seek(piece * size // pieces - 1)
            while (line := file.readline(BLOCK)) and not line.endswith(b"\n"):
                pass
            cuts.add(file.tell())
    return sorted(cuts - {size})


def read_stretches(
    stretches: Sequence[Stretch], fields: Sequence[str], where: Where | None, alike: Sequence[str], processes: Processes
) -> Iterator[Part]:
    """Read stretches, in several processes when there are some, and give their parts in order."""
    read = partial(read_stretch, fields=fields, where=where, alike=alike)
    parts = processes.map(read, [stretch for stretch in stretches if stretch.kind is not Kind.PIPE])
    for stretch in stretches:  # a pipe belongs to this process
        yield read(stretch) if stretch.kind is Kind.PIPE else next(parts)


def read_stretch(stretch: Stretch, fields: Sequence[str], where: Where | None, alike: Sequence[str]) -> Part:
    """Read one stretch into its part."""
    folder = Path(stretch.folder)
    part = Part(stretch.file, str(folder / f"{stretch.number}.records"), str(folder / f"{stretch.number}.bad"))
    try:
        with contextlib.ExitStack() as stack:
            tasks = stack.enter_context(contextlib.closing(TaskIndex(stretch.tasks))) if stretch.tasks else None
            scanner = RowScanner(tasks, fields, where, alike)
            lines = stack.enter_context(_stretch_lines(stretch))
            _scan(stretch, lines, scanner, part)
    except RegimenError:
        raise
    except (OSError, MemoryError) as error:
        raise RolloutError(f"cannot be indexed: {error or type(error).__name__}", where=stretch.path) from error
    part.outcomes, part.failures, part.with_task = scanner.outcomes, scanner.failures, scanner.with_task
    part.environments = list(scanner.environments)
    return part


@contextlib.contextmanager
def _stretch_lines(stretch: Stretch) -> Generator[Iterator[bytes]]:
    path = Path(stretch.path)
    if stretch.kind is not Kind.LINES:
        with open_lines(path) as lines, Path(stretch.spool or "").open("wb", buffering=BLOCK) as spool:
            yield _spooled(lines, spool)
        return
    with open_file(path) as file:
        file.seek(stretch.start)
        yield lines_of(file)


def _spooled(lines: Iterator[bytes], spool: BinaryIO) -> Iterator[bytes]:
    """The lines, each written down as it passes; of one that is too long only its beginning is."""
    for line in lines:
        spool.write(line)
        yield line


def _scan(stretch: Stretch, lines: Iterator[bytes], scanner: RowScanner, part: Part) -> None:
    """Read the lines up to the end of the stretch, which is the end of one of them."""
    offset, number, is_copy = stretch.start, 0, stretch.spool is not None
    end = sys.maxsize if stretch.end is None else stretch.end
    make_entry = scanner.failed_entry if stretch.is_failures else scanner.entry
    pack = RECORD.pack
    with Path(part.records).open("wb", buffering=BLOCK) as records, Path(part.bad).open("wb", buffering=BLOCK) as bad:
        for line_number, line in enumerate(lines, 1):
            if line_number == 1 and not stretch.start and not stretch.is_failures:
                check_first_line(line, Path(stretch.path))
            size = len(line) if is_copy else line_size(line)
            try:
                entry = make_entry(line)
                records.write(pack(number, stretch.file, line_number, offset, size, *entry))
                number += 1
            except RolloutError as error:
                if is_blank(line):
                    part.blank_lines += 1
                else:
                    bad.write(encode_row(bad_row(line, Source(stretch.path, line_number), str(error))))
                    part.num_bad += 1
            offset += size
            part.num_lines = line_number
            if offset >= end:
                break
    part.num_rows = number
