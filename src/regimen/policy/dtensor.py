"""A policy over many processes: FSDP2 shards of float32 master weights, and tensor parallel inside the layers.

Every process is given all forests of the global batch and computes its share of them; what comes back (losses, figures,
log-probabilities) is that of all forests, the same on every process. A process without a forest of its own in a round
runs an idle one, so that all make the same collective calls.
Refuses: what `regimen.policy.local` and `regimen.policy.sharding` refuse; processes that tensor parallel does not
divide.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from regimen.errors import ConfigError
from regimen.models import default_device, load_model
from regimen.policy.base import Loss
from regimen.policy.checkpoint import model_tensors, save_model
from regimen.policy.decoder import ForestDecoder, compute_dtype, supervision
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.policy.ranks import current_ranks
from regimen.policy.sharding import Sharding, shard_decoder
from regimen.policy.shards import load_shards, save_shards, shards_writer
from regimen.tokens.forest import Forest, TrainingSequence, build_forest
from regimen.tokens.packing import divide

# It warns of each weight that is gathered over both dimensions of the mesh; exports are rare.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class DTensorPolicyOptions(LocalPolicyOptions):
    """How to divide the model, besides how to train it."""

    tensor_parallel_size: int = 1
    sequence_parallel: bool = False
    cpu_offload: bool = False


class DTensorPolicy(LocalPolicy):
    """See `regimen.policy.base.Policy`; the processes must be connected (`regimen.policy.ranks.connected`)."""

    options: DTensorPolicyOptions

    def __init__(self, model: torch.nn.Module, options: DTensorPolicyOptions) -> None:
        self.ranks = current_ranks()
        self.mesh = _mesh(self.ranks.size, options.tensor_parallel_size)
        super().__init__(model, options)

    @classmethod
    def load(cls, folder: str | Path, options: LocalPolicyOptions) -> DTensorPolicy:
        """The policy of a model folder. Each process reads it all, and keeps its shard."""
        assert isinstance(options, DTensorPolicyOptions)
        return cls(load_model(folder, options.weights_dtype, trust_remote_code=options.trust_remote_code), options)

    @property
    def num_shares(self) -> int:
        """Into how many shares the forests of a batch are divided."""
        return self.mesh["dp"].size()

    def logprobs(self, forests: Sequence[Forest]) -> list[np.ndarray]:
        """Current log-probabilities of each forest's entries, `[E]` float32, without gradient."""
        found: dict[int, bytes] = {}
        with torch.no_grad():
            for index, forest in self._rounds(forests):
                values, _ = self._computed(forest)
                if index is not None:
                    found[index] = values.cpu().numpy().tobytes()
        everything: dict[int, bytes] = {}
        for part in self.ranks.gather(found):
            everything |= part
        return [np.frombuffer(everything[index], np.float32).copy() for index in range(len(forests))]

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Current weights under their Hugging Face names, whole; every process must take all of them.

        With adapters, the weights that these change, merged.
        """
        if self.adapters is not None:
            yield from self.adapters.merged(_whole)
            return
        for name, parameter in self.model.named_parameters():
            yield name, _whole(parameter.detach())

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model folder; the first process writes what all gather, one tensor at a time.

        With adapters, peft's folder of them alone.
        """
        self.saver()(folder)
        self.ranks.wait()

    def saver(self) -> Callable[[Path], None]:
        """A function that writes what `save` would write now, on the first process; all must ask for it."""
        adapters = self.adapters
        dtype = torch.float32 if adapters is not None else compute_dtype(self.options.precision)
        named = self.named_tensors() if adapters is None else adapters.tensors(_whole)
        tensors: dict[str, Tensor] = {}
        for name, tensor in named:
            if self.ranks.is_first:
                tensors[name] = tensor.to("cpu", dtype, copy=True)
        # Not in the writer's thread: listing the state makes FSDP drop what it has gathered.
        if self.ranks.is_first and adapters is None:
            tensors = model_tensors(self.model, dtype, tensors)

        def write(folder: Path) -> None:
            if self.ranks.is_first and adapters is not None:
                adapters.save(folder, tensors)
            elif self.ranks.is_first:
                save_model(self.model, folder, dtype, tensors)

        return write

    def state(self) -> dict[str, Any]:
        """The schedule; weights and optimiser are in the shards."""
        return {"schedule": self._training_state()[1].state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._training_state()[1].load_state_dict(state["schedule"])

    def save_shards(self, folder: Path) -> None:
        """Write master weights and optimiser into `folder`, each process its own."""
        save_shards(self.model, self._training_state()[0], folder)

    def shards_saver(self, group: Any) -> Callable[[Path], None]:
        """A function that writes what `save_shards` would write now, from a copy; every process calls it."""
        return shards_writer(self.model, self._training_state()[0], group)

    def load_shards(self, folder: Path) -> None:
        """Restore what any number of processes wrote with `save_shards`."""
        load_shards(self.model, self._training_state()[0], folder)

    def _placed(self, model: torch.nn.Module) -> tuple[ForestDecoder, torch.device]:
        dtype = compute_dtype(self.options.precision)
        decoder = ForestDecoder(model, dtype, self.options.temperature, casts=False)
        sharding = Sharding(self.mesh, dtype, self.options.sequence_parallel, self.options.cpu_offload)
        shard_decoder(decoder, sharding)
        return decoder, default_device()

    def _computed(self, forest: Forest, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        if self.options.sequence_parallel:
            forest = _padded(forest, self.options.tensor_parallel_size)
        return super()._computed(forest, with_entropy)

    def _rounds(self, forests: Sequence[Forest]) -> Iterator[tuple[int | None, Forest]]:
        """This process's forests with their places; an idle one, without a place, where others still have some."""
        shares = divide([forest.num_tokens for forest in forests], self.num_shares)
        mine = shares[self.mesh["dp"].get_local_rank()]
        for turn in range(max(map(len, shares))):
            yield (mine[turn], forests[mine[turn]]) if turn < len(mine) else (None, _idle_forest())

    def _accumulate(self, forests: Sequence[Forest], loss: Loss, *, backward: bool) -> tuple[float, dict[str, float]]:
        total, metrics = 0.0, dict[str, float]()
        for index, forest in self._rounds(forests):
            logprob, entropy = self._computed(forest, self.options.with_entropy)
            if index is None:
                value = (logprob * 0).sum()
            else:
                output = loss(logprob, supervision(forest, self.device, entropy))
                value = output.loss
                total += float(value.detach())
                for name, figure in output.metrics.items():
                    metrics[name] = metrics.get(name, 0.0) + figure
            if backward:
                (value * self.num_shares).backward()  # FSDP takes the mean over processes, the loss is a sum
        return self._summed(total, metrics)

    def _summed(self, total: float, metrics: dict[str, float]) -> tuple[float, dict[str, float]]:
        """The sums over all shares; the processes of one share hold the same."""
        is_one_of_share = self.mesh["tp"].get_local_rank() == 0
        sums: dict[str, float] = {}
        parts = self.ranks.gather([total, metrics] if is_one_of_share else [0.0, {}])
        for _, figures in parts:
            for name, figure in figures.items():
                sums[name] = sums.get(name, 0.0) + figure
        return sum(part[0] for part in parts), sums

    def _clip_gradients(self, limit: float) -> float:
        """Scale the gradients to a norm of at most `limit`; returns the norm before, over all shards."""
        gradients = [p.grad for p in self.model.parameters() if isinstance(p.grad, DTensor)]
        shards = [gradient.to_local() for gradient in gradients]
        squares = torch.zeros(2, dtype=torch.float64, device=shards[0].device)
        for gradient, shard in zip(gradients, shards, strict=True):
            squares[int(_is_divided(gradient, "tp"))] += torch.linalg.vector_norm(shard).double().square()
        dist.all_reduce(squares[1:], group=self.mesh["tp"].get_group())
        dist.all_reduce(squares, group=self.mesh["dp"].get_group())
        norm = squares.sum().sqrt().item()
        if limit < norm < float("inf"):
            for shard in shards:
                shard.mul_(limit / (norm + 1e-6))
        return norm


def _mesh(num_processes: int, tensor_parallel_size: int) -> DeviceMesh:
    if num_processes % tensor_parallel_size:
        raise ConfigError(
            f"is {tensor_parallel_size}, but there {'is' if num_processes == 1 else 'are'} {num_processes} "
            f"process{'' if num_processes == 1 else 'es'}",
            where="policy.dtensor_cfg.tensor_parallel_size",
            expected="a divisor of the number of processes",
            fix=f"start the run with a multiple of {tensor_parallel_size} processes",
        )
    shape = (num_processes // tensor_parallel_size, tensor_parallel_size)
    return init_device_mesh(default_device().type, shape, mesh_dim_names=("dp", "tp"))


def _idle_forest() -> Forest:
    """Two tokens of weight 0."""
    return build_forest([TrainingSequence([0, 0], [(1, 2)], sample_mask=0.0)])


def _padded(forest: Forest, multiple: int) -> Forest:
    """The forest with trees of one token behind it that nothing sees, up to a multiple of tokens."""
    size = forest.num_tokens
    fill = np.arange(size, size + -size % multiple)
    zeros = np.zeros_like(fill)
    return replace(
        forest,
        tokens=np.concatenate([forest.tokens, zeros]),
        depth=np.concatenate([forest.depth, zeros]),
        parent=np.concatenate([forest.parent, zeros - 1]),
        end=np.concatenate([forest.end, fill + 1]),
    )


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _is_divided(tensor: DTensor, name: str) -> bool:
    """Whether the mesh dimension `name` holds different parts of the tensor."""
    placements = zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True)
    return any(dimension == name and isinstance(placement, Shard) for dimension, placement in placements)
