"""A training configuration and its data, for another trainer: read, check, write a folder that appears whole.

In: a configuration (a file, a shipped name or a dictionary), overrides, the name of an export target.
Out: the folder, and its manifest with every change. What Regimen cannot run but the target can is accepted.
Refuses: what the configuration's loader refuses, a folder in use, data without rows in the target's shapes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from regimen.config.interpolate import interpolate
from regimen.config.known import DATA_ENTRIES, KNOWN
from regimen.config.load import assignment, load_train_config
from regimen.config.normalize import unwrap_lists
from regimen.config.overrides import apply_overrides
from regimen.config.rules import OTHER_GENERATORS
from regimen.config.schema import TrainConfig
from regimen.config.source import Source, Tree, find_source, lookup, read_source
from regimen.convert.export.manifest import ExportManifest, describe, is_export, write_export_manifest
from regimen.convert.export.request import ExportRequest
from regimen.convert.folder import folder_written_whole
from regimen.errors import UsageError
from regimen.gym.mixture import in_turn
from regimen.pipelines.tasks import environment_of, tasks_of_dataset
from regimen.registry import resolve
from regimen.tokens.template import template_text


def export(
    target: str,
    source: Source,
    out: Path | str,
    overrides: Sequence[str] = (),
    *,
    checkout: Path | str | None = None,
    overwrite: bool = False,
) -> ExportManifest:
    """Write `source` and its data for `target` (a line of the registry) into the folder `out`."""
    exporter = resolve("export", target)
    given, notes = _given(source, overrides)
    config = load_train_config(source, [*overrides, *_runnable(given)])
    out = Path(out).absolute()
    place = _place(out, overwrite)
    with folder_written_whole(place, overwrite=False) as folder:
        request = ExportRequest(
            config=config,
            given=given,
            folder=folder,
            home=out,
            tasks_of=partial(_tasks_of, config),
            turns=in_turn,
            chat_template=template_text(config.policy.tokenizer.template),
            checkout=None if checkout is None else Path(checkout),
            notes=notes,
            inputs=[] if isinstance(source, Mapping) else [find_source(source)],
        )
        exporter(request)
        manifest = _manifest(request, target, source, overrides)
        write_export_manifest(manifest, folder)
    if place != out:
        shutil.rmtree(out)
        place.rename(out)
    return manifest


def _given(source: Source, overrides: Sequence[str]) -> tuple[Tree, list[str]]:
    """The tree as it is written, with today's names, and what reading it had to say."""
    layers = read_source(source)
    apply_overrides(layers, overrides)
    layers.tree = unwrap_lists(layers.tree, layers)
    return interpolate(layers), list(layers.notes)


def _runnable(given: Tree) -> list[str]:
    """Overrides that leave out what this build does not run; whether it would run is no question here."""
    changes: list[str] = []
    for path, accepted in KNOWN.off_values.items():
        found, value = lookup(given, path)
        if found and value not in accepted:
            changes.append(assignment(path, None if None in accepted else accepted[0]))
    if lookup(given, "policy.generation.backend")[1] in OTHER_GENERATORS:
        changes.append("policy.generation.backend=transformers")
    if lookup(given, "policy.dtensor_cfg.lora_cfg")[0]:
        changes.append("~policy.dtensor_cfg.lora_cfg")  # whatever adapters the target trains
    if isinstance(lookup(given, "data.max_input_seq_length")[1], int):
        changes.append("data.max_input_seq_length=null")
    if "grpo" not in given:
        files = [f"{entry}.{key}" for entry in DATA_ENTRIES for key in ("prompt_file", "system_prompt_file")]
        changes += [f"{path}=null" for path in files if lookup(given, path)[1] is not None]
    environments: Any = given.get("env")
    if isinstance(environments, dict):
        named = cast("Tree", environments).items()
        changes += [f"~env.{name}" for name, value in named if name == "nemo_gym" or not isinstance(value, dict)]
    return changes


def _place(out: Path, overwrite: bool) -> Path:
    """Where to write: `out` itself, or beside an export that is to be replaced once the new one stands."""
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if out.exists() and not out.is_dir():
        raise UsageError("is a file", where=str(out), expected="the name of a folder to write")
    if not found:
        return out
    if overwrite and is_export(out):
        return out.with_name(f".{out.name}.{os.getpid()}.new")
    raise UsageError(
        f"holds files that export did not write ({', '.join(found[:3])})" if overwrite else "the folder is not empty",
        where=str(out),
        fix="choose another --out" if overwrite else "choose another --out, or replace an export with --overwrite",
    )


def _tasks_of(config: TrainConfig, name: str) -> list[dict[str, Any]]:
    """The task rows of a data set that an environment makes."""
    entry = config.data.train if name == "train" else config.data.validation
    assert entry is not None  # asked only for an entry that is there
    split = "train" if name == "train" else "validation"
    return [task.row for task in tasks_of_dataset(entry, environment_of(config, entry), split)]


def _manifest(request: ExportRequest, target: str, source: Source, overrides: Sequence[str]) -> ExportManifest:
    return describe(
        request.folder,
        export=target,
        algorithm=request.config.algorithm,
        source="a dictionary" if isinstance(source, Mapping) else str(source),
        overrides=list(overrides),
        given=request.given,
        changes=request.notes,
        inputs=request.inputs,
        rows=request.rows,
    )
