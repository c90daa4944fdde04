"""Overrides from the command line: `a.b=value`, `+a.b=value`, `~a.b`. Values are YAML.

Whether a key exists is checked with all the others, against the schema; `+` is accepted because users write it.
Refuses: text of another form, a key below something that is not a section, deleting what is not there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from regimen.config.source import Layers, Tree, lookup, merge, nest, paths_of, without
from regimen.config.yaml_file import parse_value
from regimen.errors import ConfigError
from regimen.registry import nearest

KEY = re.compile(r"^\w[\w\-/]*(\.\w[\w\-/]*)*$")


def apply_overrides(layers: Layers, overrides: Sequence[str]) -> None:
    """Lay each override over the tree, in order."""
    for text in overrides:
        _apply(layers, text)
    if layers.renamed:
        pairs = ", ".join(f"{old} -> {new}" for old, new in layers.renamed.items())
        layers.notes.append(f"old key names were translated: {pairs}")
        layers.renamed.clear()


def _apply(layers: Layers, text: str) -> None:
    where = f"override {text!r}"
    if text.startswith("~"):
        path = layers.today(_checked_key(text[1:], where))
        if not lookup(layers.tree, path)[0]:
            close = nearest(path, paths_of(layers.tree))
            raise ConfigError(
                f"there is no {path} to delete", where=where, fix=f"did you mean ~{close}?" if close else None
            )
        layers.tree = without(layers.tree, path)
        return
    key, equals, value = text.lstrip("+").partition("=")
    if not equals:
        raise ConfigError("is no override", where=where, expected="key=value, +key=value or ~key")
    path = layers.today(_checked_key(key, where))
    _set(layers, path, parse_value(value, where), where)


def _checked_key(key: str, where: str) -> str:
    if not KEY.match(key):
        raise ConfigError(f"{key!r} is no key", where=where, expected="names joined by dots, as policy.model_name")
    if key.split(".")[0] == "defaults":
        raise ConfigError("`defaults` cannot be overridden", where=where, fix="name another configuration")
    return key


def _set(layers: Layers, path: str, value: Any, where: str) -> None:
    parts = path.split(".")
    for end in range(1, len(parts)):
        parent = ".".join(parts[:end])
        found, node = lookup(layers.tree, parent)
        if found and isinstance(node, list):
            layers.tree = merge(
                layers.tree, nest(parent, _with_item(cast("list[Any]", node), parts[end:], value, where))
            )
            layers.origins[parent] = where
            return
        if found and node is not None and not isinstance(node, dict):
            raise ConfigError(f"{parent} is {node!r}, which has no keys", where=where)
    tree = nest(path, value)
    new = [key for key in paths_of(tree) if key.startswith(path) or not lookup(layers.tree, key)[0]]
    layers.add(tree, dict.fromkeys(new, where))


def _with_item(items: list[Any], parts: list[str], value: Any, where: str) -> list[Any]:
    """A copy of a list with one item (or one key of an item) replaced."""
    if not parts[0].isdigit() or int(parts[0]) >= len(items):
        raise ConfigError(f"{parts[0]!r} is no index of a list of {len(items)}", where=where)
    result, index = list(items), int(parts[0])
    if len(parts) == 1:
        result[index] = value
    elif isinstance(result[index], dict):
        result[index] = merge(cast("Tree", result[index]), nest(".".join(parts[1:]), value))
    else:
        raise ConfigError(f"item {index} is {result[index]!r}, which has no keys", where=where)
    return result
