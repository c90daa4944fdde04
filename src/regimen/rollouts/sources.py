"""Where rollouts are read from: files of any of the usual kinds, folders, patterns, and standard input.

In: paths as a person gives them: a file, a folder, a pattern such as `runs/*.jsonl.gz`, or `-`.
Out: the list of files, and the lines of each: JSON lines, plain or compressed (told by the first bytes, not by the
name), or the rows of Parquet and Arrow files as JSON lines.
Refuses, with `UsageError`: paths that are not there, folders and patterns without rollout files, and files given
twice; with `RolloutError`: compressed data that is broken or ends too early, after the lines before the damage.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from regimen.errors import RolloutError, UsageError
from regimen.rollouts.compression import gunzip, unzstd
from regimen.rollouts.lines import LongLine, lines_of
from regimen.rollouts.tables import arrow_lines, parquet_lines

STDIN = Path("-")
BLOCK = 1 << 20
LINES_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
FILE_ENDINGS = (*LINES_ENDINGS, ".parquet")
# Files that stand beside rollouts and hold something else.
SIBLING_MARKS = ("_materialized_inputs", "_failures", "_aggregate_metrics", "quarantine", ".sidecar.jsonl")

Paths = Path | str | Sequence[Path | str]


class Kind(StrEnum):
    """What the first bytes of a file say it is; a pipe is not looked into before it is read."""

    LINES = "lines"
    GZIP = "gzip"
    ZSTD = "zstd"
    PARQUET = "parquet"
    ARROW = "arrow"
    PIPE = "pipe"


# An Arrow stream begins with a continuation mark, an Arrow file with its name.
MAGIC = {
    b"\x1f\x8b": Kind.GZIP,
    b"\x28\xb5\x2f\xfd": Kind.ZSTD,
    b"PAR1": Kind.PARQUET,
    b"ARROW1": Kind.ARROW,
    b"\xff\xff\xff\xff": Kind.ARROW,
}
LONGEST_MAGIC = max(map(len, MAGIC))


def checked_paths(paths: Paths) -> list[Path]:
    """The rollout files that are meant, in order; `UsageError` where there is none or one is given twice."""
    given = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if not given:
        raise UsageError("no rollout file was given", expected="the path of a rollouts.jsonl")
    listed: dict[Path, None] = {}
    for path in chain.from_iterable(map(_expand, given)):
        if path in listed:
            raise UsageError("the file is given twice", where=str(path), fix="name each file once")
        listed[path] = None
    return list(listed)


def kind_of(path: Path) -> Kind:
    """The kind of a file."""
    if path == STDIN or not path.is_file():
        return Kind.PIPE
    with open_file(path) as file:
        return _kind_of_head(file.read(LONGEST_MAGIC))


def open_file(path: Path) -> BinaryIO:
    """Open for reading; what the system refuses becomes a `UsageError`."""
    try:
        return path.open("rb", buffering=BLOCK)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from None


@contextlib.contextmanager
def open_lines(path: Path) -> Generator[Iterator[bytes]]:
    """The lines of a file of any kind, each with its newline where it has one."""
    if path == STDIN:
        yield _stream_lines(sys.stdin.buffer, STDIN)
        return
    kind = kind_of(path)
    if kind in (Kind.PARQUET, Kind.ARROW):
        yield (parquet_lines if kind is Kind.PARQUET else arrow_lines)(path)
        return
    with open_file(path) as file:
        yield lines_of(file) if kind is Kind.LINES else _stream_lines(file, path)


def spool(path: Path, to: Path) -> None:
    """Write the lines of a file as a plain file; of a line that is too long only its beginning stays."""
    with open_lines(path) as lines, to.open("wb", buffering=BLOCK) as file:
        for line in lines:
            file.write(line + b"\n" if isinstance(line, LongLine) else line)


def _kind_of_head(head: bytes) -> Kind:
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), Kind.LINES)


def _stream_lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    head = b""
    while len(head) < LONGEST_MAGIC and (more := file.read(LONGEST_MAGIC - len(head))):
        head += more
    blocks = chain([head], iter(lambda: file.read(BLOCK), b""))
    kind = _kind_of_head(head)
    if kind in (Kind.PARQUET, Kind.ARROW):
        raise UsageError(
            f"{kind} data cannot be read from a pipe", where=str(path), fix="write it to a file and name that"
        )
    if kind is Kind.GZIP:
        blocks = gunzip(blocks, path)
    elif kind is Kind.ZSTD:
        blocks = unzstd(blocks, path)
    return lines_of(cast("BinaryIO", io.BufferedReader(_Blocks(blocks), BLOCK)))


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a file to read from."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        return _checked_folder(path)
    if path == STDIN or path.exists():
        return [path]
    if glob.has_magic(str(path)):
        return _matching(path)
    raise UsageError("no such file", where=str(path), expected="a rollout file, a folder, a pattern, or - for a pipe")


def _checked_folder(path: Path) -> list[Path]:
    found = list(_files_in(path, frozenset()))
    if not found:
        raise UsageError(
            "the folder holds no rollout files", where=str(path), expected=f"files named *{', *'.join(FILE_ENDINGS)}"
        )
    return found


def _matching(pattern: Path) -> list[Path]:
    """The files that match, without those that stand beside rollouts; a folder that matches gives its files."""
    # Path.glob takes no pattern that begins at the root.
    matches = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    found: dict[Path, None] = {}
    for match in matches:
        files = _files_in(match, frozenset()) if match.is_dir() else [] if _is_sibling(match) else [match]
        found.update(dict.fromkeys(files))
    if not found:
        seen = f"matches only files that hold no rollouts ({matches[0]}, …)" if matches else "matches no file"
        raise UsageError(f"the pattern {seen}", where=str(pattern), expected="rollout files")
    return list(found)


def _files_in(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link back up: its files are being listed already
        return
    dataset = _dataset_files(folder)
    if dataset is not None:
        yield from dataset
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_in(entry, above | {real})
        elif entry.name.endswith(FILE_ENDINGS) and not _is_sibling(entry):
            yield entry


def _is_sibling(path: Path) -> bool:
    return any(mark in path.name for mark in SIBLING_MARKS)


def _dataset_files(folder: Path) -> list[Path] | None:
    """The files of a folder that `datasets` has saved: its shards, or those of all its splits; None for others."""
    splits = _described(folder / "dataset_dict.json", "splits")
    if splits is not None:
        parts = [_dataset_files(folder / str(split)) for split in splits]
        if any(part is None for part in parts):
            raise UsageError("a split of the data set is not there", where=str(folder), expected=", ".join(splits))
        return [path for part in parts if part is not None for path in part]
    shards = _described(folder / "state.json", "_data_files")
    if shards is None:
        return None
    named = [cast("dict[str, Any]", shard) for shard in shards if isinstance(shard, dict)]
    found = [folder / str(shard.get("filename")) for shard in named]
    missing = next((path for path in found if not path.is_file()), None)
    if missing is not None:
        raise UsageError("a part of the data set is not there", where=str(missing), expected="a file of Arrow data")
    return found


def _described(path: Path, key: str) -> list[Any] | None:
    """A list in a JSON file that may be missing, or be something else."""
    if not path.is_file():
        return None
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, OSError, RecursionError, UnicodeDecodeError) as error:
        raise RolloutError(f"cannot be read: {error}", where=str(path), expected="a JSON object") from None
    value = cast("dict[str, Any]", found).get(key) if isinstance(found, dict) else None
    return cast("list[Any]", value) if isinstance(value, list) else None
