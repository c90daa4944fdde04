"""Writing rows as JSON lines, so that a killed process leaves nothing half-written behind.

In: rows (dicts, or `msgspec.Struct`s). Out: one JSON object per line.
Refuses: NaN and infinite numbers (JSON has none), and to replace a file unless asked.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from regimen.errors import RolloutError, UsageError

BLOCK = 1 << 16


def encode_row(row: Any) -> bytes:
    """A row as one line of JSON with its newline; raises `RolloutError` for what JSON cannot say."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=msgspec.to_builtins)
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate: only its escape can be written
        return json.dumps(row, allow_nan=False, separators=(",", ":"), default=msgspec.to_builtins).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise RolloutError(f"a row cannot be written as JSON: {error}", expected="finite numbers and text") from None


class JsonLinesWriter:
    """Appends rows to a file, each flushed when written, all on disk when closed.

    A half-written last line, left by a process that was killed, is removed when the file is opened.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.num_written = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = self.path.open("ab+")
            _drop_half_line(self._file)
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def write(self, row: Any) -> None:
        """Append one row and flush it."""
        line = encode_row(row)
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        self.num_written += 1

    def close(self) -> None:
        """Put everything on disk and close; closing twice is allowed."""
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise _cannot_write(self.path, error) from None

    def __enter__(self) -> JsonLinesWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_rows_atomically(path: Path | str, rows: Iterable[Any], overwrite: bool = False) -> int:
    """Write all rows or nothing: under a temporary name in the same folder, then renamed. Returns their number."""
    path = Path(path)
    refuse_existing(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for row in rows:
                file.write(encode_row(row))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return count


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `UsageError` when `path` exists and nobody asked to replace it."""
    if path.exists() and not overwrite:
        raise UsageError("the file exists", where=str(path), fix="choose another name, or ask to overwrite it")


def _cannot_write(path: Path, error: OSError) -> RolloutError:
    return RolloutError(f"cannot be written: {error.strerror or error}", where=str(path))


def _drop_half_line(file: BinaryIO) -> None:
    """Cut the file after its last newline; a last line that is whole JSON only lacks its newline and gets it."""
    size = file.seek(0, os.SEEK_END)
    start, tail = size, b""
    while start > 0 and b"\n" not in tail:
        step = min(BLOCK, start)
        start -= step
        file.seek(start)
        tail = file.read(step) + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    if not last:
        return
    try:
        msgspec.json.decode(last)
        file.write(b"\n")
    except msgspec.DecodeError:
        file.truncate(size - len(last))
