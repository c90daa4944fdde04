"""Which answers of one task are compared: the strategies of preference pairs.

In: usable episodes that answer the same prompt of the same task. Out: `Pair`s, and the rows that wait for a partner in
another task where that is allowed. Every episode in neither is counted under the first reason that left it out.
Refuses nothing by itself. Pairs across tasks are decided on light figures (`Leftover`), each row at most once.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence

import msgspec

from regimen.convert.asked import Message, with_numbered_calls
from regimen.convert.episodes import Episode, RowKey, rank, texts_of
from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.split import task_position

# Rewards are sums and means of floats: 1.0 - 0.8 must reach a gap of 0.2.
TOLERANCE = 1e-9


class Pair(msgspec.Struct, frozen=True):
    """Two episodes; `gap` is the difference of their rewards."""

    chosen: Episode
    rejected: Episode
    gap: float

    @property
    def keys(self) -> tuple[RowKey, RowKey]:
        """The rows of both sides."""
        return self.chosen.key, self.rejected.key


class Paired(msgspec.Struct, frozen=True):
    """The pairs of one task, and the rows left that may find a partner in another task."""

    pairs: list[Pair]
    left: list[Episode]


class Leftover(msgspec.Struct, frozen=True):
    """What must be known of a row to pair it across tasks."""

    environment: str | None
    task_id: str
    key: RowKey
    reward: float


Key = Callable[[Pair], float]


def pair_group(group: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> Paired:
    """The pairs of one group, by the strategy of `options`."""
    if options.strategy == "stratified":
        return _stratified(group, options, ledger)
    wide = wide_pairs(group, options.min_gap)
    texts = texts_of(group) if wide else {}
    differing = [pair for pair in wide if texts[pair.chosen.key] != texts[pair.rejected.key]]
    ledger.use("identical_pairs_dropped", len(wide) - len(differing))
    candidates, first = _candidates(differing, group, options)
    distinct = _distinct(candidates, texts, ledger)
    chosen = balanced(distinct, 1 if options.strategy == "same_prompt" else options.max_pairs_per_task, first)
    ledger.use("pairs_over_the_limit", len(distinct) - len(chosen))
    _count_unpaired(group, [chosen, distinct, candidates, differing, wide], options, ledger)
    return Paired(chosen, [])


def wide_pairs(group: Sequence[Episode], min_gap: float) -> list[Pair]:
    """All pairs of `group` whose rewards differ by at least `min_gap` and differ at all, widest first."""
    ranked = sorted(group, key=rank)
    pairs = [
        Pair(better, worse, better.reward - worse.reward)
        for better in ranked
        for worse in ranked
        if better.reward > worse.reward and better.reward - worse.reward >= min_gap - TOLERANCE
    ]
    return sorted(pairs, key=lambda pair: -pair.gap)


def widest_first(pair: Pair) -> float:
    """The order of pairs where the strategy has no other."""
    return -pair.gap


def balanced(pairs: Sequence[Pair], limit: int, first: Key = widest_first) -> list[Pair]:
    """At most `limit` pairs: those that `first` puts first, of equal ones those of the episodes used least so far."""
    uses: Counter[RowKey] = Counter()
    left = [(first(pair), pair) for pair in pairs]
    chosen: list[Pair] = []
    while left and len(chosen) < limit:
        best = min(range(len(left)), key=lambda index: (left[index][0], sum(uses[key] for key in left[index][1].keys)))
        _, pair = left.pop(best)
        uses.update(pair.keys)
        chosen.append(pair)
    return chosen


def conversation(episode: Episode) -> list[Message]:
    """All messages of an episode, with call ids that compare."""
    return with_numbered_calls([*episode.prompt, *episode.completion])


def num_shared(one: Sequence[Message], other: Sequence[Message]) -> int:
    """How many leading messages two conversations have in common."""
    differing = (index for index, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs)
    return next(differing, min(len(one), len(other)))


def _candidates(pairs: Sequence[Pair], group: Sequence[Episode], options: ConvertOptions) -> tuple[list[Pair], Key]:
    """The pairs that the strategy considers, and which of them it takes first."""
    if options.strategy == "halves":
        ranked = sorted(group, key=rank)
        half = len(ranked) // 2
        # The best meets the best of the lower half; the middle one of an odd number meets nobody.
        met = {(ranked[i].key, ranked[len(ranked) - half + i].key) for i in range(half)}
        return [pair for pair in pairs if pair.keys in met], widest_first
    if options.strategy == "length_matched":
        return _length_matched(pairs)
    if options.strategy == "branches":
        said = {episode.key: conversation(episode) for episode in group}
        shared = {pair.keys: num_shared(*(said[key] for key in pair.keys)) for pair in pairs}
        return list(pairs), lambda pair: -shared[pair.keys]
    return list(pairs), widest_first


def _length_matched(pairs: Sequence[Pair]) -> tuple[list[Pair], Key]:
    """Each chosen answer with the rejected one of the nearest length; of equally near ones the wider gap."""
    lengths = {episode.key: episode.num_characters for pair in pairs for episode in (pair.chosen, pair.rejected)}

    def distance(pair: Pair) -> float:
        return abs(lengths[pair.chosen.key] - lengths[pair.rejected.key])

    nearest: dict[RowKey, Pair] = {}
    for pair in pairs:
        known = nearest.get(pair.chosen.key)
        if known is None or distance(pair) < distance(known):
            nearest[pair.chosen.key] = pair
    return list(nearest.values()), distance


def _distinct(pairs: Sequence[Pair], texts: dict[RowKey, Hashable], ledger: Ledger) -> list[Pair]:
    """The first pair of each two texts."""
    by_text: dict[tuple[Hashable, Hashable], Pair] = {}
    for pair in pairs:
        by_text.setdefault((texts[pair.chosen.key], texts[pair.rejected.key]), pair)
    ledger.use("duplicate_pairs_dropped", len(pairs) - len(by_text))
    return list(by_text.values())


def _count_unpaired(
    group: Sequence[Episode], stages: Sequence[Sequence[Pair]], options: ConvertOptions, ledger: Ledger
) -> None:
    """Count each episode outside the chosen pairs under the first reason that left it out."""
    chosen, distinct, candidates, differing, wide = ({key for pair in pairs for key in pair.keys} for pairs in stages)
    for episode in group:
        key = episode.key
        if key in chosen:
            continue
        bucket = _without_partner(group)
        if bucket is None and key not in wide:
            bucket = "gap_too_small"
        elif bucket is None and key not in differing:
            bucket = "identical_pair"
        elif bucket is None and key not in candidates:
            bucket = "not_paired"
        elif bucket is None and key not in distinct:
            bucket = "duplicate"
        over_limit = "not_paired" if options.strategy == "same_prompt" else "capped"
        ledger.count(key, bucket or over_limit, episode.num_sampled)


def _without_partner(group: Sequence[Episode]) -> str | None:
    """Why no episode of the group has anything to be compared with."""
    if len(group) == 1:
        return "alone_in_task"
    return "no_variance" if len({episode.reward for episode in group}) == 1 else None


def _stratified(group: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> Paired:
    """High rewards with low ones, the best with the worst first, each row at most once."""
    ranked = sorted(group, key=rank)
    high = [episode for episode in ranked if episode.reward >= options.high_threshold]
    low = [episode for episode in reversed(ranked) if episode.reward <= options.low_threshold]
    texts = texts_of([*high, *low]) if high and low else {}
    matched = _matched(high, low, texts, options.min_gap)
    distinct = _distinct(matched, texts, ledger)
    chosen = distinct[: options.max_pairs_per_task]
    ledger.use("pairs_over_the_limit", len(distinct) - len(chosen))
    paired, kept, met = ({key for pair in pairs for key in pair.keys} for pairs in (chosen, distinct, matched))
    sides = {episode.key for episode in [*high, *low]}
    left: list[Episode] = []
    for episode in group:
        key = episode.key
        if key in paired:
            continue
        if key in sides - met and options.across_tasks:
            left.append(episode)
        elif key in met:
            ledger.count(key, "capped" if key in kept else "duplicate", episode.num_sampled)
        else:
            alone = _without_partner(group) or "no_partner"
            ledger.count(key, alone if key in sides else "between_thresholds", episode.num_sampled)
    return Paired(chosen, left)


def _matched(
    high: Sequence[Episode], low: Sequence[Episode], texts: dict[RowKey, Hashable], min_gap: float
) -> list[Pair]:
    """Each high with the next low that says something else and is far enough away."""
    waiting = list(low)
    pairs: list[Pair] = []
    for better in high:
        worse = next((episode for episode in waiting if texts[episode.key] != texts[better.key]), None)
        if worse is not None and better.reward - worse.reward >= min_gap - TOLERANCE:
            waiting.remove(worse)
            pairs.append(Pair(better, worse, better.reward - worse.reward))
    return pairs


def leftover_of(episode: Episode) -> Leftover:
    """The light figures of a row that waits for a partner."""
    return Leftover(episode.environment, episode.task_id, episode.key, episode.reward)


def pair_across_tasks(left: Iterable[Leftover], options: ConvertOptions) -> list[tuple[RowKey, RowKey]]:
    """Rows (chosen, rejected) of different tasks of one environment, in a seeded order, each row at most once.

    Tasks that validate are paired among themselves, so that no pair stands on both sides of the split.
    """
    pools: defaultdict[tuple[str, bool], list[Leftover]] = defaultdict(list)
    for row in left:
        validates = task_position(row.task_id, options.seed) < options.validation_fraction
        pools[row.environment or "", validates].append(row)
    return [pair for _, pool in sorted(pools.items()) for pair in _across(pool, options)]


def _across(pool: Sequence[Leftover], options: ConvertOptions) -> list[tuple[RowKey, RowKey]]:
    def position(row: Leftover) -> tuple[float, RowKey]:
        return task_position(f"across\x00{row.task_id}\x00{row.key[1]}", options.seed), row.key

    ordered = sorted(pool, key=position)
    high = [row for row in ordered if row.reward >= options.high_threshold]
    low = deque(row for row in ordered if row.reward <= options.low_threshold)
    pairs: list[tuple[RowKey, RowKey]] = []
    for better in high:
        if len(low) > 1 and low[0].task_id == better.task_id:
            low.rotate(-1)
        if not low or low[0].task_id == better.task_id or better.reward - low[0].reward < options.min_gap - TOLERANCE:
            continue
        pairs.append((better.key, low.popleft().key))
    return pairs
