"""The estimate against numbers worked out by hand, and against what autograd really keeps of a tiny model's forward."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from small_shape import MODEL
from small_shape import PARAMETERS as P

from regimen.diagnosis.memory import CHUNK_BYTES, PARTS, GenerationLoad, MemoryEstimate, Workload, estimate_memory
from regimen.diagnosis.shapes import LoraShape
from regimen.policy.decoder import ForestDecoder, compute_dtype
from regimen.policy.logprobs import CHUNK_BYTES as REAL_CHUNK_BYTES
from regimen.tokens.forest import TrainingSequence, build_forest

# A token of a layer in float32: the residual and its norm twice, four inputs (one for q, k, v, one for the MLP, as
# float32 keeps them), q, the output twice, k, v, the MLP's four, log-sum-exp and the norms' scales.
LAYER = 4 * (4 * 8 + 2 * 8 + 3 * 4 * 2 + 2 * 2 * 2 + 4 * 16) + 4 * 4 + 2 * 4
ONCE = 4 * 2 * 8 + 4 + 2 * 4 * 2 + 8  # embedding and last norm, its scale, rotary tables of D = 2, the id


def found(**work: Any) -> MemoryEstimate:
    estimate = estimate_memory(MODEL, Workload(**{"tokens": 10, **work}))
    assert estimate is not None
    return estimate


def test_the_parts_by_hand() -> None:
    estimate = found(libraries=7)
    assert (estimate.weights, estimate.gradients, estimate.optimiser) == (4 * P, 4 * P, 8 * P)
    assert (estimate.reference, estimate.generation, estimate.keys_values, estimate.working) == (0, 0, 0, 0)
    assert estimate.activations == 10 * (2 * LAYER + ONCE)
    # Backward: logits of 10 words, and the gradient of the head as a product and as a sum.
    assert estimate.vocabulary == 4 * 10 * 100 + 8 * 100 * 8
    assert estimate.phases["training"] == 7 + 16 * P + estimate.activations + estimate.vocabulary
    assert (estimate.total, estimate.peak_phase) == (estimate.phases["training"], "training")
    assert set(PARTS) < set(MemoryEstimate.__struct_fields__)


def test_what_the_settings_change() -> None:
    assert found(checkpointing=True).activations == 10 * (2 * 4 * 8 + LAYER + ONCE)
    assert found(moments=0).optimiser == 0
    assert found(targets=3).vocabulary == 4 * 3 * 100 + 8 * 100 * 8
    assert found(tokens=10**9).vocabulary == 2 * CHUNK_BYTES
    assert CHUNK_BYTES == REAL_CHUNK_BYTES
    half = found(precision="bfloat16")
    assert half.working == 2 * 2 * 576  # the casts of both layers' matrices
    assert half.vocabulary == 4000 + 2000 + 800 * (4 + 2) + 2 * 800


def test_a_reference_is_held_or_was_there_before() -> None:
    plain = found()
    held, before = found(reference="held"), found(reference="before", plain_tokens=1)
    assert held.total == plain.total + 4 * P
    assert before.phases["training"] == plain.phases["training"]
    # One token without a gradient: three values of the residual's size, the MLP's three, two rows of logits.
    assert before.phases["reference"] == 8 * P + 12 * 8 + 4 * 3 * 16 + 2 * 4 * 100


def test_what_playing_episodes_holds() -> None:
    load = GenerationLoad(precision="bfloat16", rows=3, positions=65)
    estimate = found(generation=load)
    room = 3 * 128 * (2 * 2 * 2 * 2 * 2)  # rows of 128 tokens x keys and values x layers x heads x D x bytes
    assert (estimate.generation, estimate.keys_values) == (2 * P, room)
    assert estimate.phases["generation"] == 18 * P + room + 5 * 4 * 3 * 100
    assert found(generation=GenerationLoad(precision="bfloat16", rows=3, positions=65, turns=2)).keys_values == 2 * room


def test_what_a_checkpoint_copies() -> None:
    assert found().phases["saving"] == 16 * P
    assert found(precision="bfloat16").phases["saving"] == 18 * P
    assert found(copies=True).phases["saving"] == 16 * P + 4 * P + 12 * P
    assert found(copies=True, saves_state=False).phases["saving"] == 20 * P
    alone = found().phases["training"]  # a thread writes copies while the next step trains
    assert found(copies=True).phases["training"] == alone + 16 * P
    assert found(copies=True, goes_on=False).phases["training"] == alone


def test_the_file_is_mapped_while_weights_are_read() -> None:
    assert found(file=50).phases["loading"] == 4 * P + 50
    assert found(file=50, reference="before").phases["loading"] == 8 * P + 50
    assert "loading" not in found(file=50, on_gpu=True).phases


def test_processes_share_the_weights_and_gather_two_layers_and_what_is_outside() -> None:
    estimate = found(is_sharded=True, processes=2)
    assert estimate.weights == 4 * P / 2
    assert estimate.working == 4 * (808 + 2 * 592)
    assert estimate.phases["loading"] == 4 * P
    split = found(is_sharded=True, processes=2, tensor_parallel=2)
    assert split.weights == 4 * (808 + 2 * (576 // 2 + 16))
    assert split.activations < estimate.activations
    assert found(is_sharded=True, processes=2, on_gpu=True, offloads=True).weights == 0


class Kept:
    """The memory that autograd keeps for the backward pass, each storage once, without the model's own."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.storages: dict[int, Any] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self.storages[storage.data_ptr()] = storage
        return tensor

    @property
    def size(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_activations_are_what_autograd_keeps(tiny: ModuleType, kind: str, precision: str) -> None:
    """The difference of two lengths leaves out the casts of weights; none of the sampled positions is at its end."""
    model = tiny.tiny_model(kind, num_hidden_layers=3, head_dim=8)
    sizes = {tokens: kept_by(model, precision, tokens) for tokens in (100, 150)}
    estimates = {tokens: estimate_memory(model.config.to_dict(), Workload(tokens=tokens, precision=precision))
                 for tokens in sizes}  # fmt: skip
    predicted = estimates[150].activations - estimates[100].activations  # type: ignore[union-attr]
    assert predicted == sizes[150] - sizes[100]


def kept_by(model: Any, precision: str, tokens: int) -> int:
    forest = build_forest([TrainingSequence(list(range(tokens)), [(50, 60)])])
    # Only ten tokens are predicted, whatever the length; the forest ends with the last token all the same.
    kept = Kept(model)
    decoder = ForestDecoder(model, compute_dtype(precision), 1.0)
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        decoder(forest, torch.device("cpu"))
    return kept.size


@pytest.mark.parametrize(
    ("lora", "trained"),
    [
        # In each of two layers: q 8 + 8, k and v 8 + 4, o 8 + 8; gate, up and down 8 + 16
        (LoraShape(4), 4 * 2 * (16 + 12 + 12 + 16 + 3 * 24)),
        (LoraShape(4, targets=("q_proj", "*.mlp.*")), 4 * 2 * (16 + 3 * 24)),
        (LoraShape(2, excluded=("*.layers.0.*", "up_proj")), 2 * (16 + 12 + 12 + 16 + 2 * 24)),
    ],
)
def test_adapters_alone_have_gradients_and_moments(lora: LoraShape, trained: int) -> None:
    estimate = found(precision="bfloat16", reference="held", lora=lora)
    assert (estimate.gradients, estimate.optimiser, estimate.reference) == (4 * trained, 8 * trained, 0)
    assert estimate.weights == 2 * P + 4 * trained
    assert estimate.working == 0
    assert estimate.vocabulary == 2 * 4 * 10 * 100
    everything = estimate.activations + estimate.vocabulary
    assert estimate.phases["training"] == 2 * P + 16 * trained + everything
    assert found(precision="bfloat16", lora=LoraShape(4, in_4bit=True)).weights == P // 2 + 4 * 4 * 2 * 128
