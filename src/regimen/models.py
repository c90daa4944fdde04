"""Loading Hugging Face models, for the two rooms that hold one: the policy and the in-process generation.

In: a folder or hub name. Out: a causal language model. Refuses: a folder that holds no model, pickled weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regimen.errors import PolicyError


def default_device() -> torch.device:
    """The GPU where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: str | Path, dtype: torch.dtype, *, trust_remote_code: bool = False) -> Any:
    """A causal language model in `dtype`. Raises `PolicyError` with one line where the folder holds none."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    path = Path(folder)
    if path.exists() and not (path / "config.json").is_file():
        raise PolicyError("holds no config.json", where=str(folder), expected="a Hugging Face model folder")
    logging.disable_progress_bar()
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise PolicyError(
            f"no model can be loaded ({str(error).strip().splitlines()[0]})",
            where=str(folder),
            expected="a Hugging Face model folder with safetensors, or a hub name",
        ) from error
