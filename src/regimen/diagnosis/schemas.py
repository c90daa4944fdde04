"""Whether tools and tool calls have the same shape in all rows.

In: the tools and the calls of each row. Out: codes of the problems a row has.
Keeps one hash per tool name and per distinct list of tools, `MOST` of each; beyond that rows are compared without
being remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from regimen.rollouts.records import canonical_bytes

MOST = 10_000
Item = dict[str, Any]


class Schemas:
    """The first schema of each tool name, and the first set of argument names."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._lists: dict[int, bool] = {}
        self._last: tuple[object, bool] = (None, False)
        self._keys: frozenset[str] | None = None

    def tools_differ(self, tools: object) -> bool:
        """Whether a tool in this row's list has other parameters than the first tool of its name."""
        if not isinstance(tools, list) or not tools:
            return False
        if tools != self._last[0]:  # usually the same as in the row before, which is quickly seen
            self._last = (cast("object", tools), self._differ(cast("list[Any]", tools)))
        return self._last[1]

    def _differ(self, tools: list[Any]) -> bool:
        key = hash(canonical_bytes(tools))
        found = self._lists.get(key)
        if found is None:
            found = sum(map(self._differs, tools)) > 0  # a sum, so that every tool becomes known
            if len(self._lists) < MOST:
                self._lists[key] = found
        return found

    def _differs(self, tool: object) -> bool:
        if not isinstance(tool, dict):
            return False
        nested = cast("Item", tool).get("function")
        flat = cast("Item", nested if isinstance(nested, dict) else tool)
        name, schema = str(flat.get("name")), hash(canonical_bytes(flat.get("parameters")))
        if name not in self._known and len(self._known) >= MOST:
            return False
        return self._known.setdefault(name, schema) != schema

    def keys_differ(self, calls: Sequence[Item]) -> bool:
        """Whether arguments that are written as objects have other names than the first such arguments."""
        for call in calls:
            arguments = call.get("arguments")
            if not isinstance(arguments, dict):
                continue
            keys = frozenset(cast("Item", arguments))
            if self._keys is None:
                self._keys = keys
            elif keys != self._keys:
                return True
        return False
