"""YAML as configurations use it: `5e-6` is a number, dates are text, a duplicate key is an error.

In: text. Out: a dictionary, and the line on which each dotted key stands.
"""

from __future__ import annotations

import re
from typing import Any, cast

import yaml

from regimen.errors import ConfigError


class _Loader(yaml.SafeLoader):
    def value_of(self, node: yaml.Node) -> object:
        """The Python value of a node."""
        return cast("Any", self).construct_object(node, deep=True)


# PyYAML follows YAML 1.1, which takes 5e-6 for text and 2026-01-31 for a date.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
cast("Any", _Loader).add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_value(text: str, where: str) -> Any:
    """One YAML value, such as the right side of an override."""
    if not text:
        return ""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {_problem(error)}", where=where) from error


def parse_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The mapping that `text` holds, and `file:line` for each dotted key. `name` stands for the file in messages."""
    loader = _Loader(text)
    origins: dict[str, str] = {}
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError("holds no keys", where=name, expected="a mapping of sections")
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError("is not a mapping", where=name, expected="`section:` lines with keys below them")
        return _mapping(loader, root, "", name, origins, ()), origins
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = name if line is None else f"{name}:{line + 1}"
        raise ConfigError(f"malformed YAML: {_problem(error)}", where=place) from error
    finally:
        cast("Any", loader).dispose()


def _mapping(
    loader: _Loader,
    node: yaml.MappingNode,
    path: str,
    name: str,
    origins: dict[str, str],
    above: tuple[int, ...],
) -> dict[str, Any]:
    if id(node) in above:
        raise ConfigError("contains itself through an alias", where=f"{name}:{node.start_mark.line + 1}")
    _refuse_duplicates(node, path, name)
    loader.flatten_mapping(node)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.value_of(key_node)
        place = f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key, str):
            raise ConfigError(f"the key {key!r} is not text", where=place, fix="put it in quotes")
        full = f"{path}.{key}" if path else key
        origins[full] = place
        if isinstance(value_node, yaml.MappingNode):
            result[key] = _mapping(loader, value_node, full, name, origins, (*above, id(node)))
        else:
            result[key] = loader.value_of(value_node)
    return result


def _refuse_duplicates(node: yaml.MappingNode, path: str, name: str) -> None:
    seen: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in seen and key != "<<":
            full = f"{path}.{key}" if path else key
            raise ConfigError(f"the key {full} stands twice, first on line {seen[key]}", where=f"{name}:{line}")
        seen[key] = line


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]
