"""`${a.b}` and the resolvers `${add:x, y}`, `mul`, `div`, `max`, nested as one likes.

A value that is one interpolation takes the type of what it names; inside other text it becomes text. `\\${` is a
plain `${`. Refuses: keys that are not there, cycles, unknown resolvers, resolvers of other things than numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from regimen.config.known import KNOWN
from regimen.config.source import Layers, Tree, lookup, paths_of
from regimen.config.yaml_file import parse_value
from regimen.errors import ConfigError
from regimen.registry import nearest

Number = int | float
RESOLVERS: dict[str, Callable[[list[Number]], Number]] = {
    "add": sum,
    "mul": lambda numbers: _product(numbers),
    "div": lambda numbers: _quotient(*numbers),
    "max": max,
}
REFERENCE = re.compile(r"^\$\{\s*([\w.]+)\s*\}$")
RESOLVER_CALL = re.compile(r"^([A-Za-z_][\w.]*):(.*)$", re.DOTALL)


def interpolate(layers: Layers) -> Tree:
    """The tree with every interpolation replaced by its value.

    An interpolation that fails inside a key without effect is dropped with that key.
    """
    return cast("Tree", _Interpolation(layers).resolve(layers.tree, "", ()))


@dataclass
class _Interpolation:
    layers: Layers

    def resolve(self, node: Any, path: str, stack: tuple[str, ...]) -> Any:
        if isinstance(node, dict):
            return self._mapping(cast("Tree", node), path, stack)
        if isinstance(node, list):
            items = cast("list[Any]", node)
            return [self.resolve(item, f"{path}.{index}", stack) for index, item in enumerate(items)]
        return self._text(node, path, stack) if isinstance(node, str) and "${" in node else node

    def _mapping(self, node: Tree, path: str, stack: tuple[str, ...]) -> Tree:
        result: Tree = {}
        for key, value in node.items():
            full = f"{path}.{key}" if path else key
            try:
                result[key] = self.resolve(value, full, stack)
            except ConfigError:
                if KNOWN.reason(full) is None:
                    raise
        return result

    def _text(self, text: str, path: str, stack: tuple[str, ...]) -> Any:
        """`text` with its interpolations replaced, or the value itself when it is nothing but one."""
        pieces: list[str] = []
        rest = text
        while "${" in rest:
            start = rest.index("${")
            if start and rest[start - 1] == "\\":
                pieces.append(rest[: start - 1] + "${")
                rest = rest[start + 2 :]
                continue
            end = _closing(rest, start, self.layers.where(path))
            value = self._expression(rest[start + 2 : end].strip(), path, stack)
            if not pieces and start == 0 and end == len(rest) - 1:
                return value
            pieces.append(rest[:start] + _as_text(value))
            rest = rest[end + 1 :]
        return "".join(pieces) + rest

    def _expression(self, expression: str, path: str, stack: tuple[str, ...]) -> Any:
        call = RESOLVER_CALL.match(expression)
        if call:
            return self._call(call.group(1), call.group(2), path, stack)
        key = expression if "${" not in expression else _as_text(self._text(expression, path, stack))
        return self._value(key, path, stack)

    def _value(self, key: str, path: str, stack: tuple[str, ...]) -> Any:
        where = self.layers.where(path)
        if key in stack or key == path:
            raise ConfigError(f"interpolates itself: {' -> '.join((*stack, key))}", where=where)
        if key.startswith("."):
            raise ConfigError(f"relative interpolation ${{{key}}}", where=where, expected="the full key")
        found, value = lookup(self.layers.tree, key)
        if not found:
            found, value = lookup(self.layers.tree, KNOWN.renamed.get(key, KNOWN.aliases.get(key, key)))
        if not found:
            close = nearest(key, paths_of(self.layers.tree))
            raise ConfigError(
                f"interpolates {key!r}, which is not there",
                where=where,
                fix=f"did you mean {close!r}?" if close else f"set {key}",
            )
        return self.resolve(value, key, (*stack, key))

    def _call(self, name: str, text: str, path: str, stack: tuple[str, ...]) -> Number:
        where = self.layers.where(path)
        if name not in RESOLVERS:
            raise ConfigError(f"unknown resolver {name!r}", where=where, expected=f"one of {', '.join(RESOLVERS)}")
        numbers: list[Number] = []
        for part in _arguments(text):
            value = self._text(part, path, stack) if "${" in part else parse_value(part, where)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                named = REFERENCE.match(part)
                if named:
                    raise ConfigError(f"is {value!r}", where=self.layers.where(named.group(1)), expected="a number")
                raise ConfigError(f"{name} of {part.strip()!r}, which is {value!r}", where=where, expected="numbers")
            numbers.append(value)
        try:
            return RESOLVERS[name](numbers)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ConfigError(f"{name} of {numbers} failed: {error}", where=where) from error


def _closing(text: str, start: int, where: str) -> int:
    """Index of the brace that closes the interpolation at `start`."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "{":
            depth += 1
        elif text[index] == "}":
            depth -= 1
            if depth == 0:
                return index
    raise ConfigError(f"{text!r} has no closing brace", where=where, fix="close it, or write \\${ for plain text")


def _arguments(text: str) -> list[str]:
    """The arguments of a resolver: split at the commas that stand in no braces."""
    parts, depth = [""], 0
    for character in text:
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _product(numbers: list[Number]) -> Number:
    product: Number = 1
    for number in numbers:
        product *= number
    return product


def _quotient(above: Number, below: Number) -> Number:
    """A whole number where the division leaves no rest."""
    quotient = above / below
    return int(quotient) if quotient == int(quotient) else quotient


def _as_text(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )
