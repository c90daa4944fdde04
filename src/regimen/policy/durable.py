"""Files and folders that are on the disk before they have their name.

In: something finished under a temporary name. Out: the same under its own name, which survives a loss of power.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def sync(path: Path) -> None:
    """Hand a file or the entries of a folder to the disk; where the file system has no such thing, do nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse it for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Hand a folder and everything below it to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def rename_durably(temporary: Path, final: Path) -> None:
    """Give `temporary` its name, replacing a file of that name; both the content and the name are on the disk then."""
    sync(temporary)
    temporary.replace(final)
    sync(final.parent)
