"""A NeMo RL configuration that trains on a converted folder.

In: a folder that `convert` wrote, a model and a checkout of NeMo RL. Out: nemo_rl.yaml in the folder, for
`examples/run_{sft,dpo,grpo}.py --config`. Every key that NeMo RL reads without a default is written, and batches are
no larger than the data, since rows of an incomplete batch are dropped there.
Refuses: folder names from which NeMo RL cannot make a task name, and gym rows without the environment's configs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from regimen.convert.manifest import Manifest, read_manifest
from regimen.errors import ConvertError, UsageError

FILE = "nemo_rl.yaml"
BASES = {"sft": "sft.yaml", "dpo": "dpo.yaml", "grpo": "grpo_math_1B.yaml"}
# Largest batches written; they are what NeMo RL's own examples use.
TRAIN_BATCH = {"sft": 32, "dpo": 128, "grpo": 32}
VALIDATION_BATCH = {"sft": 32, "dpo": 8}
GENERATIONS = 16
DATASETS: dict[str, dict[str, Any]] = {
    "openai": {
        "dataset_name": "openai_format",
        "chat_key": "messages",
        "tool_key": "tools",
        # Plain loading fills absent keys with null and merges tool schemas.
        "use_preserving_dataset": True,
    },
    "simple": {"dataset_name": "ResponseDataset", "input_key": "input", "output_key": "output"},
    "preference": {"dataset_name": "PreferenceDataset"},
    "binary": {
        "dataset_name": "BinaryPreferenceDataset",
        "prompt_key": "prompt",
        "chosen_key": "chosen",
        "rejected_key": "rejected",
    },
    "response": {
        "dataset_name": "ResponseDataset",
        "input_key": "input",
        "output_key": "output",
        "processor": "math_hf_data_processor",
        "env_name": "math",
    },
    "gym": {
        "dataset_name": "NemoGymDataset",
        "processor": "nemo_gym_data_processor",
        "env_name": "nemo_gym",
    },
}


def nemo_rl_config(folder: Path, model: str, checkout: Path, gym_config_paths: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration for the converted `folder`, as a nested dict.

    `checkout` is the folder of NeMo RL, whose example configuration is inherited; `gym_config_paths` are the
    `config_paths` of the environment, needed for GRPO rows in the gym format.
    """
    folder = folder.absolute()
    manifest = read_manifest(folder)
    _check_name(folder)
    target = manifest.target
    config: dict[str, Any] = {
        "defaults": str(checkout.absolute() / "examples" / "configs" / BASES[target]),
        "policy": {
            "model_name": model,
            "tokenizer": {"name": model, "chat_template": "default"},
            "megatron_cfg": {"enabled": False},
        },
        "data": _data(folder, manifest),
        "checkpointing": {"keep_top_k": 3, "save_optimizer": True, "checkpoint_must_save_by": None},
    }
    _set_batches(config, manifest)
    if target == "grpo":
        config["policy"]["draft"] = {"enabled": False}
        config["data"]["use_multiple_dataloader"] = False
    if manifest.format == "gym":
        if not gym_config_paths:
            raise UsageError("gym rows need the environment's config_paths", where=str(folder))
        config["env"] = {"should_use_nemo_gym": True, "nemo_gym": {"config_paths": list(gym_config_paths)}}
    return config


def write_nemo_rl_config(
    folder: Path, model: str, checkout: Path, gym_config_paths: Sequence[str] = (), overwrite: bool = False
) -> Path:
    """Write nemo_rl.yaml into the converted `folder` and return its path."""
    path = folder / FILE
    if path.exists() and not overwrite:
        raise UsageError("the file exists", where=str(path), fix="ask to overwrite it")
    config = nemo_rl_config(folder, model, checkout, gym_config_paths)
    temporary = path.with_name(f".{FILE}.tmp")
    try:
        temporary.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConvertError(f"cannot be written: {error.strerror or error}", where=str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _check_name(folder: Path) -> None:
    """NeMo RL names a task by the last two parts of the path, cut at the first dot."""
    if "." in folder.name or not folder.name:
        raise UsageError(
            f"the folder's name {folder.name!r} has a dot, at which NeMo RL cuts its task name",
            where=str(folder),
            fix="rename the folder",
        )


def _data(folder: Path, manifest: Manifest) -> dict[str, Any]:
    common = DATASETS[manifest.format] | ({} if manifest.format == "gym" else {"split": "train"})
    names = {file.name for file in manifest.outputs}
    data: dict[str, Any] = {
        "train": {"data_path": str(folder / "train.jsonl"), **common},
        # Absent, not inherited: the example's own validation set would be loaded.
        "validation": {"data_path": str(folder / "val.jsonl"), **common} if "val.jsonl" in names else None,
        "num_workers": 1,
    }
    if manifest.target == "sft":
        data |= {"add_bos": True, "add_eos": True, "add_generation_prompt": False}
    return data


def _set_batches(config: dict[str, Any], manifest: Manifest) -> None:
    target, counts = manifest.target, manifest.counts
    batch = largest_batch(counts.train_rows, TRAIN_BATCH[target])
    if target == "grpo":
        config["grpo"] = {"num_prompts_per_step": batch, "num_generations_per_prompt": GENERATIONS}
        config["policy"]["train_global_batch_size"] = batch * GENERATIONS
        return
    config["policy"] |= {"train_global_batch_size": batch, "train_micro_batch_size": 1}
    if counts.validation_rows:
        config[target] = {
            "val_global_batch_size": largest_batch(counts.validation_rows, VALIDATION_BATCH[target]),
            "val_micro_batch_size": 1,
        }


def largest_batch(num_rows: int, limit: int) -> int:
    """The largest power of two that is at most `num_rows` and `limit`, so that no batch is incomplete at once."""
    return 1 << (min(num_rows, limit).bit_length() - 1)
