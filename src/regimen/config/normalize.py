"""The last steps from what people write to what the schema holds, for training configurations.

`data.default` is merged into `data.train` and `data.validation`; an entry without values is none; a list of one data
set is that data set, one of several a mixture of them (for GRPO); GRPO's gaps are filled from their neighbours.
"""

from __future__ import annotations

from typing import Any, cast

from regimen.config.nemo_gym import take_switches
from regimen.config.schema_data import KEYS_OF
from regimen.config.source import Layers, Tree, lookup, merge
from regimen.errors import ConfigError

ALGORITHMS = ("sft", "dpo", "grpo")


def unwrap_lists(tree: Tree, layers: Layers) -> Tree:
    """`data.train: [{...}]` becomes `{...}`; several data sets become a mixture in GRPO and are refused elsewhere."""
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree
    changed: Tree = {}
    for name in ("train", "validation"):
        entry: Any = cast("Tree", data).get(name)
        if isinstance(entry, list):
            items = cast("list[Any]", entry)
            if len(items) > 1 and "grpo" in tree:
                changed[name] = {"dataset_name": "Mixture", "parts": items}
                continue
            if len(items) > 1:
                raise ConfigError(
                    f"{len(items)} data sets; mixing several is not implemented in this build",
                    where=layers.where(f"data.{name}"),
                    fix="put their rows into one file",
                )
            changed[name] = items[0] if items else None
    return merge(tree, {"data": changed}) if changed else tree


def mix(layers: Layers, sections: tuple[str, ...] = ()) -> Layers:
    """`env: {math: {...}, calculator: {...}}` of a configuration that plays stands for the environment that mixes them.

    `sections` are those that have it, instead of the whole.
    """
    places = [(f"{name}.", layers.tree.get(name)) for name in sections] or [("", layers.tree)]
    for prefix, place in places:
        if not isinstance(place, dict) or "env" not in place:
            continue
        tree = cast("Tree", place)
        if tree.get("environment") is not None:
            raise ConfigError(
                f"is given, and {prefix}environment too",
                where=layers.where(f"{prefix}env"),
                fix=f"name the environments under {prefix}env, or one in {prefix}environment",
            )
        tree["environment"] = {"name": "mixture", "options": {"environments": tree.pop("env")}}
    return layers


def fill(tree: Tree, layers: Layers) -> Tree:
    """The tree with data defaults merged and GRPO's own defaults in place."""
    result = merge(tree, {})
    if isinstance(result.get("data"), dict):
        result["data"] = _data(cast("Tree", result["data"]), layers)
    if isinstance(result.get("grpo"), dict):
        take_switches(result, layers)
        _fill_grpo(result)
        _fill_correction(result, layers)
    return result


def require_algorithm(tree: Tree, where: str) -> str:
    """Which of sft, dpo and grpo is there: exactly one must be."""
    there = [name for name in ALGORITHMS if tree.get(name) is not None]
    if len(there) == 1:
        return there[0]
    raise ConfigError(
        f"found the sections {' and '.join(there)}" if there else "found no section of an algorithm",
        where=where,
        expected="exactly one of sft, dpo and grpo",
        fix="remove the others" if there else "write `defaults: sft` (or dpo, grpo)",
    )


def _data(data: Tree, layers: Layers) -> Tree:
    default: Tree = data.pop("default", None) or {}
    for name in ("train", "validation"):
        entry: Tree = data.get(name) or {}
        if all(value is None for value in entry.values()):
            data[name] = None
            continue
        given = {key: value for key, value in entry.items() if value is not None}
        if given.get("dataset_name") == "Mixture":
            data[name] = {**given, "parts": _parts(default, given.get("parts"), name, layers)}
            continue
        data[name] = merge(_inherited(default, given, name, layers), given)
    return data


def _parts(default: Tree, parts: Any, name: str, layers: Layers) -> Any:
    """The data sets of a mixture, each with what it takes from `data.default`."""
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in cast("list[Any]", parts)):
        return cast("Any", parts)  # the schema says what is wrong
    found: list[Tree] = []
    for part in cast("list[Tree]", parts):
        given = {key: value for key, value in part.items() if value is not None}
        found.append(merge(_inherited(default, given, name, layers), given))
    return found


def _inherited(default: Tree, given: Tree, name: str, layers: Layers) -> Tree:
    """What `data.<name>` takes from `data.default`: the keys that its data set reads."""
    dataset = given.get("dataset_name", default.get("dataset_name"))
    read = KEYS_OF.get(dataset) if isinstance(dataset, str) else None
    result: Tree = {}
    for key, value in default.items():
        if key in given or value is None:
            continue
        if read is not None and key not in ("dataset_name", *read):
            note = f"no effect here, as {dataset} does not read it: data.default.{key}"
            layers.notes.extend([note] if note not in layers.notes else [])
            continue
        result[key] = value
        if f"data.default.{key}" in layers.origins:
            layers.origins[f"data.{name}.{key}"] = layers.origins[f"data.default.{key}"]
    return result


def _fill_grpo(tree: Tree) -> None:
    grpo = cast("Tree", tree["grpo"])
    estimator: Tree = grpo.setdefault("adv_estimator", {})
    for key in ("normalize_rewards", "use_leave_one_out_baseline"):
        if estimator.get(key) is None:
            estimator[key] = grpo.get(key, True)
    for name in ("train", "validation"):
        found, entry = lookup(tree, f"data.{name}")
        if not found or not isinstance(entry, dict):
            continue
        # NeMo RL's GRPO data is mathematics unless something else is said.
        parts = cast("Tree", entry).get("parts")
        for part in cast("list[Any]", parts if isinstance(parts, list) else [entry]):
            if isinstance(part, dict) and cast("Tree", part).get("dataset_name") == "ResponseDataset":
                cast("Tree", part).setdefault("env_name", "math")


# Weights above 2 are rare where sampler and policy are one model in two precisions; one of them must not rule a step.
CORRECTION = {"truncated_importance_sampling_type": "tis", "truncated_importance_sampling_ratio": 2.0}


def _fill_correction(tree: Tree, layers: Layers) -> None:
    """Importance-sampling correction where nothing is said of it: every episode has its sampler's log-probabilities."""
    loss = cast("Tree", tree.setdefault("loss_fn", {}))
    if not isinstance(cast("Any", loss), dict) or loss.get("use_importance_sampling_correction") is not None:
        return
    loss["use_importance_sampling_correction"] = True
    if loss.get("truncated_importance_sampling_type") is None:
        loss.update({key: value for key, value in CORRECTION.items() if loss.get(key) is None})
    layers.notes.append(
        f"importance-sampling correction is on ({loss['truncated_importance_sampling_type']}, weights up to "
        f"{loss.get('truncated_importance_sampling_ratio')}); loss_fn.use_importance_sampling_correction=false "
        "switches it off"
    )
