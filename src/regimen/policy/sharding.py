"""How a decoder's weights lie over processes: tensor parallel inside each layer, FSDP2 around it.

In: a `ForestDecoder` whose weights are whole, a mesh of `dp` x `tp` processes. Out: the same module, whose parameters
are shards. Embeddings, head and norms stay whole over `tp`; fused projections (Phi-3) are computed in shares and put
together again, so that each process sees all heads.
Refuses tensor parallel by name: layers that hold other modules than attention, a gated MLP and norms; heads that do not
divide; norms over all heads together.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from regimen.errors import PolicyError

_SPLIT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_FUSED = ("self_attn.qkv_proj", "mlp.gate_up_proj")
_JOIN = ("self_attn.o_proj", "mlp.down_proj")
_ADAPTED = ("base_layer", "lora_A", "lora_B")  # what stands below a linear layer with adapters
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_HEADS = 2  # dimension of `[batch, tokens, heads, head size]`, which the norms of heads see
_TOKENS = 1  # dimension of `[batch, tokens, hidden]`


@dataclass(frozen=True, slots=True)
class Sharding:
    """`sequence`: between the layers' products, each process of `tp` holds a share of the tokens."""

    mesh: DeviceMesh
    dtype: torch.dtype
    sequence: bool = False
    cpu_offload: bool = False

    @property
    def offloads(self) -> bool:
        """Whether shards wait in the processor's memory; without a GPU they are there already."""
        return self.cpu_offload and self.mesh.device_type != "cpu"

    @property
    def tensor_parallel_size(self) -> int:
        """Processes that share each layer's products."""
        return self.mesh["tp"].size()


def shard_decoder(decoder: Any, sharding: Sharding) -> None:
    """Replace the parameters of `decoder`, a `ForestDecoder`, by this process's shards."""
    model, is_split = decoder.causal_lm.base_model, sharding.tensor_parallel_size > 1
    layers = layers_of(model)
    if is_split:
        _check_rows(decoder, model)
    arguments: dict[str, Any] = {
        "mesh": sharding.mesh["dp"],
        "mp_policy": _precision(sharding.dtype),
        "offload_policy": CPUOffloadPolicy() if sharding.offloads else OffloadPolicy(),
        # The outermost weights too: between steps, only shards are there to be read, saved or replaced.
        "reshard_after_forward": True,
    }
    for index, layer in enumerate(layers):  # one at a time, so that a GPU never holds more whole than one
        if is_split:
            _split_layer(layer, decoder.causal_lm.config, sharding, f"layer {index} of a {type(model).__name__}")
        fully_shard(layer, **arguments)
    if is_split and sharding.sequence:
        _share_tokens(model, sharding.mesh["tp"])
    fully_shard(decoder, **arguments)


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that are sharded one at a time; none where layers share weights, which then stay together."""
    found: Any = getattr(model, "layers", ())
    layers: list[torch.nn.Module] = list(found)
    owners = Counter(id(weight) for layer in layers for weight in layer.parameters())
    return [] if any(number > 1 for number in owners.values()) else layers


def _check_rows(decoder: Any, model: torch.nn.Module) -> None:
    """Tensor parallel knows the parts of attention and MLP only, in layers that own their weights."""
    if decoder.unrolled is not None or not layers_of(model):
        raise _refusal(decoder.unrolled or "layers share weights", f"a {type(model).__name__}")


def _precision(dtype: torch.dtype) -> MixedPrecisionPolicy:
    if dtype == torch.float32:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)


def _split_layer(layer: Any, config: Any, sharding: Sharding, where: str) -> None:
    mesh = sharding.mesh["tp"]
    _check_heads(layer, config, mesh.size())
    parallelize_module(layer, mesh, _layer_plan(layer, sharding, where))


def _share_tokens(model: Any, mesh: DeviceMesh) -> None:
    """Divide the tokens behind the embedding, gather them behind the last norm."""
    share = PrepareModuleOutput(output_layouts=Replicate(), desired_output_layouts=Shard(_TOKENS))
    whole = PrepareModuleOutput(output_layouts=Shard(_TOKENS), desired_output_layouts=Replicate())
    parallelize_module(model.embed_tokens, mesh, share)
    parallelize_module(model.norm, mesh, SequenceParallel(use_local_output=True))
    parallelize_module(model.norm, mesh, whole)


def _layer_plan(layer: Any, sharding: Sharding, where: str) -> dict[str, ParallelStyle]:
    """What to do with each module of a layer that holds parameters."""
    output = Shard(_TOKENS) if sharding.sequence else Replicate()
    plan: dict[str, ParallelStyle] = {}
    for name, module in layer.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        owner, part = _part_of(name)
        if owner in (*_SPLIT, *_FUSED):
            if part != "lora_A":  # whole everywhere: its few outputs enter each share of the next product
                plan[name] = ColwiseParallel(output_layouts=Replicate() if owner in _FUSED else None)
        elif owner in _JOIN:
            if part != "lora_B":  # whole everywhere: it begins with the sum over the shares
                is_fused = hasattr(layer.get_submodule(owner.split(".")[0]), _fused_name(owner))
                entry = Replicate() if is_fused else Shard(-1)
                plan[name] = RowwiseParallel(input_layouts=entry, output_layouts=output)
        elif name in _HEAD_NORMS:
            if module.weight.shape != (layer.self_attn.head_dim,):
                raise _refusal(f"its {name} is over all heads together", where)
            plan[name] = SequenceParallel(sequence_dim=_HEADS, use_local_output=True)
        elif "." in name or "norm" not in name:
            raise _refusal(f"it holds {name} ({type(module).__name__})", where)
        elif sharding.sequence:
            plan[name] = SequenceParallel(use_local_output=True)
    if sharding.sequence:
        plan |= _gathering()
    return plan


def _part_of(name: str) -> tuple[str, str]:
    """The linear layer that a module belongs to, and which part of it; without adapters it is its own base."""
    for part in _ADAPTED:
        owner, found, _ = name.partition(f".{part}")
        if found:
            return owner, part
    return name, "base_layer"


def _fused_name(joining: str) -> str:
    return "qkv_proj" if joining.startswith("self_attn") else "gate_up_proj"


def _gathering() -> dict[str, ParallelStyle]:
    """All tokens for attention and MLP, from the shares between them."""
    shared, whole = Shard(_TOKENS), Replicate()
    return {
        "self_attn": PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": shared}, desired_input_kwarg_layouts={"hidden_states": whole}
        ),
        "mlp": PrepareModuleInput(input_layouts=(shared,), desired_input_layouts=(whole,)),
    }


def _check_heads(layer: Any, config: Any, size: int) -> None:
    if hasattr(layer.self_attn, "qkv_proj"):
        return
    heads = (config.num_attention_heads, config.num_key_value_heads)
    if any(number % size for number in heads):
        raise PolicyError(
            f"{heads[0]} attention heads and {heads[1]} key-value heads do not divide by {size}",
            where="policy.dtensor_cfg.tensor_parallel_size",
            expected="a divisor of both",
        )


def _refusal(seen: str, where: str) -> PolicyError:
    return PolicyError(
        f"tensor parallel is not implemented for this model: {seen}",
        where=where,
        expected="q, k, v, o projections, a gated MLP and norms, named as in Llama or Phi-3",
        fix="set policy.dtensor_cfg.tensor_parallel_size=1; FSDP shards this model too",
    )
