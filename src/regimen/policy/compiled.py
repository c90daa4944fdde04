"""`policy.torch_compile`: the layers of a decoder through torch.compile, attention excepted.

In: a decoder's layers and the device they run on. Out: the same modules, compiled at their first call, once for all of
them and for forests of any size. Attention reads the forest's plan, which differs in each batch, so it stays as it is
(on a GPU it is a compiled kernel already). Refuses: a machine without the compiler that torch.compile needs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from regimen.errors import PolicyError
from regimen.policy.attention import ATTENTION_NAME, forest_attention


def compile_layers(layers: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Compile each layer in place; names and weights stay. Raises `PolicyError` where nothing can be compiled."""
    _require_compiler(device)
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, torch.compiler.disable(forest_attention))
    for layer in layers:
        layer.compile(dynamic=True)


def _require_compiler(device: torch.device) -> None:
    """Before anything runs: inside a training step the same would be a page of somebody else's traceback."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
            return
        except InvalidCxxCompiler:
            missing, fix = "a C++ compiler", "install g++ or clang, or name one in the environment variable CXX"
    else:
        from torch.utils._triton import has_triton

        if has_triton():
            return
        missing, fix = "Triton", "pip install triton"
    raise PolicyError(
        f"torch.compile needs {missing}, and there is none",
        where="policy.torch_compile",
        fix=f"{fix}; or set policy.torch_compile=false",
    )
