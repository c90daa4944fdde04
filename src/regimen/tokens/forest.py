"""The token forest: one batch shape for every algorithm, in which a shared prefix stands once.

In: `TrainingSequence`s (token ids, which of them are trained, what the loss needs). Out: a `Forest`.
Token q sees token k exactly when `k <= q < end[k]`: causal attention, packing and prefix sharing in one line.

Refuses: an empty sequence, a trained first token (nothing predicts it), values of the wrong length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from regimen.errors import TokenError

Ints = np.ndarray  # int64
Floats = np.ndarray  # float32


@dataclass(frozen=True, slots=True)
class TrainingSequence:
    """One token sequence and its supervision.

    `spans` are half-open ranges of `ids` to train on. The per-token arrays hold one float32 for each trained token, in
    order; an empty one means zeros. `sample_mask` 0 keeps a sequence in the batch and out of the loss.
    """

    ids: Sequence[int] | np.ndarray
    spans: Sequence[tuple[int, int]]
    episode: int = 0
    pair: int = -1
    is_chosen: bool = False
    sample_mask: float = 1.0
    advantage: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    sampled_logprob: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    previous_logprob: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    reference_logprob: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def num_trained(self) -> int:
        """Number of trained tokens."""
        return sum(stop - start for start, stop in self.spans)

    def trained_positions(self) -> np.ndarray:
        """Positions of the trained tokens, `[num_trained]` int64."""
        if not self.spans:
            return np.zeros(0, np.int64)
        return np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in self.spans])


@dataclass(frozen=True, slots=True)
class Forest:
    """A micro-batch: T tokens in depth-first pre-order, E supervised entries, S sequences.

    `weight` is the sample mask of the entry's sequence. `valid_tokens` and `valid_sequences` are those of the whole
    global batch, so that losses of micro-batches add up.
    """

    tokens: Ints  # [T]
    depth: Ints  # [T] position id: distance from the root
    parent: Ints  # [T] previous token on the path, -1 at a root
    end: Ints  # [T] one past the last token of the subtree
    target: Ints  # [E] token to predict
    sequence: Ints  # [E] row of the sequence table
    weight: Floats  # [E]
    advantage: Floats  # [E]
    sampled_logprob: Floats  # [E]
    previous_logprob: Floats  # [E]
    reference_logprob: Floats  # [E]
    row: Ints  # [S] index of the sequence in the list the forest was built from
    episode: Ints  # [S]
    pair: Ints  # [S] -1 where the sequence is in no pair
    is_chosen: np.ndarray  # [S] bool
    sample_mask: Floats  # [S]
    num_trained: Floats  # [S]
    valid_tokens: float
    valid_sequences: float

    @property
    def num_tokens(self) -> int:
        """Tokens to compute: T."""
        return len(self.tokens)

    def path(self, token: int) -> np.ndarray:
        """Indices from the root to `token`, in order."""
        indices: list[int] = []
        while token >= 0:
            indices.append(token)
            token = int(self.parent[token])
        return np.array(indices[::-1], np.int64)

    def visible(self) -> np.ndarray:
        """The mask, `[T, T]` bool: row q, column k is whether token q sees token k."""
        query = np.arange(self.num_tokens)[:, None]
        key = np.arange(self.num_tokens)[None, :]
        return (key <= query) & (query < self.end[None, :])


def common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    """Length of the longest common prefix of two id arrays."""
    shorter = min(len(left), len(right))
    differ = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(differ[0]) if len(differ) else shorter


def normalisers(sequences: Sequence[TrainingSequence]) -> tuple[float, float]:
    """Valid tokens and valid sequences of a global batch: the divisors of every loss."""
    tokens = sum(sequence.num_trained * sequence.sample_mask for sequence in sequences)
    return float(tokens), float(sum(sequence.sample_mask for sequence in sequences))


def lexicographic_order(arrays: Sequence[np.ndarray]) -> list[int]:
    """Indices that sort id arrays so that neighbours share the longest prefixes (a prefix before its extensions)."""
    keys = [array.astype(">i8").tobytes() for array in arrays]
    return sorted(range(len(arrays)), key=keys.__getitem__)


def build_forest(
    sequences: Sequence[TrainingSequence],
    *,
    rows: Sequence[int] | None = None,
    valid_tokens: float | None = None,
    valid_sequences: float | None = None,
    share: bool = True,
) -> Forest:
    """Lay `sequences` out as a forest.

    Sorted lexicographically, each sequence adds the tokens behind its common prefix with the one before it: that is the
    trie in pre-order. `share=False` gives every sequence a tree of its own (packing without sharing).
    `rows` names the sequences in `Forest.row`; the normalisers default to those of `sequences`.

    Raises `TokenError` for an empty sequence, a trained first token, or a per-token array of the wrong length.
    """
    arrays = [np.asarray(sequence.ids, dtype=np.int64) for sequence in sequences]
    for index, sequence in enumerate(sequences):
        _check(sequence, arrays[index], index)
    tokens, depth, parent, end, paths = _layout(arrays, share)
    tokens_total, sequences_total = normalisers(sequences)
    counts = [sequence.num_trained for sequence in sequences]
    targets = [paths[i][s.trained_positions()] for i, s in enumerate(sequences)]
    masks = np.array([s.sample_mask for s in sequences], np.float32)
    return Forest(
        tokens=tokens,
        depth=depth,
        parent=parent,
        end=end,
        target=np.concatenate(targets) if targets else np.zeros(0, np.int64),
        sequence=np.repeat(np.arange(len(sequences), dtype=np.int64), counts),
        weight=np.repeat(masks, counts),
        advantage=_column(sequences, "advantage"),
        sampled_logprob=_column(sequences, "sampled_logprob"),
        previous_logprob=_column(sequences, "previous_logprob"),
        reference_logprob=_column(sequences, "reference_logprob"),
        row=np.array(range(len(sequences)) if rows is None else rows, np.int64),
        episode=np.array([s.episode for s in sequences], np.int64),
        pair=np.array([s.pair for s in sequences], np.int64),
        is_chosen=np.array([s.is_chosen for s in sequences], bool),
        sample_mask=masks,
        num_trained=np.array(counts, np.float32),
        valid_tokens=tokens_total if valid_tokens is None else valid_tokens,
        valid_sequences=sequences_total if valid_sequences is None else valid_sequences,
    )


def _check(sequence: TrainingSequence, ids: np.ndarray, index: int) -> None:
    where = f"training sequence {index}"
    if len(ids) == 0:
        raise TokenError("holds no token", where=where)
    previous = 0
    for start, stop in sequence.spans:
        if start < 1:
            raise TokenError("trains its first token, which nothing predicts", where=where)
        if not previous <= start < stop <= len(ids):
            raise TokenError(f"span {start}:{stop} is empty, out of order or past {len(ids)} tokens", where=where)
        previous = stop
    for name in ("advantage", "sampled_logprob", "previous_logprob", "reference_logprob"):
        size = len(getattr(sequence, name))
        if size not in (0, sequence.num_trained):
            raise TokenError(f"{name} has {size} values for {sequence.num_trained} trained tokens", where=where)


def _column(sequences: Sequence[TrainingSequence], name: str) -> np.ndarray:
    parts: list[np.ndarray] = []
    for sequence in sequences:
        values = np.asarray(getattr(sequence, name), np.float32)
        parts.append(values if len(values) else np.zeros(sequence.num_trained, np.float32))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _layout(
    arrays: Sequence[np.ndarray], share: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Tokens, depth, parent, end, and for each array the forest index of each of its tokens."""
    paths: list[np.ndarray] = [np.zeros(0, np.int64)] * len(arrays)
    capacity = sum(len(array) for array in arrays)
    tokens, depth, parent, end = (np.zeros(capacity, np.int64) for _ in range(4))
    size = 0
    path = np.zeros(0, np.int64)
    last = np.zeros(0, np.int64)
    for index in lexicographic_order(arrays):
        ids = arrays[index]
        shared = common_prefix(last, ids) if share else 0
        end[path[shared:]] = size
        fresh = np.arange(size, size + len(ids) - shared)
        tokens[fresh] = ids[shared:]
        depth[fresh] = np.arange(shared, len(ids))
        parent[fresh] = fresh - 1
        if len(fresh):
            parent[fresh[0]] = path[shared - 1] if shared else -1
        path = np.concatenate([path[:shared], fresh])
        paths[index], last, size = path, ids, size + len(fresh)
    end[path] = size
    return tokens[:size], depth[:size], parent[:size], end[:size], paths
