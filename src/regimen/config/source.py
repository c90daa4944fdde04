"""Configuration files. In: a path, a shipped name or a dictionary. Out: one merged tree, and where each key was set.

`defaults:` is a string or a list: a file relative to the one that names it, else a shipped base; depth first, the
later wins. Refuses: missing files, malformed YAML (with its line), duplicate keys, cycles, unknown bases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from regimen.config.known import KNOWN
from regimen.config.yaml_file import parse_yaml
from regimen.errors import ConfigError
from regimen.registry import did_you_mean

BASES = Path(__file__).with_name("bases")
Tree = dict[str, Any]
Source = str | Path | Mapping[str, Any]


@dataclass
class Layers:
    """The merged tree so far, `origins` (dotted key -> `file:line` or override), and notes for the reader."""

    tree: Tree = field(default_factory=lambda: Tree())
    origins: dict[str, str] = field(default_factory=lambda: dict[str, str]())
    notes: list[str] = field(default_factory=lambda: list[str]())
    renamed: dict[str, str] = field(default_factory=lambda: dict[str, str]())

    def add(self, tree: Tree, origins: dict[str, str]) -> None:
        """Lay `tree` over what is there, under today's key names."""
        translated, places = self._translate(tree, origins)
        for path, value in _flattened(self.tree, translated, ""):
            place = places.get(path)
            where = f"{path} ({place})" if place else path
            raise ConfigError(f"is {value!r}", where=where, expected="a section with keys below it")
        self.tree = merge(self.tree, translated)
        self.origins.update(places)

    def where(self, path: str) -> str:
        """`path (file:line)`, where that is known. What stands in a list has the place of the list."""
        parts = path.split(".")
        index = next((number for number, part in enumerate(parts) if part.isdigit()), len(parts))
        origin = self.origins.get(path) or self.origins.get(".".join(parts[:index]))
        return f"{path} ({origin})" if origin else path

    def refusal(self, path: str, message: str, expected: str | None = None, fix: str | None = None) -> ConfigError:
        """The error that says what is wrong with `path`, and where it was set."""
        return ConfigError(message, where=self.where(path), expected=expected, fix=fix)

    def today(self, path: str) -> str:
        """The present name of a key; an old one is remembered for the note."""
        if path in KNOWN.renamed:
            self.renamed[path] = KNOWN.renamed[path]
            return KNOWN.renamed[path]
        return KNOWN.aliases.get(path, path)

    def _translate(self, tree: Tree, origins: dict[str, str]) -> tuple[Tree, dict[str, str]]:
        result, places = tree, dict(origins)
        for old in (*KNOWN.renamed, *KNOWN.aliases):
            found, value = lookup(result, old)
            if not found:
                continue
            new = self.today(old)
            if lookup(result, new)[0]:
                raise ConfigError(f"{old} and {new} are the same key", where=origins.get(old), fix=f"remove {old}")
            result = merge(without(result, old), nest(new, value))
            places[new] = origins.get(old, "")
        return result, places


def shipped_names() -> list[str]:
    """Names of the shipped configurations: `sft`, `quickstart/grpo`, ..."""
    return sorted(str(path.relative_to(BASES).with_suffix("").as_posix()) for path in BASES.rglob("*.yaml"))


def read_source(source: Source) -> Layers:
    """Read `source` and all that it inherits from."""
    layers = Layers()
    if isinstance(source, Mapping):
        _add(layers, merge({}, dict(source)), {}, Path(), "the configuration given", ())
    else:
        _add_file(layers, find_source(source), ())
    if layers.renamed:
        pairs = ", ".join(f"{old} -> {new}" for old, new in layers.renamed.items())
        layers.notes.append(f"old key names were translated: {pairs}")
        layers.renamed.clear()
    return layers


def find_source(source: str | Path) -> Path:
    """The file that `source` means: a path, or the name of a shipped configuration."""
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_names()
    if str(source) in shipped:
        return BASES / f"{source}.yaml"
    if path.is_dir():
        raise ConfigError("is a folder", where=str(source), expected="a YAML file or a shipped name")
    raise ConfigError(
        "no such file",
        where=str(source),
        expected="a YAML file" if path.suffix else f"a YAML file or a shipped name ({', '.join(shipped)})",
        fix=did_you_mean(str(source), shipped),
    )


