"""The paper that goes with a converted folder: what went in, what was decided, what came out.

In: files, options, the closed ledger. Out: `Manifest`, written as manifest.json, so that a checkpoint trained on the
folder can be traced back to its rollouts. Refuses: a manifest.json that is not one (`ConvertError`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from regimen.convert.balance import MixCount
from regimen.convert.ledger import LedgerTotals
from regimen.convert.options import ConvertOptions
from regimen.convert.screen import Screened
from regimen.errors import ConvertError

VERSION = 1
FILE = "manifest.json"
BLOCK = 1 << 20


class InputFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was read. `role`: rollouts, tasks, failures or evaluation; `xxh128` as `xxh128sum` prints it."""

    path: str
    role: str
    size: int
    xxh128: str


class OutputFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the folder."""

    name: str
    rows: int
    size: int
    xxh128: str


class Rewards(msgspec.Struct, frozen=True, kw_only=True):
    """The rewards of all scored rows, before any filter."""

    num_scored: int
    kind: str
    lowest: float
    highest: float
    mean: float


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Rows and tasks of the two training files, and tasks seen in the input."""

    train_rows: int
    validation_rows: int
    train_tasks: int
    validation_tasks: int
    tasks_seen: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a reader of the folder needs to know. Fingerprints map to the number of rows that were read whole.

    `environments` counts written rows by task name; `verified_rows` is None where nobody asked to verify.
    """

    version: int = VERSION
    created: str
    tool: dict[str, str]
    target: str
    format: str
    options: ConvertOptions
    inputs: list[InputFile]
    rewards: Rewards
    counts: Counts
    ledger: LedgerTotals
    outputs: list[OutputFile]
    tokenizers: dict[str, int]
    templates: dict[str, int]
    warnings: list[str]
    environments: dict[str, int] = {}
    mix: dict[str, MixCount] = {}
    screened: Screened | None = None
    verified_rows: int | None = None


def tool_version() -> str:
    """The installed version, or "unknown" when the package runs from a source tree."""
    try:
        return version("regimen-rl")
    except PackageNotFoundError:
        return "unknown"


def now() -> str:
    """The time of writing, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def input_file(path: Path, role: str) -> InputFile:
    """Describe a file that was read."""
    return InputFile(path=str(path), role=role, size=path.stat().st_size, xxh128=xxh128_of(path))


def output_file(path: Path, num_rows: int) -> OutputFile:
    """Describe a file that was written."""
    return OutputFile(name=path.name, rows=num_rows, size=path.stat().st_size, xxh128=xxh128_of(path))


def xxh128_of(path: Path) -> str:
    """The XXH3 hash of a file's bytes, 128 bits, in hexadecimal: it tells files apart, at the speed of reading them."""
    digest, block = xxhash.xxh3_128(), bytearray(BLOCK)
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            digest.update(view[:size])
    return digest.hexdigest()


def rewards_of(rewards: Iterable[NDArray[np.float64]]) -> Rewards:
    """Summarise rewards, given as arrays one after the other; `kind` is binary where all are 0 or 1."""
    count, total, lowest, highest, binary = 0, 0.0, math.inf, -math.inf, True
    for some in rewards:
        if len(some):
            count, total = count + len(some), total + math.fsum(some)
            lowest, highest = min(lowest, float(some.min())), max(highest, float(some.max()))
            binary = binary and bool(np.isin(some, (0.0, 1.0)).all())
    if not count:
        return Rewards(num_scored=0, kind="none", lowest=0.0, highest=0.0, mean=0.0)
    kind = "binary" if binary else "continuous"
    return Rewards(num_scored=count, kind=kind, lowest=lowest, highest=highest, mean=total / count)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json into `folder`, for people to read too."""
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / FILE).write_bytes(text + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a converted folder; raises `ConvertError` when there is none, or not of this version."""
    path = folder / FILE
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ConvertError("no manifest.json", where=str(folder), expected="a folder that convert wrote") from None
    except msgspec.DecodeError as error:
        raise ConvertError(f"not a manifest: {error}", where=str(path)) from None
    if manifest.version != VERSION:
        raise ConvertError(f"version {manifest.version}", where=str(path), expected=str(VERSION))
    return manifest
