"""What model servers are asked for: the bodies of `/v1/chat/completions`, `/v1/responses` and `/tokenize`.

In: parsed JSON. Out: typed requests, and the sampling they ask for. Unknown keys are left alone, as other servers do.
Refuses, by name: what this server cannot do and would change the answer (stop strings, penalties, forced tool calls,
schemas of answers, several top log-probabilities).
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from regimen.errors import RequestError
from regimen.generation.base import Sampling

Object = dict[str, Any]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_COLDEST = 1e-3  # divides logits; smaller ones overflow and are greedy in all but name


class _Asked(msgspec.Struct, kw_only=True):
    """What both ways of asking a model share."""

    model: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    seed: int | None = None
    stream: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    tools: list[Object] | None = None
    tool_choice: str | Object | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = None
    return_token_ids: bool | None = None
    stop: Any = None
    logit_bias: Any = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None

    def refused(self) -> dict[str, bool]:
        """Names of parameters, and whether they ask for what cannot be done."""
        return {
            "stop": bool(self.stop),
            "logit_bias": bool(self.logit_bias),
            "frequency_penalty": bool(self.frequency_penalty),
            "presence_penalty": bool(self.presence_penalty),
            "repetition_penalty": self.repetition_penalty not in (None, 1),
            "min_p": bool(self.min_p),
            "top_logprobs": bool(self.top_logprobs),
            "tool_choice": self.tool_choice not in (None, "auto", "none"),
        }


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream ends with."""

    include_usage: bool | None = None


class ChatRequest(_Asked, kw_only=True):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Object], Meta(min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=64)] | None = None
    logprobs: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Object | None = None

    def refused(self) -> dict[str, bool]:
        """See `_Asked.refused`."""
        form = (self.response_format or {}).get("type", "text")
        return {**_Asked.refused(self), "response_format": form != "text"}

    @property
    def max_new_tokens(self) -> int | None:
        """The limit of the answer, by its new or its old name."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class ResponsesRequest(_Asked, kw_only=True):
    """The body of `/v1/responses`."""

    input: str | list[Object]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    metadata: Object | None = None
    include: list[str] | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    background: bool | None = None
    text: Object | None = None
    truncation: str | None = None

    def refused(self) -> dict[str, bool]:
        """See `_Asked.refused`."""
        form = (self.text or {}).get("format")
        kind = form.get("type", "text") if isinstance(form, dict) else "text"  # type: ignore[union-attr]
        return {
            **_Asked.refused(self),
            "previous_response_id": self.previous_response_id is not None,
            "conversation": self.conversation is not None,
            "background": bool(self.background),
            "text.format": kind != "text",
            "truncation": self.truncation not in (None, "disabled"),
        }

    @property
    def max_new_tokens(self) -> int | None:
        """The limit of the answer."""
        return self.max_output_tokens


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of `/tokenize`: a text, or messages as they would be asked."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Object] | None = None
    tools: list[Object] | None = None


def check_supported(request: ChatRequest | ResponsesRequest) -> None:
    """Raise `RequestError` naming the first parameter that cannot be honoured."""
    for name, is_refused in request.refused().items():
        if is_refused:
            raise RequestError(
                "this server cannot do that", code="unsupported_parameter", where=name, fix=f"leave {name} out"
            )
    temperature = request.temperature
    if temperature is not None and 0 < temperature < _COLDEST:
        raise RequestError(f"is {temperature}", where="temperature", expected=f"0, or at least {_COLDEST}")


def sampling_of(request: ChatRequest | ResponsesRequest, defaults: Sampling, room: int) -> Sampling:
    """How to sample: what is asked, the server's defaults for the rest, and never more than there is room for."""
    wanted = request.max_new_tokens or defaults.max_new_tokens
    top_k = defaults.top_k if request.top_k is None else request.top_k
    return Sampling(
        temperature=defaults.temperature if request.temperature is None else request.temperature,
        top_p=defaults.top_p if request.top_p is None else request.top_p,
        top_k=top_k if top_k is not None and top_k > 0 else None,
        max_new_tokens=min(wanted, room),
        stop_ids=tuple(dict.fromkeys([*defaults.stop_ids, *(request.stop_token_ids or ())])),
    )


def seed_of(request: ChatRequest | ResponsesRequest) -> int:
    """The seed asked for, or a fresh one."""
    return secrets.randbits(62) if request.seed is None else request.seed & (2**62 - 1)
