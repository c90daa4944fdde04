"""Decompressing a stream of blocks, never more than a bounded piece at a time.

In: blocks of gzip or zstd data. Out: blocks of what was compressed.
Refuses, with `RolloutError`: data that is broken or ends too early, after everything before the damage.
zstd needs the package `zstandard`, which is imported when it is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from regimen.errors import RolloutError, UsageError

PIECE = 1 << 20
# One byte of zstd can become 32 KiB, and the package sets no bound of its own.
ZSTD_PIECE = 2 << 10
GZIP_BITS = 31


def import_extra(name: str, use: str) -> Any:
    """A package of the extra `data`, or an error that names the extra."""
    try:
        return import_module(name)
    except ImportError:
        raise UsageError(
            f"{use} needs the package {name.split('.')[0]}, which is not installed",
            fix="pip install 'regimen-rl[data]'",
        ) from None


def gunzip(blocks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """What was compressed, of one or more gzip members; zeros after the last are padding."""
    machine = zlib.decompressobj(GZIP_BITS)
    for block in blocks:
        while block:
            if machine.eof:
                block = block.lstrip(b"\0")
                if not block:
                    break
                machine = zlib.decompressobj(GZIP_BITS)
            try:
                yield machine.decompress(block, PIECE)
            except zlib.error as error:
                raise _broken("gzip", path, f"are broken ({error})") from None
            block = machine.unused_data if machine.eof else machine.unconsumed_tail
    yield machine.flush()
    if not machine.eof:
        raise _broken("gzip", path, "end too early")


def unzstd(blocks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """What was compressed, of one or more zstd frames."""
    package = import_extra("zstandard", "reading zstd")
    maker = package.ZstdDecompressor()
    machine: Any = maker.decompressobj()
    for block in blocks:
        for start in range(0, len(block), ZSTD_PIECE):
            piece = block[start : start + ZSTD_PIECE]
            while piece:
                machine = maker.decompressobj() if machine.eof else machine
                try:
                    yield machine.decompress(piece)
                except package.ZstdError as error:
                    raise _broken("zstd", path, f"are broken ({error})") from None
                piece = machine.unused_data
    if not machine.eof:
        raise _broken("zstd", path, "end too early")


def _broken(kind: str, path: Path, seen: str) -> RolloutError:
    return RolloutError(
        f"the {kind} data {seen}; the rows before that were read",
        where=str(path),
        fix="copy or compress the file again",
    )
