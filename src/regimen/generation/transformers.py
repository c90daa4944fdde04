"""The in-process engine: a Hugging Face decoder that batches whatever is waiting.

In: prompts, from any number of coroutines. Out: samples with token ids and log-probabilities.
A prefix that the waiting prompts share is computed once and kept once; equal prompts are prefilled once; a finished row
leaves at once and a waiting one takes its place; an episode that comes back with its history and more continues from
the keys it left behind. Each request draws from its own random stream, so a sample does not depend on its neighbours
beyond rounding. `load` gives models that its memory cannot serve, such as state spaces and sliding windows, to
`regimen.generation.rows`. Refuses: prompts beyond the model's positions.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regimen.errors import GenerationError
from regimen.generation.base import OnToken, Sample, Sampling
from regimen.generation.decode import DECODE_ATTENTION_NAME, DecodeView, KeyValueMemory
from regimen.generation.draw import draw
from regimen.generation.request import Request
from regimen.models import default_device, load_model, refuse_unsupported
from regimen.rank import is_first_process
from regimen.tokens.forest import common_prefix

_MIN_PREFIX = 16  # tokens; a shorter shared prefix is not worth a second attention call
_ROOM = 64  # own memory grows in steps of this many tokens
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class TransformersGeneration:
    """See `regimen.generation.base.Generation`."""

    def __init__(self, model: torch.nn.Module, *, max_batch_size: int = 64) -> None:
        refuse_unsupported(model.config)
        self._choose_attention(model)
        model.eval().requires_grad_(False)
        self.model: Any = model
        self.weight_version = 0
        self.max_batch_size = max_batch_size
        self._waiting: list[Request] = []  # the event loop's; the engine's thread never touches it
        self._admitted: list[Request] = []
        self._active: list[Request] = []  # index = row of the memory
        self._memory: KeyValueMemory | None = None
        self._prefix = np.zeros(0, np.int64)
        self._parked: OrderedDict[bytes, Tensor] = OrderedDict()
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "regimen-generation")
        self._max_positions = int(getattr(model.config, "max_position_embeddings", 0) or 2**31)  # type: ignore[union-attr]

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        precision: str = "bfloat16",
        max_batch_size: int = 64,
        trust_remote_code: bool = False,
    ) -> TransformersGeneration:
        """The engine of a model folder. Raises `PolicyError` where it is none."""
        from regimen.generation.rows import RowsGeneration, why_rows

        model = load_model(folder, _DTYPES[precision], trust_remote_code=trust_remote_code)
        reason = why_rows(model)
        if reason is not None and is_first_process():
            print(f"note: only prompts of one length are answered together: {reason}", file=sys.stderr)
        engine = cls if reason is None else RowsGeneration
        return engine(model.to(default_device()), max_batch_size=max_batch_size)

    def _choose_attention(self, model: torch.nn.Module) -> None:
        model.set_attn_implementation(DECODE_ATTENTION_NAME)  # type: ignore[operator]

    async def sample(
        self, prompt_ids: Sequence[int], sampling: Sampling, seed: int, on_token: OnToken | None = None
    ) -> Sample:
        """Sample one answer. Raises `GenerationError` when the prompt and the answer cannot fit the model."""
        prompt = np.asarray(prompt_ids, np.int64)
        if len(prompt) == 0 or len(prompt) + sampling.max_new_tokens > self._max_positions:
            raise GenerationError(
                f"prompt of {len(prompt)} tokens with max_new_tokens {sampling.max_new_tokens}",
                expected=f"1 to {self._max_positions} tokens in all",
            )
        loop = asyncio.get_running_loop()
        request = Request(prompt, sampling, loop.create_future(), np.random.Generator(np.random.Philox(seed)))
        request.on_token = on_token
        self._waiting.append(request)
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        return await request.future

    async def update(self, version: int, named_tensors: Iterable[tuple[str, Any]]) -> None:
        """Take new weights. Raises `GenerationError` while samples are under way, or for an unknown name."""
        self._require_idle("weights cannot change")
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in named_tensors:
                if name not in own:
                    raise GenerationError(f"unknown weight {name!r}")
                own[name].copy_(tensor)
        self.weight_version = version
        self._forget()

    async def release(self) -> None:
        """Free the keys and values. Raises `GenerationError` while samples are under way."""
        self._require_idle("memory cannot be freed")
        self._forget()
        self._memory = None

    def _require_idle(self, what: str) -> None:
        if self._active or self._admitted or self._waiting:
            raise GenerationError(f"{what} while samples are under way")

    async def close(self) -> None:
        """Stop working and free memory."""
        if self._worker is not None:
            self._worker.cancel()
        self._thread.shutdown(wait=True)
        self._memory = None
        self._forget()
        self.model = None

    def _forget(self) -> None:
        self._prefix = np.zeros(0, np.int64)
        self._parked.clear()
        if self._memory is not None:
            self._memory.prefix = None

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._settle()
                if not self._waiting and not self._active:
                    return
                await loop.run_in_executor(self._thread, self._advance, self._take())
                self._answer()
        except BaseException as error:
            self._fail(error)
            if isinstance(error, asyncio.CancelledError):
                raise

    async def _settle(self) -> None:
        """Let callers that were just answered come back with their next turn, so that batches do not depend on luck."""
        quiet = 0
        while quiet < 3:
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == before else 0

    def _take(self) -> list[np.ndarray]:
        """Move what there is room for from waiting to admitted; the prompts of all that waited."""
        waiting = [request for request in self._waiting if not request.future.cancelled()]
        free = self.max_batch_size - len(self._active)
        self._admitted, self._waiting = waiting[:free], waiting[free:]
        return [request.prompt for request in waiting]

    def _fail(self, error: BaseException) -> None:
        for request in [*self._active, *self._admitted, *self._waiting]:
            if not request.future.done():
                failure = GenerationError(f"the engine failed: {error!r}")
                failure.__cause__ = error
                request.future.set_exception(failure)
        self._active, self._admitted, self._waiting = [], [], []

    def _answer(self) -> None:
        """Answer finished requests; move the last rows into the places they leave."""
        for row in reversed(range(len(self._active))):
            request = self._active[row]
            if not request.future.cancelled():
                request.tell()
            if request.stop_reason is None and not request.future.cancelled():
                continue
            if request.stop_reason == "stop":
                self._park(row, request)
            if not request.future.done():
                request.future.set_result(
                    Sample(
                        ids=request.ids,
                        logprobs=request.logprobs,
                        weight_version=self.weight_version,
                        stop_reason=request.stop_reason or "length",
                    )
                )
            last = self._active.pop()
            if last is not request:
                assert self._memory is not None
                self._memory.copy_row(len(self._active), row, last.length)
                self._active[row] = last

    def _park(self, row: int, request: Request) -> None:
        assert self._memory is not None
        seen = np.concatenate([request.prompt, np.asarray(request.ids[:-1], np.int64)])
        start = len(self._prefix) if request.uses_prefix else 0
        if start + request.length == len(seen) and request.uses_prefix == bool(len(self._prefix)):
            self._parked[seen.tobytes()] = self._memory.take(row, request.length)
            while len(self._parked) > self.max_batch_size:
                self._parked.popitem(last=False)

    @torch.no_grad()
    def _advance(self, waiting: list[np.ndarray]) -> None:
        """Start what was admitted, then one decoding step for rows that are under way."""
        going = len(self._active)
        if self._admitted:
            self._admit(waiting)
        if going:
            going_on = self._active[:going]
            latest = [np.array([request.ids[-1]]) for request in going_on]
            self._sample(going_on, self._forward(0, latest, going_on))

    def _admit(self, waiting: list[np.ndarray]) -> None:
        if not self._active:
            self._choose_prefix(waiting)
        admitted = self._admitted
        admitted.sort(key=lambda request: request.prompt.tobytes())  # equal prompts stand together
        first = len(self._active)
        for request in admitted:
            request.uses_prefix = self._starts_with_prefix(request.prompt)
        self._reserve(first + len(admitted), max(self._own_tokens(request) for request in admitted))
        leaders: list[int] = []
        groups: list[int] = []
        for index, request in enumerate(admitted):
            if not index or not np.array_equal(request.prompt, admitted[index - 1].prompt):
                leaders.append(index)
            groups.append(len(leaders) - 1)
        self._active.extend(admitted)
        self._admitted = []
        logits = self._prefill(first, [admitted[index] for index in leaders])
        for index in reversed(range(len(admitted))):  # from the back: leaders stand packed at the front
            leader = admitted[leaders[groups[index]]]
            admitted[index].length = leader.length
            if groups[index] != index:
                assert self._memory is not None
                self._memory.copy_row(first + groups[index], first + index, leader.length)
        self._sample(admitted, logits[torch.tensor(groups)])

    def _own_tokens(self, request: Request) -> int:
        prefix = len(self._prefix) if request.uses_prefix else 0
        return len(request.prompt) - prefix + request.sampling.max_new_tokens

    def _starts_with_prefix(self, prompt: np.ndarray) -> bool:
        size = len(self._prefix)
        return 0 < size < len(prompt) and np.array_equal(prompt[:size], self._prefix)

    def _choose_prefix(self, prompts: list[np.ndarray]) -> None:
        """Keep the prefix that all waiting prompts begin with, or compute the longest one they share."""
        if all(self._starts_with_prefix(prompt) for prompt in prompts):
            return
        if len(prompts) < 2:
            return
        shared = min(common_prefix(prompts[0], prompt) for prompt in prompts)
        shared = min(shared, min(len(prompt) for prompt in prompts) - 1)
        if shared < _MIN_PREFIX:
            return
        self._forget()
        self._reserve(1, shared)
        self._active = []
        self._forward(0, [prompts[0][:shared]], [])
        assert self._memory is not None
        stored = self._memory.take(0, shared)
        self._memory.prefix = [(layer[0][None].clone(), layer[1][None].clone()) for layer in stored]
        self._prefix = prompts[0][:shared]

    def _prefill(self, first: int, leaders: list[Request]) -> Tensor:
        """Write the prompts of `leaders` to rows `first`…; logits behind their last tokens, `[len(leaders), V]`."""
        assert self._memory is not None
        rest: list[np.ndarray] = []
        for offset, request in enumerate(leaders):
            start = len(self._prefix) if request.uses_prefix else 0
            stored = self._recall(request)
            request.length = 0
            if stored is not None:
                self._memory.put(first + offset, stored)
                request.length = stored.shape[3]
            rest.append(request.prompt[start + request.length :])
        return self._forward(first, rest, leaders)

    def _recall(self, request: Request) -> Tensor | None:
        """The parked keys of the longest earlier turn that the prompt continues."""
        if request.uses_prefix != bool(len(self._prefix)):
            return None
        sizes = sorted({len(key) // 8 for key in self._parked}, reverse=True)
        for size in sizes:
            if size < len(request.prompt):
                stored = self._parked.pop(request.prompt[:size].tobytes(), None)
                if stored is not None:
                    return stored
        return None

    def _reserve(self, rows: int, tokens: int) -> None:
        """Make room for `rows` rows of `tokens` own tokens, keeping what the active rows hold."""
        device = self.model.get_input_embeddings().weight.device
        old = self._memory
        if old is not None and old.capacity >= tokens and old.own[0][0].shape[0] >= rows:
            return
        capacity = max(-(-tokens // _ROOM) * _ROOM, old.capacity if old is not None else 0)
        self._memory = KeyValueMemory.allocate(
            self.model.config, self.max_batch_size, capacity, self.model.dtype, device
        )
        if old is not None:
            self._memory.prefix = old.prefix
            for row, request in enumerate(self._active):
                self._memory.put(row, old.take(row, request.length))

    def _forward(self, first: int, parts: list[np.ndarray], members: list[Request]) -> Tensor:
        """Run the new tokens `parts` of the rows from `first` on; logits behind each row's last, `[n, V]` float32.

        `members` are the rows' requests; none for the shared prefix, which is computed in row 0.
        """
        counts = np.array([len(part) for part in parts])
        lengths = np.array([request.length for request in members] or [0])
        prefixes = np.array([request.uses_prefix for request in members] or [False])
        row = np.repeat(np.arange(len(parts)), counts)
        column = np.concatenate([np.arange(count) for count in counts])
        position = lengths[row] + column
        view = self._view(first, row, column, position, counts, lengths, prefixes)
        device = self.model.get_input_embeddings().weight.device
        offset = prefixes.astype(np.int64) * len(self._prefix)
        hidden = self.model.model(
            input_ids=torch.from_numpy(np.concatenate(parts))[None].to(device),
            position_ids=torch.from_numpy(position + offset[row])[None].to(device),
            use_cache=False,
            decode_view=view,
        ).last_hidden_state[0]
        for request, count in zip(members, counts.tolist(), strict=False):
            request.length += count
        last = torch.from_numpy(np.cumsum(counts) - 1).to(device)
        return self.model.get_output_embeddings()(hidden[last]).float()

    def _view(
        self,
        first: int,
        row: np.ndarray,
        column: np.ndarray,
        position: np.ndarray,
        counts: np.ndarray,
        lengths: np.ndarray,
        prefixes: np.ndarray,
    ) -> DecodeView:
        assert self._memory is not None
        total = int((lengths + counts).max())
        last_seen = lengths[:, None] + np.minimum(np.arange(counts.max())[None, :], counts[:, None] - 1)
        hidden = np.arange(total)[None, None, :] > last_seen[:, :, None]
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
        device = self.model.get_input_embeddings().weight.device
        return DecodeView(
            memory=self._memory,
            first_row=first,
            row=torch.from_numpy(row).to(device),
            column=torch.from_numpy(column).to(device),
            position=torch.from_numpy(position).to(device),
            length=total,
            mask=torch.from_numpy(np.ascontiguousarray(mask))[:, None].to(device),
            uses_prefix=torch.from_numpy(prefixes)[:, None, None].to(device) if prefixes.any() else None,
        )

    def _sample(self, requests: list[Request], logits: Tensor) -> None:
        """Draw one token for each request from its own stream."""
        temperatures = torch.tensor([r.sampling.temperature or 1.0 for r in requests], device=logits.device)
        logprobs = (logits / temperatures[:, None]).log_softmax(-1)
        draws = torch.tensor([r.random.random() for r in requests], dtype=torch.float64, device=logits.device)
        chosen = draw(logprobs, [r.sampling for r in requests], draws)
        values = logprobs.gather(1, chosen[:, None]).squeeze(1)
        for request, token, value in zip(requests, chosen.tolist(), values.tolist(), strict=True):
            request.ids.append(token)
            request.logprobs.append(value)
            if token in request.sampling.stop_ids:
                request.stop_reason = "stop"
            elif len(request.ids) >= request.sampling.max_new_tokens:
                request.stop_reason = "length"
