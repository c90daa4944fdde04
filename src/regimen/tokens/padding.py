"""Dividing rows that will be padded into micro-batches under a token budget.

In: units of rows (a row, or those of a pair) and the rows' lengths. Out: groups of rows, those of about equal lengths
together, so that little is filled up. Refuses nothing: a unit beyond the budget gets a group of its own.
"""

from __future__ import annotations

from collections.abc import Sequence


def padded_groups(
    units: Sequence[list[int]], lengths: Sequence[int], token_budget: int, num_shares: int = 1
) -> list[list[int]]:
    """Groups of whole units, in which rows times the longest row is at most `token_budget`.

    Where the budget gives fewer than `num_shares`, the largest groups are halved until there are as many.
    """
    ordered = sorted(units, key=lambda unit: -max(lengths[row] for row in unit))
    groups: list[list[list[int]]] = []
    for unit in ordered:
        if not groups or _size([*groups[-1], unit], lengths) > token_budget:
            groups.append([])
        groups[-1].append(unit)
    while len(groups) < min(num_shares, len(ordered)):
        place = max((g for g in range(len(groups)) if len(groups[g]) > 1), key=lambda g: _size(groups[g], lengths))
        half = len(groups[place]) // 2
        groups[place : place + 1] = [groups[place][:half], groups[place][half:]]
    return [[row for unit in group for row in unit] for group in groups]


def _size(units: Sequence[list[int]], lengths: Sequence[int]) -> int:
    """Tokens of the rows, filling included."""
    return sum(map(len, units)) * max(lengths[row] for unit in units for row in unit)
