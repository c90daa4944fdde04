"""Prompts that must not be trained on: those of an evaluation file, word for word or nearly.

In: an evaluation file (rollouts, task rows, or rows with messages, a prompt or an input), and prompts to look for.
Out: a `Match` for a prompt that is there. Two prompts are the same when their words are, and near when their sets of
five-word sequences overlap: the overlap is estimated from 128 minimal hashes, to about 0.04. Only the evaluation side
is held in memory, some 2 kB a prompt, whatever their length.
Refuses, with `ConvertError`: an evaluation file with a line that holds no prompt, or without any.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from regimen.convert.contamination import Match, prompt_of_row
from regimen.errors import ConvertError, UsageError

NUM_HASHES = 128
SHINGLE = 5
# Shingles hashed at once: 128 of these rows of numbers take 4 MB.
CHUNK = 4096
WORD = re.compile(r"\w+|[^\w\s]")
MASK = (1 << 64) - 1

Hashes = NDArray[np.uint64]


class Evaluation:
    """The prompts of an evaluation file, to be looked up by exact and near equality."""

    def __init__(self, prompts: Iterator[tuple[int, str]], similarity: float) -> None:
        self.similarity = similarity
        self.exact: dict[bytes, int] = {}
        lines: list[int] = []
        signatures: list[Hashes] = []
        for line, text in prompts:
            words = words_of(text)
            if self.exact.setdefault(_digest(words), line) == line:
                lines.append(line)
                signatures.append(signature(words))
        self.lines = lines
        self.signatures = np.array(signatures, dtype=np.uint64).reshape(len(lines), NUM_HASHES)
        self.band = _band_size(similarity)
        bands = _bands(self.signatures, self.band)
        self.order: NDArray[np.int64] = np.argsort(bands, axis=0, kind="stable")
        self.bands: Hashes = np.take_along_axis(bands, self.order, axis=0)

    def find(self, text: str) -> Match | None:
        """The most similar prompt of the file, where it reaches the similarity asked for."""
        words = words_of(text)
        line = self.exact.get(_digest(words))
        if line is not None:
            return Match("exact", 1.0, line)
        mine = signature(words)
        near = self._candidates(_bands(mine[None, :], self.band)[0])
        if near.size == 0:
            return None
        shares = (self.signatures[near] == mine).mean(axis=1)
        best = int(shares.argmax())
        if shares[best] < self.similarity:
            return None
        return Match("near", round(float(shares[best]), 3), self.lines[int(near[best])])

    def _candidates(self, bands: Hashes) -> NDArray[np.int64]:
        """Prompts that share a band of minimal hashes, each once."""
        found: list[NDArray[np.int64]] = []
        for column in range(len(bands)):
            values, one = self.bands[:, column], bands[column : column + 1]
            (start,) = np.searchsorted(values, one, side="left").tolist()
            (stop,) = np.searchsorted(values, one, side="right").tolist()
            found.append(self.order[start:stop, column])
        return np.unique(np.concatenate(found))


def read_evaluation(path: Path, similarity: float) -> Evaluation:
    """Read the prompts of an evaluation file; raises for a missing file and for a line that holds no prompt."""
    if not path.is_file():
        raise UsageError("no such file", where=str(path), expected="an evaluation file for --against")
    evaluation = Evaluation(_prompts(path), similarity)
    if not evaluation.lines:
        raise ConvertError("holds no prompts", where=str(path), expected="an evaluation file for --against")
    return evaluation


def _prompts(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConvertError(f"not JSON ({error})", where=f"{path}:{number}") from None
            text = prompt_of_row(cast("dict[str, Any]", row)) if isinstance(row, dict) else None
            if text is None:
                raise ConvertError(
                    "holds no prompt",
                    where=f"{path}:{number}",
                    expected="responses_create_params, messages, context, prompt, input, question or problem",
                )
            yield number, text


def words_of(text: str) -> list[str]:
    """Words and signs, in one spelling of case and of characters that look alike."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def signature(words: list[str]) -> Hashes:
    """128 minimal hashes of the five-word sequences; a shorter text is one sequence."""
    last = max(len(words) - SHINGLE, 0)
    shingles = {zlib.crc32("\x00".join(words[i : i + SHINGLE]).encode("utf-8", "replace")) for i in range(last + 1)}
    values = np.fromiter(shingles, dtype=np.uint64, count=len(shingles))
    smallest = np.full(NUM_HASHES, MASK, dtype=np.uint64)
    for start in range(0, len(values), CHUNK):
        # Multiply and shift, in whole numbers that wrap around: the upper half of the product is the hash.
        hashed = (values[None, start : start + CHUNK] * FACTORS[:, None] + OFFSETS[:, None]) >> np.uint64(32)
        smallest = np.minimum(smallest, hashed.min(axis=1))
    return smallest


def _factors() -> tuple[Hashes, Hashes]:
    """The hash functions: fixed numbers, since signatures are only compared with each other."""
    numbers = [hashlib.sha256(f"minhash {index}".encode()).digest() for index in range(NUM_HASHES)]
    factors = [int.from_bytes(number[:8], "big") | 1 for number in numbers]
    offsets = [int.from_bytes(number[8:16], "big") for number in numbers]
    return np.array(factors, dtype=np.uint64), np.array(offsets, dtype=np.uint64)


FACTORS, OFFSETS = _factors()


def _band_size(similarity: float) -> int:
    """Hashes per band, so few that hardly a prompt of that similarity shares no band (2% of them at most)."""
    return next(size for size in (8, 4, 2, 1) if (1 - similarity**size) ** (NUM_HASHES // size) < 0.02 or size == 1)


def _bands(signatures: Hashes, size: int) -> Hashes:
    """One number for each band of each signature."""
    grouped = signatures.reshape(len(signatures), NUM_HASHES // size, size)
    mixed = np.zeros(grouped.shape[:2], dtype=np.uint64)
    for column in range(size):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + grouped[:, :, column]
    return mixed


def _digest(words: list[str]) -> bytes:
    return hashlib.blake2b("\x00".join(words).encode("utf-8", "replace"), digest_size=16).digest()
