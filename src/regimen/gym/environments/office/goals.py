"""What a task wants to be different in the end, and whether it is, and nothing else.

In: the state before, the state after, the goals of a task row. Out: how many goals are met, and how many changes
nobody asked for. A goal adds a row, changes fields of one or removes one; each change can meet one goal. A field that
is not named may be anything in a row that is added, and must be what it was in a row that is changed. A wanted value
is compared as it is; of a text, `contains`, `lacks` and `max_words` may be asked instead, so that a letter that copies
the whole mailbox is no answer.
Refuses, with `GymError`, goals that do not have this form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from regimen.errors import GymError
from regimen.gym.environments.office.database import LISTS, Record, State

Change = tuple[str, str, str, Record]  # what is done, the table, the id, the fields that are new


class TextRule(msgspec.Struct, forbid_unknown_fields=True):
    """What a text must hold, may not hold, and how long it may be; letter case does not count."""

    contains: list[str] = []
    lacks: list[str] = []
    max_words: int = 100


class Goal(msgspec.Struct, forbid_unknown_fields=True):
    """One difference: `do` is add, change or remove; an added row has no id yet."""

    do: str
    table: str
    id: str | None = None
    fields: dict[str, Any] = {}


class Outcome(msgspec.Struct, frozen=True):
    """How a state compares with the goals."""

    num_goals: int
    num_met: int
    num_unwanted: int


def read_goals(value: object) -> list[Goal]:
    """The goals in a task row; a task without one cannot be judged."""
    try:
        goals = msgspec.convert(value, list[Goal])
    except msgspec.ValidationError as error:
        raise GymError(f"the goals: {error}", where="goals") from error
    for goal in goals:
        if goal.do not in ("add", "change", "remove") or (goal.do == "add") != (goal.id is None):
            raise GymError(
                f"a goal is {goal.do!r} with id {goal.id!r}", expected="add without id; change or remove with one"
            )
    if not goals:
        raise GymError("the task has no goals", expected="one or more")
    return goals


def compare(before: State, after: State, goals: Sequence[Goal]) -> Outcome:
    """Match the changes with the goals, each with one."""
    left = list(goals)
    unwanted = 0
    for change in changes(before, after):
        met = next((goal for goal in left if _meets(change, goal)), None)
        if met is None:
            unwanted += 1
        else:
            left.remove(met)
    return Outcome(num_goals=len(goals), num_met=len(goals) - len(left), num_unwanted=unwanted)


def changes(before: State, after: State) -> list[Change]:
    """What is different."""
    found: list[Change] = []
    for table, rows in before.items():
        now = after[table]
        found += [("remove", table, id, {}) for id in rows if id not in now]
        found += [("add", table, id, row) for id, row in now.items() if id not in rows]
        for id in rows.keys() & now.keys():
            new = {name: value for name, value in now[id].items() if value != rows[id][name]}
            if new:
                found.append(("change", table, id, new))
    return found


def _meets(change: Change, goal: Goal) -> bool:
    do, table, id, fields = change
    if (do, table) != (goal.do, goal.table) or goal.id not in (None, id):
        return False
    if do == "change" and fields.keys() != goal.fields.keys():
        return False
    return all(name in fields and _is_wanted(name, fields[name], wanted) for name, wanted in goal.fields.items())


def _is_wanted(name: str, value: Any, wanted: Any) -> bool:
    if name in LISTS:
        return sorted(value) == sorted(wanted)
    if not isinstance(wanted, Mapping):
        return value == wanted
    try:
        rule = msgspec.convert(wanted, TextRule)
    except msgspec.ValidationError as error:
        raise GymError(f"the goals: {error}", where=f"fields.{name}") from error
    text = cast("str", value or "").lower()
    held = all(part.lower() in text for part in rule.contains)
    return held and not any(part.lower() in text for part in rule.lacks) and len(text.split()) <= rule.max_words
