"""What a run was begun with, and what of it is different now.

In: a resolved configuration, its files, the fingerprints of tokenizer and chat template. Out: an `Inputs`, and the
`Change`s between two of them. Changes of `FREE` keys alter no step that was done or is to come; those of `FIXED` ones
would be undone by the checkpoint, which holds the optimiser's settings, and are refused even when changes are allowed.
Refuses: an inputs file that is none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import yaml

from regimen.errors import RunError
from regimen.gym.environment import ENVIRONMENT_FILE
from regimen.pipelines.models import resolve_model

FREE = (
    "*.max_num_steps",
    "*.max_num_epochs",
    "*.val_period",
    "*.val_start_at",
    "*.val_at_start",
    "*.val_at_end",
    "checkpointing.checkpoint_dir",
    "checkpointing.is_async",
    "checkpointing.keep_top_k",
    "checkpointing.save_optimizer",
    "checkpointing.save_period",
    "cluster.*",
    "logger.*",
    "run.stage_timeout",
)
FIXED = ("policy.optimizer.*", "policy.scheduler", "policy.dtensor_cfg.lora_cfg.*", "algorithm")
WHOLE = 8 << 20  # bytes; of larger files of weights, blocks spread over the file are read
BLOCK, NUM_BLOCKS = 64 << 10, 64


class Change(NamedTuple):
    """One thing that differs. `kind`: free, fixed, or given (allowed when asked for)."""

    what: str
    kind: str


class Inputs(msgspec.Struct, kw_only=True):
    """What a run reads besides its configuration: a digest of each file, None where there is none."""

    version: int = 1
    data: dict[str, str | None] = {}
    model: dict[str, str | None] = {}
    tokenizer: str | None = None
    template: str | None = None


def inputs_of(config_text: str) -> Inputs:
    """Digests of the data files, the environments' own files, and the starting model of a configuration."""
    tree = cast("dict[str, Any]", yaml.safe_load(config_text) or {})
    name = _unescaped((tree.get("policy") or {}).get("model_name"))
    return Inputs(
        data={str(path): digest(path) for path in (*_data_files(tree.get("data") or {}), *_reward_files(tree))},
        model={} if name is None else {name: model_fingerprint(name)},
    )


def _data_files(data: dict[str, Any]) -> Iterator[Path]:
    entries = [data.get("train") or {}, data.get("validation") or {}]
    for entry in [part for whole in entries for part in whole.get("parts") or [whole]]:
        for key in ("data_path", "prompt_file", "system_prompt_file"):
            if entry.get(key) is not None:
                yield Path(_unescaped(entry[key]))
        if entry.get("data_path") is not None:
            path = Path(_unescaped(entry["data_path"]))
            sidecar = path.with_name(f"{path.stem}.sidecar.jsonl")
            if sidecar.is_file():
                yield sidecar
        yield from _environment_files(_unescaped(entry.get("env_name") or ""))


def _environment_files(name: str) -> Iterator[Path]:
    """The program of an environment of the user's own: `file.py:Class`, or a folder."""
    source = Path(name.rpartition(":")[0])
    if source.suffix == ".py":
        yield source
    elif (Path(name) / ENVIRONMENT_FILE).is_file():
        yield from sorted(Path(name).glob("*.py"))


def _reward_files(tree: dict[str, Any]) -> Iterator[Path]:
    """The files of reward functions, `file.py:function`."""
    for options in (tree.get("env") or {}).values():
        name = _unescaped((options or {}).get("reward_function"))
        if isinstance(name, str):
            yield Path(name.rpartition(":")[0])


def _unescaped(text: Any) -> Any:
    """A text as it was before `config.dump` kept it from interpolation."""
    return text.replace("\\${", "${") if isinstance(text, str) else text


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_fingerprint(name: str) -> str | None:
    """A digest of a model folder's configuration and weights; None for a hub's name, which says what it is."""
    folder = Path(resolve_model(name))
    if not folder.is_dir():
        return None
    found = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        if path.is_file():
            found.update(path.name.encode())
            _add_file(found, path)
    return found.hexdigest()


def _add_file(found: Any, path: Path) -> None:
    """The whole of a small file; size and blocks of a large one, as training moves every weight."""
    size = path.stat().st_size
    found.update(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            found.update(file.read())
            return
        for index in range(NUM_BLOCKS):
            file.seek(index * (size - BLOCK) // (NUM_BLOCKS - 1))
            found.update(file.read(BLOCK))


def read_inputs(path: Path) -> Inputs:
    """The inputs that a run folder tells of."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Inputs)
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(f"cannot be read ({error})", where=str(path), expected="what a run was begun with") from None


def file_changes(earlier: Inputs, now: Inputs) -> list[Change]:
    """Data files and models that differ; a model of another name is a change of the configuration."""
    shared = [name for name in earlier.model if name in now.model and earlier.model[name] != now.model[name]]
    names = [f"data file {name}" for name in _differing(earlier.data, now.data)]
    return [Change(name, "given") for name in [*names, *(f"model {name}" for name in shared)]]


def rendering_changes(earlier: Inputs, now: Inputs) -> list[Change]:
    """Whether texts become other token ids."""
    pairs = {"tokenizer": (earlier.tokenizer, now.tokenizer), "chat template": (earlier.template, now.template)}
    return [Change(name, "given") for name, (before, after) in pairs.items() if before != after]


def config_changes(earlier: str, now: str) -> list[Change]:
    """The keys whose values differ, each with both values."""
    before, after = _flat(yaml.safe_load(earlier) or {}), _flat(yaml.safe_load(now) or {})
    ran, asked = _algorithm(before), _algorithm(after)
    if ran != asked:
        return [Change(f"algorithm ({ran} -> {asked})", "fixed")]
    return [
        Change(f"{key} ({_shown(before, key)} -> {_shown(after, key)})", _kind(key))
        for key in _differing(before, after)
    ]


def _algorithm(flat: dict[str, Any]) -> str:
    sections = {key.split(".")[0] for key in flat}
    return next((name for name in ("sft", "dpo", "grpo") if name in sections), "none")


def _kind(key: str) -> str:
    for kind, patterns in (("free", FREE), ("fixed", FIXED)):
        if any(fnmatchcase(key, pattern) for pattern in patterns):
            return kind
    return "given"


def _shown(flat: dict[str, Any], key: str) -> str:
    if key not in flat:
        return "absent"
    text = json.dumps(flat[key], default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _differing(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = [*before, *(name for name in after if name not in before)]
    return [name for name in names if (name in before, before.get(name)) != (name in after, after.get(name))]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True, slots=True)
class Decision:
    """What may be done about changes: `refused` whatever is asked, `asking` unless allowed, `recorded` in any case."""

    refused: list[str]
    asking: list[str]
    recorded: list[str]

    @classmethod
    def of(cls, changes: list[Change]) -> Decision:
        """Sort changes by what they need."""
        names = {kind: [c.what for c in changes if c.kind == kind] for kind in ("free", "fixed", "given")}
        return cls(names["fixed"], names["given"], [change.what for change in changes])
