"""The count that must balance: every input row in exactly one named bucket, sampled tokens beside it.

In: rows, as the conversion decides about them. Out: buckets, uses and notes for the manifest.
Refuses: a row counted twice, a bucket without a meaning, and totals that do not balance (`ConvertError`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from regimen.errors import ConvertError

# The buckets and what each one says; `failed:<outcome>` is the only family.
MEANINGS: dict[str, str] = {
    "trained": "in train.jsonl",
    "validation": "in val.jsonl",
    "where": "does not meet the condition of --where",
    "contaminated": "its prompt is one of the evaluation file's, or nearly",
    "below_threshold": "reward under the threshold",
    "duplicate": "same messages as another row of its task",
    "capped": "more rows or pairs than asked for per task",
    "balanced": "more rows of its environment than --balance allows",
    "no_tool_use": "no tool call, and tool use was required",
    "too_few_turns": "fewer model calls than --min-turns",
    "no_assistant_message": "nothing the model wrote",
    "not_simple": "cannot be said in the strings of the chosen format",
    "no_answer": "its task has no answer that can be written as text",
    "alone_in_task": "no other scored row with the same task and prompt",
    "no_variance": "all rewards of its task and prompt are equal",
    "gap_too_small": "no partner with a large enough reward gap",
    "identical_pair": "same answer as every partner, with another reward",
    "not_paired": "in no pair that the strategy takes",
    "between_thresholds": "reward between --low-threshold and --high-threshold",
    "no_partner": "no row of the other side was left to pair with",
    "pass_rate_too_low": "its task is solved less often than --min-pass-rate",
    "pass_rate_too_high": "its task is solved more often than --max-pass-rate",
    "left_out_of_mix": "its task is more than its environment's share of --mix",
    "quarantined": "unreadable; kept in quarantine.jsonl with its reason",
}
FAILED = "failed:"


def meaning_of(bucket: str) -> str:
    """What `bucket` says about a row; raises `ConvertError` for a bucket that nobody has named."""
    if bucket.startswith(FAILED):
        return f"ended as {bucket.removeprefix(FAILED)}: no reward of the model's"
    if bucket not in MEANINGS:
        raise ConvertError(f"bucket {bucket!r} has no meaning", expected=f"one of {', '.join(MEANINGS)}")
    return MEANINGS[bucket]


class LedgerTotals(msgspec.Struct, frozen=True, kw_only=True):
    """A closed ledger. `uses` counts appearances of rows in what was written (a DPO row may stand in many pairs)."""

    num_rows: int
    rows: dict[str, int]
    num_tokens: int
    tokens: dict[str, int]
    uses: dict[str, int]
    notes: dict[str, int]


class Ledger:
    """Counts rows once each. `count` by row key; `count_many` for rows that only have a number.

    Keys are held to see a row counted twice. Where that is too much for all rows of all files, each group of rows
    that cannot stand in another group gets a ledger of its own, and `add` takes over its counts without its keys.
    """

    def __init__(self) -> None:
        self._bucket_of: dict[tuple[str, int], str] = {}
        self._rows: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._uses: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()

    def count(self, key: tuple[str, int], bucket: str, num_tokens: int = 0) -> None:
        """Put the row `key` (path, line) with its sampled tokens into `bucket`; raises when it already has one."""
        self.count_rows((key,), bucket, num_tokens)

    def count_rows(self, keys: Sequence[tuple[str, int]], bucket: str, num_tokens: int = 0) -> None:
        """`count` for rows that share a bucket, with their sampled tokens together."""
        if bucket not in MEANINGS:
            meaning_of(bucket)
        bucket_of = self._bucket_of
        for key in keys:
            if key in bucket_of:
                raise ConvertError(
                    f"row counted as {bucket_of[key]!r} and again as {bucket!r}", where=f"{key[0]}:{key[1]}"
                )
            bucket_of[key] = bucket
        self._rows[bucket] += len(keys)
        if num_tokens:
            self._tokens[bucket] += num_tokens

    def count_many(self, bucket: str, num_rows: int, num_tokens: int = 0) -> None:
        """Put rows that were never turned into records, with their sampled tokens together, into `bucket`."""
        meaning_of(bucket)
        if num_rows:
            self._rows[bucket] += num_rows
        if num_tokens:
            self._tokens[bucket] += num_tokens

    def add(self, other: Ledger) -> None:
        """Take over the counts of a ledger over other rows."""
        for mine, theirs in (
            (self._rows, other._rows),
            (self._tokens, other._tokens),
            (self._uses, other._uses),
            (self._notes, other._notes),
        ):
            mine.update(theirs)

    def forget_keys(self) -> None:
        """Keep the counts alone: no row can be counted any more and be seen to be a second time."""
        self._bucket_of.clear()

    def use(self, name: str, num_uses: int = 1) -> None:
        """Count an appearance in the written rows, apart from the rows themselves."""
        if num_uses:
            self._uses[name] += num_uses

    def note(self, name: str, num_rows: int = 1) -> None:
        """Count something worth telling that does not decide where a row goes."""
        if num_rows:
            self._notes[name] += num_rows

    def bucket_of(self, key: tuple[str, int]) -> str | None:
        """The bucket of the row `key`, or None when it is not counted yet."""
        return self._bucket_of.get(key)

    def rows_in(self, bucket: str) -> int:
        """Number of rows in `bucket`."""
        return self._rows[bucket]

    def close(self, num_rows: int, num_tokens: int) -> LedgerTotals:
        """Compare with the totals counted while reading; raises `ConvertError` when either does not balance."""
        for what, expected, buckets in (("rows", num_rows, self._rows), ("sampled tokens", num_tokens, self._tokens)):
            if buckets.total() != expected:
                counted = ", ".join(f"{name} {count}" for name, count in sorted(buckets.items())) or "nothing"
                raise ConvertError(
                    f"the ledger does not balance: {expected} {what} read, {buckets.total()} counted ({counted})"
                )
        return LedgerTotals(
            num_rows=num_rows,
            rows=_ordered(self._rows),
            num_tokens=num_tokens,
            tokens=_ordered(self._tokens),
            uses=dict(sorted(self._uses.items())),
            notes=dict(sorted(self._notes.items())),
        )


def _ordered(counts: Counter[str]) -> dict[str, int]:
    order = {name: index for index, name in enumerate(MEANINGS)}
    return dict(sorted(counts.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))
