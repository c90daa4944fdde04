"""What training holds in memory, by arithmetic from a model's config.json and the work of one process.

In: the dictionary of config.json and a `Workload`. Out: a `MemoryEstimate` in bytes, or None where the sizes are not
written in the usual names. Measured and not computed is only `libraries`, which the caller hands in. Fragments and the
scratch memory of kernels add to it.

With P parameters (`shapes` has them, and the letters), held by `processes` of which `tensor_parallel` share each layer:

    weights      4 P: float32 masters (`LocalPolicy.load`), divided among the processes (FSDP2)
    gradients    4 P, divided likewise; optimiser: 4 P for each moment (AdamW has two)
    working      bfloat16: 2 bytes of each layer's matrices, as autocast keeps its casts until the backward pass;
                 sharded: the outer parameters and two layers whole, in the precision of the products
    adapters     with LoRA these alone are trained: weights are theirs in float32 and P in the precision, or half a byte
                 each in 4 bits; no reference, and no gradient of the head
    reference    4 P where the loss reads one at each step; before training where its log-probabilities are kept
    generation   2 P or 4 P where episodes are played; keys and values 2 L K D for each of `rows` rows of `positions`
                 tokens (`KeyValueMemory`), again for what is parked between turns, and the first pass over prompts
    activations  what autograd saves for a token, in a layer: the residual and its norm twice in float32 (16 H bytes and
                 two scales of 4), in the products' precision their inputs (2 H, or 5 H in bfloat16, where q, k, v,
                 gate and up each keep a cast of their own), q and the output twice and once k and v
                 (D (3A + 2K)), 4 I of the MLP, and the log-sum-exp, 4 A bytes. With checkpointing 4 H bytes for
                 each layer, and one layer as above. Once: embedding and last norm 8 H + 4, rotary tables 8 D, ids 8
    vocabulary   (`chunked_logprobs`) a chunk of float32 logits, at most 256 MiB, twice in the forward pass; in the
                 backward pass once, or twice with an entropy bonus, with its cast in bfloat16, and the head's gradient
                 as a product and as their sum

The phases of a run hold different parts, and the peak is the largest:

    loading      all weights and the model's file, which is mapped meanwhile; with many processes the whole model
    reference    weights, the reference, one micro-batch without gradient
    generation   all of training but activations, keys and values
    training     the above and activations; gradients stay from one micro-batch to the next, and their pages to the next
                 step, as the C library and a GPU's allocator keep what is freed
    saving       all of training but activations; a cast for the model's folder, and copies where a thread writes them
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from regimen.diagnosis.shapes import Config, LoraShape, Shape, shape_of

GIGABYTE = 10**9
CHUNK_BYTES = 256 * 2**20  # as in `chunked_logprobs`
WIDTHS = {"bfloat16": 2, "float32": 4}
ROOM = 64  # rows of keys grow in steps of this many tokens
# The parts of an estimate that stand for memory, in the order in which they are shown.
PARTS = (
    "libraries",
    "weights",
    "working",
    "gradients",
    "optimiser",
    "reference",
    "generation",
    "keys_values",
    "activations",
    "vocabulary",
)


class GenerationLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What playing episodes holds: `rows` rows of `positions` tokens; `prefill` tokens of prompts go in at once."""

    precision: str
    rows: int
    positions: int
    prefill: int = 0
    turns: int = 1


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """The work of one process.

    `tokens` and `targets` (None: as many): computed and predicted in the largest micro-batch; `plain_tokens` of the
    largest that needs no gradient. `reference`: held all the time, or until its values are there. `copies`: a thread
    writes checkpoints; `goes_on`: while the next steps train. `file`: bytes of the model on disk.
    """

    tokens: int
    targets: int | None = None
    plain_tokens: int = 0
    precision: str = "float32"
    moments: int = 2
    checkpointing: bool = False
    entropy_bonus: bool = False
    reference: Literal["none", "before", "held"] = "none"
    generation: GenerationLoad | None = None
    saves_state: bool = True
    copies: bool = False
    goes_on: bool = True
    is_sharded: bool = False
    processes: int = 1
    tensor_parallel: int = 1
    sequence_parallel: bool = False
    offloads: bool = False
    on_gpu: bool = False
    file: int = 0
    libraries: int = 0
    lora: LoraShape | None = None


class MemoryEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one process by what they are for; `phases` has the sums of those that are there at once."""

    parameters: int
    libraries: int
    weights: int
    working: int
    gradients: int
    optimiser: int
    reference: int
    generation: int
    keys_values: int
    activations: int
    vocabulary: int
    phases: dict[str, int]

    @property
    def parts(self) -> dict[str, int]:
        """What the memory is for, in the order in which it is shown."""
        return {name: getattr(self, name) for name in PARTS}

    @property
    def total(self) -> int:
        """The peak."""
        return max(self.phases.values())

    @property
    def peak_phase(self) -> str:
        """Where the peak is."""
        return max(self.phases, key=self.phases.__getitem__)


def estimate_memory(model: Config, work: Workload) -> MemoryEstimate | None:
    """The estimate for one process; see the module for the formula."""
    shape = shape_of(model)
    if shape is None:
        return None
    held = _Held(shape, work)
    generation = work.generation
    return MemoryEstimate(
        parameters=shape.parameters,
        libraries=work.libraries,
        weights=held.weights,
        working=held.working,
        gradients=held.trained,
        optimiser=work.moments * held.trained,
        reference=held.reference,
        generation=0 if generation is None else WIDTHS[generation.precision] * shape.parameters,
        keys_values=0 if generation is None else _keys_values(shape, generation),
        activations=held.activations(work.tokens),
        vocabulary=held.vocabulary(work.tokens if work.targets is None else work.targets),
        phases=_phases(shape, work, held),
    )


class _Held:
    """The parts, for one process."""

    def __init__(self, shape: Shape, work: Workload) -> None:
        self.shape, self.work, self.width = shape, work, WIDTHS[work.precision]
        layer = shape.products // work.tensor_parallel + shape.rest
        share = max(1, work.processes // work.tensor_parallel)
        stays = 0 if work.on_gpu and work.offloads else 1  # on the device
        number = math.ceil((shape.outer + shape.layers * layer) / share)
        if work.lora is None:
            self.trained = self.weights = stays * 4 * number
            self.reference = self.trained if work.reference != "none" else 0
        else:  # the reference is the policy with its adapters off
            self.trained = stays * 4 * math.ceil(work.lora.parameters(shape) / share)
            self.weights = self.trained + stays * (number // 2 if work.lora.in_4bit else self.width * number)
            self.reference = 0
        if work.is_sharded:
            self.working = self.width * (shape.outer + 2 * layer)
        elif work.lora is not None:
            self.working = 2 * layer if work.lora.in_4bit else 0
        else:
            self.working = 2 * shape.layers * shape.products if self.width == 2 else 0

    def activations(self, tokens: int) -> int:
        """What autograd keeps of `tokens` until the backward pass."""
        once = tokens * (8 * self.shape.hidden + 4 + 8 * self.shape.head + 8)
        layer, layers = self._layer(tokens), self.shape.layers
        if self.work.checkpointing:
            return once + layers * tokens * 4 * self.shape.hidden + layer
        return once + layers * layer

    def _layer(self, tokens: int) -> int:
        shape, work, width = self.shape, self.work, self.width
        split, inputs = work.tensor_parallel, 5 if width == 2 else 2
        norms = (16 * shape.hidden + 8) // (split if work.sequence_parallel else 1)
        # A GPU's kernel gets the keys and values of each head, and one mask for all layers.
        heads = 3 * shape.heads + 2 * (shape.heads if work.on_gpu else shape.kv_heads)
        attention = (width * shape.head * heads + 4 * shape.heads) // split
        if shape.has_head_norms:
            attention += ((4 + width) * shape.head + 4) * (shape.heads + shape.kv_heads) // split
        mlp = 4 * width * shape.intermediate * shape.used_experts // split
        return tokens * (norms + width * inputs * shape.hidden + attention + mlp)

    def plain(self, tokens: int) -> int:
        """What a pass without gradient holds: one layer's residual, attention or MLP."""
        shape = self.shape
        widest = max(3 * shape.intermediate * shape.used_experts, 2 * shape.head * (shape.heads + shape.kv_heads))
        return tokens * (12 * shape.hidden + self.width * widest) + 2 * self._chunk(tokens)

    def vocabulary(self, targets: int) -> int:
        """The most that log-probabilities hold beside hidden states, in the forward or the backward pass."""
        chunk, head = self._chunk(targets), self.shape.words * self.shape.hidden
        is_cast = self.width == 2
        slopes = chunk * (2 if self.work.entropy_bonus else 1) + (chunk // 2 if is_cast else 0)
        if self.work.lora is not None:  # the head is frozen, in the precision of the products
            return max(2 * chunk, slopes)
        cast_head = 2 * head if is_cast and not self.work.is_sharded else 0
        return max(2 * chunk, slopes + head * (4 + self.width)) + cast_head

    def _chunk(self, targets: int) -> int:
        return min(CHUNK_BYTES, 4 * targets * self.shape.words)


def _phases(shape: Shape, work: Workload, held: _Held) -> dict[str, int]:
    """The sums of what is there at once."""
    whole = (4 if work.lora is None else held.width) * shape.parameters
    weights, gradients, moments = held.weights, held.trained, work.moments * held.trained
    generation = 0 if work.generation is None else WIDTHS[work.generation.precision] * shape.parameters
    stays = work.libraries + weights + generation + (held.reference if work.reference == "held" else 0)
    phases: dict[str, int] = {}
    if not work.on_gpu:  # weights are read into the processor's memory
        before = work.libraries + weights + held.reference if work.reference == "before" else 0
        phases["loading"] = max(stays, before, work.libraries + whole) + work.file
    if work.reference == "before":
        phases["reference"] = work.libraries + weights + held.reference + held.plain(work.plain_tokens)
    if work.generation is not None:
        played = _keys_values(shape, work.generation) + _sampling(shape, work.generation)
        phases["generation"] = stays + gradients + moments + played
    targets = work.tokens if work.targets is None else work.targets
    trained = held.working + held.activations(work.tokens) + held.vocabulary(targets)
    mask = work.tokens**2 * (1 + held.width) if work.on_gpu else 0
    phases["training"] = stays + gradients + moments + max(trained + mask, held.plain(work.plain_tokens))
    if work.copies and work.goes_on and not work.on_gpu:
        phases["training"] += _copies(shape, work, held)
    if not work.on_gpu:
        phases["saving"] = stays + gradients + moments + _copies(shape, work, held)
    return phases


def _copies(shape: Shape, work: Workload, held: _Held) -> int:
    """What a checkpoint holds beside the state: the folder's weights in its precision, the state where a thread has it.

    Of many processes, the first gathers the whole weights; a cast to what the masters are is none.
    """
    written = held.width * shape.parameters if work.lora is None else held.trained
    copied = written if work.copies or work.is_sharded or held.width == 2 else 0
    state = (1 + work.moments) * held.trained if work.copies and work.saves_state else 0
    return copied + state


def _keys_values(shape: Shape, load: GenerationLoad) -> int:
    """Room for all rows; between turns also what rows left parked, while their room grows from a turn's to the next."""
    token = 2 * shape.layers * shape.kv_heads * shape.head * WIDTHS[load.precision]
    room = load.rows * math.ceil(load.positions / ROOM) * ROOM * token
    return room + 2 * room * (load.turns - 1) // load.turns


def _sampling(shape: Shape, load: GenerationLoad) -> int:
    """The first pass over prompts, or one token of each row: logits, scaled, their logarithm, exponents, draws."""
    width = WIDTHS[load.precision]
    widest = max(3 * shape.intermediate * shape.used_experts, 3 * shape.head * shape.heads)
    return max(load.prefill * width * (4 * shape.hidden + widest), 5 * 4 * load.rows * shape.words)