def _add_file(layers: Layers, path: Path, stack: tuple[Path, ...]) -> None:
    resolved = path.resolve()
    if resolved in stack:
        chain = " -> ".join(step.name for step in (*stack[stack.index(resolved) :], resolved))
        raise ConfigError(f"inherits from itself: {chain}", where=str(path), fix="remove one of these `defaults:`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path), expected="a YAML file in UTF-8") from error
    tree, origins = parse_yaml(text, _shown(path))
    _add(layers, tree, origins, path.parent, _shown(path), (*stack, resolved))


def _add(
    layers: Layers, tree: Tree, origins: dict[str, str], folder: Path, shown: str, stack: tuple[Path, ...]
) -> None:
    defaults = tree.pop("defaults", None)
    where = origins.get("defaults", shown)
    for name in _default_names(defaults, where):
        _add_file(layers, _find_default(layers, name, folder, where), stack)
    layers.add(tree, origins)


def _default_names(defaults: object, where: str) -> list[str]:
    if defaults is None:
        return []
    names = cast("list[object]", defaults) if isinstance(defaults, list) else [defaults]
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(f"defaults is {defaults!r}", where=where, expected="a name or a list of names")
    return cast("list[str]", names)


def _find_default(layers: Layers, name: str, folder: Path, where: str) -> Path:
    if (folder / name).is_file():
        return folder / name
    shipped = shipped_names()
    plain = name.removesuffix(".yaml").removesuffix(".yml")
    if plain in shipped:
        return BASES / f"{plain}.yaml"
    last = Path(plain).name
    if last in shipped:
        layers.notes.append(f"defaults {name!r} ({where}) is no file here; the shipped {last!r} was taken")
        return BASES / f"{last}.yaml"
    raise ConfigError(
        f"defaults names {name!r}, which is neither a file in {folder} nor a shipped configuration",
        where=where,
        expected=f"a file or one of {', '.join(shipped)}",
        fix=did_you_mean(last, shipped),
    )


def _shown(path: Path) -> str:
    return f"shipped {path.relative_to(BASES)}" if path.is_relative_to(BASES) else str(path)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """`above` laid over `below`: mappings are merged, everything else is replaced. Neither is changed."""
    result: Tree = {}
    for key, value in below.items():
        result[key] = merge(cast("Tree", value), {}) if isinstance(value, dict) else value
    for key, value in above.items():
        if isinstance(value, dict):
            beneath = result.get(key)
            start = cast("Tree", beneath) if isinstance(beneath, dict) else {}
            result[key] = merge(start, cast("Tree", value))
        else:
            result[key] = value
    return result


def _flattened(below: Tree, above: Tree, prefix: str) -> Iterator[tuple[str, Any]]:
    """The keys where `above` puts a plain value in the place of a section of `below`. Null and lists are allowed."""
    for key, value in above.items():
        beneath = below.get(key)
        if not isinstance(beneath, dict) or value is None or isinstance(value, list):
            continue
        if isinstance(value, dict):
            yield from _flattened(cast("Tree", beneath), cast("Tree", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def lookup(tree: object, path: str) -> tuple[bool, Any]:
    """Whether the dotted `path` is there, and its value. Numbers count into lists."""
    node: Any = tree
    for part in path.split("."):
        if isinstance(node, dict) and part in node:
            node = cast("Tree", node)[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(cast("list[Any]", node)):
            node = cast("list[Any]", node)[int(part)]
        else:
            return False, None
    return True, node


def nest(path: str, value: object) -> Tree:
    """`{a: {b: value}}` for the path `a.b`."""
    result: Any = value
    for part in reversed(path.split(".")):
        result = {part: result}
    return cast("Tree", result)


def paths_of(tree: Tree, prefix: str = "") -> list[str]:
    """Every dotted key of `tree`, sections included."""
    paths: list[str] = []
    for key, value in tree.items():
        paths.append(prefix + key)
        if isinstance(value, dict):
            paths.extend(paths_of(cast("Tree", value), f"{prefix}{key}."))
    return paths


def without(tree: Tree, path: str) -> Tree:
    """A copy of `tree` without the key at `path`, which must be there."""
    result = merge({}, tree)
    *parents, last = path.split(".")
    node = result
    for part in parents:
        node = cast("Tree", node[part])
    del node[last]
    return result
