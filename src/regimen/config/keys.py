"""Every key is a field of the schema, a known key of NeMo RL, or an error that names the nearest known key.

In: the resolved tree. Out: the tree with the schema's keys only, and notes about keys without effect.
Refuses: unknown keys, keys that are not implemented when their value is not one that leaves them off.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from pydantic import BaseModel

from regimen.config.known import DATA_ENTRIES, KNOWN
from regimen.config.section import Section
from regimen.config.source import Layers, Tree, lookup
from regimen.errors import ConfigError
from regimen.registry import nearest

MAX_LISTED = 4


@dataclass
class SchemaKeys:
    """The dotted keys of a model: sections (whose keys are known) and values (which are opaque here)."""

    sections: set[str] = field(default_factory=lambda: set[str]())
    values: set[str] = field(default_factory=lambda: set[str]())

    @classmethod
    def of(cls, model: type[BaseModel], prefix: str = "") -> SchemaKeys:
        """Collect the keys of `model` and of the sections in it."""
        keys = cls()
        for name, info in model.model_fields.items():
            section = _section_of(info.annotation)
            if section is None:
                keys.values.add(prefix + name)
                continue
            keys.sections.add(prefix + name)
            below = cls.of(section, f"{prefix}{name}.")
            keys.sections |= below.sections
            keys.values |= below.values
        return keys


def select_keys(tree: Tree, layers: Layers, keys: SchemaKeys, *, nemo_rl: bool) -> Tree:
    """The part of `tree` that the schema knows. `nemo_rl`: whether the table of NeMo RL's keys applies."""
    selection = _Selection(layers, keys, nemo_rl, tree)
    result = selection.section(tree, "")
    layers.notes.extend(selection.notes())
    return result


@dataclass
class _Selection:
    layers: Layers
    keys: SchemaKeys
    nemo_rl: bool
    root: Tree
    without_effect: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict[str, list[str]](list))

    def section(self, tree: Tree, path: str) -> Tree:
        result: Tree = {}
        for key, value in tree.items():
            full = f"{path}.{key}" if path else key
            if full in self.keys.sections:
                if isinstance(value, dict):
                    result[key] = self.section(cast("Tree", value), full)
                elif value is not None:
                    raise self._not_a_section(full, value)
            elif full in self.keys.values:
                result[key] = value
            else:
                self._table_key(full, value)
        return result

    def notes(self) -> list[str]:
        """One sentence for each reason."""
        return [f"no effect here, as {reason}: {_listed(paths)}" for reason, paths in self.without_effect.items()]

    def _table_key(self, path: str, value: Any) -> None:
        reason = KNOWN.reason(path) if self.nemo_rl else None
        if reason is not None:
            self.without_effect[reason].append(path)
        elif self.nemo_rl and path in KNOWN.off_values:
            self._require_off(path, value)
        elif self.nemo_rl and KNOWN.is_parent(path):
            if isinstance(value, dict):
                self.section(cast("Tree", value), path)
            elif value is not None:
                raise self._not_a_section(path, value)
        else:
            raise self._unknown(path)

    def _require_off(self, path: str, value: Any) -> None:
        accepted = KNOWN.off_values[path]
        for choice in accepted:
            expected = lookup(self.root, choice[1:])[1] if _is_reference(choice) else choice
            if value == expected and isinstance(value, bool) == isinstance(expected, bool):
                return
        plain = [choice for choice in accepted if not _is_reference(choice)]
        raise ConfigError(
            f"{json.dumps(value, default=str)} is not implemented in this build",
            where=self.layers.where(path),
            expected=" or ".join(json.dumps(choice) for choice in plain),
            fix=f"remove it, or set {path}={json.dumps(plain[0])}",
        )

    def _not_a_section(self, path: str, value: Any) -> ConfigError:
        return ConfigError(f"is {value!r}", where=self.layers.where(path), expected="a section with keys below it")

    def _unknown(self, path: str) -> ConfigError:
        known = sorted({*self.keys.sections, *self.keys.values, *(KNOWN.paths if self.nemo_rl else ())})
        known.sort(key=lambda candidate: candidate.split(".")[0] not in self.root)  # sections in use first
        close = _nearest_path(path, known, self.nemo_rl)
        parent = path.rpartition(".")[0]
        return ConfigError(
            f"unknown key {path.rpartition('.')[2]!r}",
            where=self.layers.where(path),
            expected=None
            if close
            else f"one of {_listed(_children(parent, sorted(self.keys.sections | self.keys.values)), 12)}",
            fix=f"did you mean {close}?" if close else "remove it",
        )


def _nearest_path(path: str, known: list[str], nemo_rl: bool) -> str | None:
    """A sibling with a similar name, else a hint, else a key of the same or a similar name elsewhere."""
    parent, _, last = path.rpartition(".")
    sibling = nearest(last, _children(parent, known))
    if sibling:
        return f"{parent}.{sibling}" if parent else sibling
    if nemo_rl and last in KNOWN.hints:
        hint = KNOWN.hints[last]
        return hint if "." in hint else f"{parent}.{hint}"
    same = [candidate for candidate in known if candidate.rpartition(".")[2] == last]
    return same[0] if same else None


def _children(parent: str, known: list[str]) -> list[str]:
    start = f"{parent}." if parent else ""
    names = {name.removeprefix(start).split(".")[0] for name in known if name.startswith(start)}
    return sorted(names)


def _section_of(annotation: object) -> type[Section] | None:
    """The section class in `X` or `X | None`, else None."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _is_reference(choice: object) -> bool:
    return isinstance(choice, str) and choice.startswith("=")


def _listed(names: list[str], limit: int = MAX_LISTED) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


def with_data_defaults(keys: SchemaKeys) -> SchemaKeys:
    """The keys of a training configuration, with `data.default`, which exists in files only."""
    train, _, default = DATA_ENTRIES
    below = {key.replace(train, default, 1) for key in keys.values if key.startswith(f"{train}.")}
    return SchemaKeys(keys.sections | {default}, keys.values | below)
