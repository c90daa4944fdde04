"""LoRA: small trained products beside frozen weights, made by peft.

In: a causal language model whose weights are whole, `LoraOptions`. Out: the same module, changed in place: the chosen
linear layers become peft's, everything else is frozen. A layer computes x W' + alpha / dim * x A' B'; A is drawn from
the seed and B is 0, so that the model begins as it was and is, with its adapters off, the reference of its training.
Written are peft's folders, which `peft.PeftModel` loads.
Refuses: names that fit no linear layer, the vocabulary head, whose product is computed in chunks.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_meant
from regimen.errors import ConfigError
from regimen.policy.base import LogprobReader
from regimen.policy.checkpoint import save_tensors
from regimen.tokens.forest import Forest

_KEY = "policy.dtensor_cfg.lora_cfg"
_NAME = "default"  # of the one adapter, as peft calls it
Whole = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class LoraOptions:
    """Which layers get adapters, and how they begin. Without target modules: all linear layers but the excluded."""

    dim: int = 8
    alpha: int = 32
    target_modules: tuple[str, ...] = ()
    exclude_modules: tuple[str, ...] = ()
    dropout: float = 0.0
    init: str = "xavier"  # or kaiming, as peft has it
    seed: int = 0
    in_4bit: bool = False  # whether the frozen weights are loaded in 4 bits


class Adapters:
    """The adapters in a model: `layers` maps the names of its changed linear layers to peft's."""

    def __init__(self, model: Any, options: LoraOptions) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self.options = options
        self.config = LoraConfig(
            r=options.dim,
            lora_alpha=options.alpha,
            lora_dropout=options.dropout,
            target_modules=choose_layers(model, options),
            task_type="CAUSAL_LM",
            base_model_name_or_path=_absolute(model.config.name_or_path),
        )
        inject_adapter_in_model(self.config, model, _NAME)
        self.model = model
        self.layers: dict[str, Any] = {
            name: module for name, module in model.named_modules() if hasattr(module, "base_layer")
        }
        self._begin()
        self.drop(False)

    def _begin(self) -> None:
        """Float32 adapters, A from the seed alone, B zero: the same in every process."""
        generator = torch.Generator().manual_seed(self.options.seed)
        for layer in self.layers.values():
            layer.cast_input_dtype_enabled = False  # the products are computed in one dtype, by autocast or by shards
            down, up = layer.lora_A[_NAME].float(), layer.lora_B[_NAME].float()
            start = torch.empty(down.weight.shape)
            if self.options.init == "xavier":
                torch.nn.init.xavier_normal_(start, generator=generator)
            else:
                torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                down.weight.copy_(start)
                up.weight.zero_()

    def drop(self, enabled: bool) -> None:
        """Whether the adapters' dropout acts: while a training step runs, never while something is measured."""
        if self.options.dropout:
            for layer in self.layers.values():
                layer.lora_dropout.train(enabled)

    @contextmanager
    def off(self) -> Generator[None]:
        """While the block runs, the model computes without its adapters."""
        self._disable(True)
        try:
            yield
        finally:
            self._disable(False)

    def _disable(self, value: bool) -> None:
        # Not peft's `enable_adapters`: it sets `requires_grad` too, which FSDP reads once, at the first forward pass.
        for layer in self.layers.values():
            layer._disable_adapters = value

    def tensors(self, whole: Whole) -> Iterator[tuple[str, Tensor]]:
        """The adapters' weights under peft's names in files; `whole` gathers what lies in shards."""
        for name, layer in self.layers.items():
            yield f"base_model.model.{name}.lora_A.weight", whole(layer.lora_A[_NAME].weight.detach())
            yield f"base_model.model.{name}.lora_B.weight", whole(layer.lora_B[_NAME].weight.detach())

    def merged(self, whole: Whole) -> Iterator[tuple[str, Tensor]]:
        """The weights that the model differs in from its files, float32, adapters added, under Hugging Face names."""
        for name, layer in self.layers.items():
            down, up = (whole(part[_NAME].weight.detach()) for part in (layer.lora_A, layer.lora_B))
            base = _plain(layer.base_layer, whole).float()
            yield f"{name}.weight", base.addmm(up, down, alpha=layer.scaling[_NAME])
        for name, module in self.model.named_modules():
            if _is_in_4bit(module) and not name.endswith(".base_layer"):
                yield f"{name}.weight", _plain(module, whole).float()

    def save(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Write peft's folder: `tensors` as of `tensors()`, and the configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)
        settings = {**self.config.to_dict(), "inference_mode": True}
        settings = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
        text = json.dumps(settings, indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class WithoutAdapters:
    """A policy as it was before training: its log-probabilities with the adapters off, no second copy of weights."""

    policy: LogprobReader
    adapters: Adapters

    @property
    def num_shares(self) -> int:
        """As the policy's."""
        return self.policy.num_shares

    @property
    def unrolled(self) -> str | None:
        """As the policy's."""
        return self.policy.unrolled

    def logprobs(self, forests: Sequence[Forest]) -> list[np.ndarray]:
        """Log-probabilities of each forest's entries, `[E]` float32."""
        with self.adapters.off():
            return self.policy.logprobs(forests)


def choose_layers(model: Any, options: LoraOptions) -> list[str]:
    """The linear layers that get adapters: by the last parts of their names where those say it all, else in full."""
    head = model.get_output_embeddings()
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    wanted = options.target_modules
    for key, patterns in (("target_modules", wanted), ("exclude_modules", options.exclude_modules)):
        for pattern in patterns:
            if not any(is_meant(name, [pattern]) for name in linear):
                raise ConfigError(
                    f"{pattern!r} fits no linear layer of a {type(model).__name__}",
                    where=f"{_KEY}.{key}",
                    expected=f"some of {', '.join(sorted({_last(name) for name in linear}))}, or patterns with *",
                )
    chosen = [name for name in linear if not wanted or is_meant(name, wanted)]
    chosen = [name for name in chosen if not is_meant(name, options.exclude_modules)]
    if wanted and any(linear[name] is head for name in chosen):
        raise ConfigError(
            "names the vocabulary head, which takes no adapter in this build",
            where=f"{_KEY}.target_modules",
            expected="layers of attention and MLP",
        )
    chosen = [name for name in chosen if linear[name] is not head]
    if not chosen:
        raise ConfigError("no layer is left to get an adapter", where=f"{_KEY}.exclude_modules")
    short = sorted({_last(name) for name in chosen})
    return short if {name for name in linear if _last(name) in short} == set(chosen) else chosen


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _absolute(name: str) -> str:
    """A folder by its full path: adapters are loaded from other working directories too."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def _is_in_4bit(module: Any) -> bool:
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None and hasattr(
        module, "compute_dtype"
    )


def _plain(module: Any, whole: Whole) -> Tensor:
    """The weight of a linear layer, `[out, in]`, as its product uses it."""
    if not _is_in_4bit(module):
        return whole(module.weight.detach())
    functions = importlib.import_module("bitsandbytes.functional")  # there where weights in 4 bits are
    return functions.dequantize_4bit(module.weight.data, module.weight.quant_state)
