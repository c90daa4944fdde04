"""Rows of Parquet and Arrow files as JSON lines.

In: a Parquet file, or Arrow data as `datasets` saves it. Out: one JSON line per row, read in small batches.
A table has every column in every row and every field in every object: a null there says that the field is absent, so
it is left out, at every depth. Columns that rollouts keep objects in may hold them as JSON text: it is decoded.
Refuses, with `RolloutError`: files that pyarrow cannot read. The package is imported when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from regimen.errors import RolloutError
from regimen.rollouts.compression import import_extra
from regimen.rollouts.lines import decode_row

BATCH = 64
# Columns are read through a buffer of this size, not whole row groups at once.
BUFFER = 1 << 20
# JSON text may hold escapes that are half a character.
ANY_TEXT = ("utf-8", "surrogatepass")
JSON_COLUMNS = ("responses_create_params", "response", "output", "agent_ref", "reward_components", "regimen")


def parquet_lines(path: Path) -> Iterator[bytes]:
    """The rows of a Parquet file, read by row groups."""
    pyarrow = import_extra("pyarrow", "reading Parquet")
    parquet = import_extra("pyarrow.parquet", "reading Parquet")
    try:
        with parquet.ParquetFile(str(path), buffer_size=BUFFER, pre_buffer=False) as file:
            yield from _lines(file.iter_batches(batch_size=BATCH, use_threads=False))
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable("Parquet", path, error) from None


def arrow_lines(path: Path) -> Iterator[bytes]:
    """The rows of an Arrow stream, or of an Arrow file."""
    pyarrow = import_extra("pyarrow", "reading Arrow data")
    ipc = import_extra("pyarrow.ipc", "reading Arrow data")
    try:
        with pyarrow.OSFile(str(path)) as file:
            is_file = bytes(file.read(6)) == b"ARROW1"
            file.seek(0)
            yield from _lines(_file_batches(ipc.open_file(file)) if is_file else ipc.open_stream(file))
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable("Arrow", path, error) from None


def _file_batches(reader: Any) -> Iterator[Any]:
    for index in range(reader.num_record_batches):
        yield reader.get_batch(index)


def _lines(batches: Iterable[Any]) -> Iterator[bytes]:
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for row in batch.slice(start, BATCH).to_pylist():
                yield _encode(cast("dict[str, Any]", _without_nulls(row)))


def _encode(row: dict[str, Any]) -> bytes:
    for column in JSON_COLUMNS:
        value = row.get(column)
        if isinstance(value, str):
            row[column] = _decoded(value)
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), default=_as_text)
    return text.encode(*ANY_TEXT) + b"\n"


def _decoded(text: str) -> Any:
    """The object or list that a text holds; any other text is itself."""
    if not text.lstrip().startswith(("{", "[")):
        return text
    try:
        return decode_row(text.encode())
    except RolloutError:
        return text


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {key: _without_nulls(inner) for key, inner in named.items() if inner is not None}
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if items and isinstance(items[0], tuple):  # a column of maps: pairs of key and value
            return {str(key): _without_nulls(inner) for key, inner in items if inner is not None}
        return [_without_nulls(item) for item in items]
    return value


def _as_text(value: Any) -> str:
    """Dates, decimals and bytes, which JSON has not."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _unreadable(kind: str, path: Path, error: Exception) -> RolloutError:
    return RolloutError(
        f"the {kind} data cannot be read ({' '.join(str(error).split())[:200]}); the rows before that were read",
        where=str(path),
        fix="copy or write the file again",
    )
