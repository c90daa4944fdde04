"""The table of NeMo RL's keys that are no fields of the schema: aliases, values that mean off, keys without effect."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import yaml

DATA_ENTRIES = ("data.train", "data.validation", "data.default")
TABLE = Path(__file__).with_name("known_keys.yaml")


@dataclass(frozen=True)
class KnownKeys:
    """See `known_keys.yaml`, whose sections these are, with `data.*` spelled out."""

    aliases: dict[str, str]
    renamed: dict[str, str]
    hints: dict[str, str]
    off_values: dict[str, list[Any]]
    no_effect: dict[str, str]

    def reason(self, path: str) -> str | None:
        """Why the key has no effect, or None when it isn't such a key."""
        if path in self.no_effect:
            return self.no_effect[path]
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            reason = self.no_effect.get(".".join(parts[:end]) + ".*")
            if reason:
                return reason
        return None

    def is_parent(self, path: str) -> bool:
        """Whether known keys stand below `path`."""
        return path in self._parents

    @cached_property
    def paths(self) -> list[str]:
        """All keys of the table by their present names."""
        return [*self.off_values, *(path.removesuffix(".*") for path in self.no_effect)]

    @cached_property
    def _parents(self) -> frozenset[str]:
        parents: set[str] = set()
        for path in self.paths:
            parts = path.split(".")
            parents.update(".".join(parts[:end]) for end in range(1, len(parts)))
        return frozenset(parents)


def _read() -> KnownKeys:
    table = cast("dict[str, Any]", yaml.safe_load(TABLE.read_text(encoding="utf-8")))
    no_effect: dict[str, str] = {}
    for group in cast("list[dict[str, str]]", table["no_effect"]):
        for key in group["keys"].split():
            no_effect.update(dict.fromkeys(_spelled_out(f"{group['under']}.{key}"), group["because"]))
    off_values = {path: values for key, values in table["off_values"].items() for path in _spelled_out(key)}
    return KnownKeys(table["aliases"], table["renamed"], table["hints"], off_values, no_effect)


def _spelled_out(key: str) -> list[str]:
    if not key.startswith("data.*"):
        return [key]
    return [entry + key.removeprefix("data.*") for entry in DATA_ENTRIES]


KNOWN = _read()
