"""A policy in this process: a Hugging Face decoder with float32 master weights, on one device.

In: forests. Out: log-probabilities, or one optimiser step over all of them. Model folders in and out are ordinary
Hugging Face folders. With `lora` the weights are frozen, in the dtype that computes, and float32 adapters train: they
alone have gradients, optimiser and checkpoints. Refuses: what `regimen.policy.decoder` does, a gradient that is not
finite.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from regimen.errors import NonFiniteError, PolicyError
from regimen.models import default_device, load_model
from regimen.policy.base import Loss, StepResult
from regimen.policy.checkpoint import model_tensors, save_model
from regimen.policy.decoder import ForestDecoder, compute_dtype, supervision
from regimen.policy.lora import Adapters, LoraOptions, WithoutAdapters
from regimen.policy.schedule import build_optimizer, build_schedule
from regimen.tokens.forest import Forest


@dataclass(frozen=True, slots=True)
class LocalPolicyOptions:
    """How to hold and train the model.

    `temperature` divides the logits, as the sampler does. `with_entropy`: losses are given entropies too.
    """

    precision: str = "bfloat16"
    temperature: float = 1.0
    max_grad_norm: float | None = 1.0
    optimizer: str = "torch.optim.AdamW"
    optimizer_kwargs: dict[str, Any] = field(default_factory=lambda: {"lr": 5e-6})
    schedule: list[dict[str, Any]] | None = None
    activation_checkpointing: bool = False
    torch_compile: bool = False
    trust_remote_code: bool = False
    with_entropy: bool = False
    train: bool = True
    lora: LoraOptions | None = None

    @property
    def weights_dtype(self) -> torch.dtype:
        """What the weights are held in: float32 masters where they train."""
        return torch.float32 if self.lora is None else compute_dtype(self.precision)


class LocalPolicy:
    """See `regimen.policy.base.Policy`."""

    def __init__(self, model: torch.nn.Module, options: LocalPolicyOptions) -> None:
        self.options = options
        self.model = model
        self.adapters = None if options.lora is None else Adapters(model, options.lora)
        self.decoder, self.device = self._placed(model)
        if options.torch_compile:
            from regimen.policy.compiled import compile_layers  # a second of imports that others do without

            compile_layers(model.model.layers, self.device)  # type: ignore[union-attr,arg-type]
        if options.activation_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        model.train(options.train)
        if self.adapters is not None:
            self.adapters.drop(False)
        self.optimizer = self.schedule = None
        if options.train:
            self.optimizer = build_optimizer(model, options.optimizer, options.optimizer_kwargs)
            self.schedule = build_schedule(self.optimizer, options.schedule)
        else:
            model.requires_grad_(False)

    @classmethod
    def load(cls, folder: str | Path, options: LocalPolicyOptions) -> LocalPolicy:
        """The policy of a model folder, on the GPU where there is one. Raises `PolicyError` where it is none."""
        in_4bit = options.lora is not None and options.lora.in_4bit
        trust = options.trust_remote_code
        model = load_model(folder, options.weights_dtype, trust_remote_code=trust, in_4bit=in_4bit)
        return cls(model if in_4bit else model.to(default_device()), options)

    @property
    def num_shares(self) -> int:
        """Into how many shares the forests of a batch are divided."""
        return 1

    @property
    def unrolled(self) -> str | None:
        """Why each sequence is a row of its own; None where sequences share prefixes."""
        return self.decoder.unrolled

    def logprobs(self, forests: Sequence[Forest]) -> list[np.ndarray]:
        """Current log-probabilities of each forest's entries, `[E]` float32, without gradient."""
        with torch.no_grad():
            return [self._computed(forest)[0].cpu().numpy() for forest in forests]

    def train_step(
        self,
        forests: Sequence[Forest],
        loss: Loss,
        before_step: Callable[[], None] | None = None,
        *,
        advance_schedule: bool = True,
    ) -> StepResult:
        """Accumulate the loss over `forests`, clip, step. Raises `NonFiniteError` on a non-finite one.

        `before_step` is called when all gradients are there; what it raises keeps the weights as they are.
        `advance_schedule`: whether this is the last optimiser step of a step of the run.
        """
        optimizer, schedule = self._training_state()
        optimizer.zero_grad(set_to_none=True)
        with self._dropping():
            total, metrics = self._accumulate(forests, loss, backward=True)
        limit = self.options.max_grad_norm
        norm = self._clip_gradients(float("inf") if limit is None else limit)
        if not np.isfinite(norm) or not np.isfinite(total):
            raise self._not_finite(total, norm)
        if before_step is not None:
            before_step()
        rate = float(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if advance_schedule:
            schedule.step()
        return StepResult(total, norm, rate, metrics, sum(forest.num_tokens for forest in forests))

    def evaluate(self, forests: Sequence[Forest], loss: Loss) -> StepResult:
        """The same sums without a gradient."""
        with torch.no_grad():
            total, metrics = self._accumulate(forests, loss, backward=False)
        return StepResult(total, 0.0, 0.0, metrics, sum(forest.num_tokens for forest in forests))

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Current weights under their Hugging Face names, tied ones once; with adapters, what these change, merged."""
        yield from self.model.named_parameters() if self.adapters is None else self.adapters.merged(_as_it_is)

    def without_adapters(self) -> WithoutAdapters:
        """The policy as it was before training, without a second copy of its weights."""
        if self.adapters is None:
            raise PolicyError("this policy has no adapters that could be left out")
        return WithoutAdapters(self, self.adapters)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face model folder: weights as bfloat16 safetensors when trained in it, config.

        With adapters, peft's folder of them alone.
        """
        if self.adapters is not None:
            self.adapters.save(folder, dict(self.adapters.tensors(_as_it_is)))
            return
        save_model(self.model, folder, compute_dtype(self.options.precision))

    def saver(self) -> Callable[[Path], None]:
        """A function that writes what `save` would write now, whatever the weights are by then."""
        if (adapters := self.adapters) is not None:
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in adapters.tensors(_as_it_is)}
            return lambda folder: adapters.save(folder, copies)
        dtype = compute_dtype(self.options.precision)
        tensors = model_tensors(self.model, dtype, copy=True)
        return lambda folder: save_model(self.model, folder, dtype, tensors)

    def state(self) -> dict[str, Any]:
        """Trained weights, optimiser and schedule: what resuming needs. Tensors and plain values only."""
        optimizer, schedule = self._training_state()
        return {
            "model": {name: tensor.detach() for name, tensor in self._trained().items()},
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        optimizer, schedule = self._training_state()
        own = self._trained()
        other = [name for name in {*own, *state["model"]} if _shape(own, name) != _shape(state["model"], name)]
        if other:
            raise PolicyError(
                f"the checkpoint's weights are of another model: {', '.join(sorted(other)[:3])}",
                fix="resume with the model that the run was begun with",
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state["model"][name])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])

    def _training_state(self) -> tuple[Optimizer, LRScheduler]:
        """Optimiser and schedule. Raises `PolicyError` where the policy has none."""
        if self.optimizer is None or self.schedule is None:
            raise PolicyError("this policy was loaded for reading and has no training state")
        return self.optimizer, self.schedule

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    @contextmanager
    def _dropping(self) -> Generator[None]:
        """While the block runs, the adapters' dropout acts."""
        if self.adapters is not None:
            self.adapters.drop(True)
        try:
            yield
        finally:
            if self.adapters is not None:
                self.adapters.drop(False)

    def _not_finite(self, loss: float, norm: float) -> NonFiniteError:
        """Says which weights got the bad gradient, as far as it tells them apart."""
        named = [(name, p) for name, p in self.model.named_parameters() if p.grad is not None]
        bad = [name for name, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        where = f" in {len(bad)} of {len(named)} weights, first {bad[0]}" if bad and len(bad) < len(named) else ""
        return NonFiniteError(
            f"loss {loss}, gradient norm {norm}: not finite{where}; no step was taken",
            fix="look at the batch; lower the learning rate",
        )

    def save_shards(self, folder: Path) -> None:
        """Write what no single process holds: nothing here, as `state` has it all."""

    def shards_saver(self, group: Any) -> Callable[[Path], None]:  # noqa: ARG002
        """A function that writes what `save_shards` would."""
        return self.save_shards

    def load_shards(self, folder: Path) -> None:
        """Restore what `save_shards` wrote."""

    def _placed(self, model: torch.nn.Module) -> tuple[ForestDecoder, torch.device]:
        """The forward pass, and where it runs."""
        decoder = ForestDecoder(model, compute_dtype(self.options.precision), self.options.temperature)
        return decoder, next(model.parameters()).device

    def _clip_gradients(self, limit: float) -> float:
        """Scale the gradients to a norm of at most `limit`; returns the norm before."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.clip_grad_norm_(parameters, limit).item()

    def _accumulate(self, forests: Sequence[Forest], loss: Loss, *, backward: bool) -> tuple[float, dict[str, float]]:
        total, metrics = 0.0, dict[str, float]()
        for forest in forests:
            logprob, entropy = self._computed(forest, self.options.with_entropy)
            output = loss(logprob, supervision(forest, self.device, entropy))
            if backward:
                output.loss.backward()
            total += float(output.loss.detach())
            for name, value in output.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + value
        return total, metrics

    def _computed(self, forest: Forest, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities and entropies of a forest's entries."""
        return self.decoder(forest, self.device, with_entropy)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
