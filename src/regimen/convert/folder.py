"""A folder that appears whole or not at all.

In: the path of the folder. Out: a temporary sibling to write into, renamed to the path when all went well.
Refuses: a folder that has files, unless asked to overwrite; and with that, a folder that convert did not write.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from regimen.errors import ConvertError, UsageError

# What a converted folder may hold; a folder with anything else is somebody's, and is never replaced.
KNOWN_FILES = frozenset(
    {
        "train.jsonl",
        "val.jsonl",
        "train.sidecar.jsonl",
        "val.sidecar.jsonl",
        "manifest.json",
        "quarantine.jsonl",
    }
)


@contextmanager
def folder_written_whole(out: Path, overwrite: bool) -> Generator[Path]:
    """Give a temporary folder beside `out`; it becomes `out` when the block ends, and vanishes when it raises."""
    refuse_occupied(out, overwrite)
    _remove_orphans(out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        _replace(out, temporary)
    except OSError as error:
        raise ConvertError(f"cannot be written: {error.strerror or error}", where=str(out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_orphans(out: Path) -> None:
    """Remove what conversions into `out` left that were killed; the number in the name is their process."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition(".")[2]
        if number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        return True
    return True


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Raise `UsageError` where writing `out` would replace something that nobody asked to replace."""
    if out.exists() and not out.is_dir():
        raise UsageError("is a file", where=str(out), expected="the name of a folder to write")
    found = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if found and not overwrite:
        raise UsageError(
            f"the folder is not empty ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})",
            where=str(out),
            fix="choose another --out, or replace it with --overwrite",
        )
    foreign = [name for name in found if name not in KNOWN_FILES]
    if foreign:
        raise UsageError(
            f"holds files that convert did not write ({', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''})",
            where=str(out),
            fix="choose another --out; --overwrite replaces converted folders only",
        )


def _replace(out: Path, temporary: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
