"""Loading Hugging Face models, for the two rooms that hold one: the policy and the in-process generation.

In: a folder or hub name; a folder of adapters is the model below them with the adapters merged into its weights.
Out: a causal language model. Refuses: a folder that holds no model, pickled weights, adapters that are not its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from regimen.adapters import base_of, holds_adapters
from regimen.errors import PolicyError, first_line


def default_device() -> torch.device:
    """The GPU where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(
    folder: str | Path, dtype: torch.dtype, *, trust_remote_code: bool = False, in_4bit: bool = False
) -> Any:
    """A causal language model in `dtype`. Raises `PolicyError` with one line where the folder holds none.

    `in_4bit`: the products of its layers in 4 bits (NF4 in blocks, by bitsandbytes), to be read only.
    """
    if holds_adapters(folder):
        return load_merged(folder, base_of(folder), dtype, trust_remote_code=trust_remote_code)
    path = Path(folder)
    if path.exists() and not (path / "config.json").is_file():
        raise PolicyError("holds no config.json", where=str(folder), expected="a Hugging Face model folder")
    return _loaded(folder, dtype, trust_remote_code, _four_bits(dtype) if in_4bit else {})


def load_merged(folder: str | Path, base: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """The model `base` with the adapters of `folder` in its weights: added in float32, then cast to `dtype`."""
    from peft import PeftModel

    model = load_model(base, torch.float32, trust_remote_code=trust_remote_code)
    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise PolicyError(
            f"no adapters can be loaded ({first_line(error)})",
            where=str(folder),
            expected=f"adapters of {base}, as peft writes them",
        ) from error
    return merged.to(dtype)


def _loaded(folder: str | Path, dtype: torch.dtype, trust_remote_code: bool, settings: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True, **settings
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PolicyError(
            f"no model can be loaded ({first_line(error)})",
            where=str(folder),
            expected="a Hugging Face model folder with safetensors, or a hub name",
        ) from error


def _four_bits(dtype: torch.dtype) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": settings, "device_map": {"": default_device()}}


# What changes scores or logits in ways that neither the forest nor the decoding attention computes; neutral values.
_CHANGES_LOGITS = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logits_scaling": 1,
    "logit_scale": 1,
}
_ATTENTION_LAYERS = ("full_attention", "sliding_attention")


def refuse_unsupported(config: Any) -> None:
    """Raise `PolicyError` for a model whose numbers would silently be other than its own code's."""
    for name, neutral in _CHANGES_LOGITS.items():
        value = getattr(config, name, None)
        if value is not None and value != neutral:
            raise PolicyError(f"the model's {name} is {value} (softcap or scale)", expected="a model without it")


def token_mixers(model: torch.nn.Module) -> list[str]:
    """What besides full and sliding attention lets a token see earlier ones; empty for a plain transformer.

    By the layers that the model has: the types that its configuration names, and modules that hold a convolution over
    tokens, as state spaces and linear attention do.
    """
    types = cast("list[str]", getattr(model.config, "layer_types", None) or [])
    convolving = [
        type(module).__name__
        for module in model.modules()
        if any(isinstance(part, torch.nn.Conv1d) and part.kernel_size[0] > 1 for part in module.children())
    ]
    return list(dict.fromkeys([name for name in types if name not in _ATTENTION_LAYERS] + convolving))
