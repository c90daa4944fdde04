"""Merging: LoRA adapters added to the weights of their model, as an ordinary Hugging Face folder.

In: a folder of adapters (a checkpoint, the `model` of a run, anything peft wrote), or a run folder, whose `model` is
meant. Out: a model folder with tokenizer that computes what model and adapters compute. It appears whole or not at all.
Refuses: a folder without adapters, an output that is in use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regimen.adapters import base_of, holds_adapters
from regimen.errors import UsageError
from regimen.pipelines.models import config_of, resolve_model

DTYPES = ("bfloat16", "float16", "float32")


def merge(
    source: Path | str,
    output: Path | str,
    *,
    base: str | None = None,
    precision: str | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Path:
    """Write the model of `source` into `output`; returns that folder.

    `base`: the model below the adapters, where they do not name it or it was moved. `precision`: what the weights are
    written in; None: as those of the base.
    """
    folder, output = _adapters_of(Path(source)), Path(output)
    _check_output(output, overwrite)
    model_name = resolve_model(base or base_of(folder))
    import torch

    from regimen.models import load_merged
    from regimen.policy.checkpoint import save_model
    from regimen.tokens.template import Renderer

    dtype = getattr(torch, precision or _written_in(config_of(model_name, trust_remote_code)))
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    renderer = Renderer.load(folder if has_tokenizer else model_name, trust_remote_code=trust_remote_code)
    model = load_merged(folder, model_name, dtype, trust_remote_code=trust_remote_code)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, output, dtype, beside=renderer.save)
    return output


def _adapters_of(source: Path) -> Path:
    """The folder itself, or the published model of a run folder."""
    for folder in (source, source / "model"):
        if holds_adapters(folder):
            return folder
    if not source.exists():
        raise UsageError("there is no such folder", where=str(source), expected="a folder of adapters")
    is_model = (source / "config.json").is_file() or (source / "model" / "config.json").is_file()
    raise UsageError(
        "holds a whole model: nothing is to be merged" if is_model else "holds no adapter_config.json",
        where=str(source),
        expected="LoRA adapters: a checkpoint or the model folder of a run that trained them",
    )


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir() or not (output / "config.json").is_file():
        raise UsageError("holds something else than a model", where=str(output), fix="choose another --output")
    if not overwrite:
        raise UsageError(
            "the folder holds a model", where=str(output), fix="choose another --output, or replace it: --overwrite"
        )


def _written_in(config: dict[str, Any]) -> str:
    """The dtype of a model's files, float32 where they do not say."""
    name = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return name if name in DTYPES else "float32"
