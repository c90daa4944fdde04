"""A model behind any OpenAI-compatible endpoint, as a `ChatModel`.

In: chat messages, tools, sampling, a seed. Out: replies; with `with_token_ids` (vLLM, Regimen) also the ids and
log-probabilities of what was sampled. Refuses: answers that are not what the protocol says, filtered answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from regimen.endpoint import Endpoint
from regimen.errors import EndpointError, GenerationError
from regimen.generation.base import Reply, Sampling, Tokens

KEY_VARIABLE = "REGIMEN_MODEL_KEY"
TOKEN_FIELDS = ("prompt_token_ids", "generation_token_ids", "generation_log_probs")  # NeMo Gym's, on a message
Object = dict[str, Any]


class RemoteChat:
    """See the module. `model` is the name that the endpoint knows."""

    def __init__(self, endpoint: Endpoint, model: str, *, with_token_ids: bool = False) -> None:
        self.endpoint = endpoint
        self.model = model
        self.with_token_ids = with_token_ids

    async def chat(self, messages: Sequence[Object], tools: Sequence[Object], sampling: Sampling, seed: int) -> Reply:
        """Ask the endpoint. Raises `GenerationError`."""
        body: Object = {
            "model": self.model,
            "messages": [_sent(message) for message in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed % 2**31,  # what every server takes
        }
        if tools:
            body["tools"] = list(tools)
        if sampling.top_k is not None:
            body["top_k"] = sampling.top_k
        if self.with_token_ids:
            body |= {"logprobs": True, "return_token_ids": True}
        try:
            answer = await self.endpoint.post("/chat/completions", body)
        except EndpointError as error:
            raise GenerationError(error.message, where=error.where, fix=error.fix) from error
        try:
            return self._reply(answer)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise GenerationError(
                f"the answer is no chat completion ({type(error).__name__}: {error})", where=self.endpoint.base_url
            ) from error

    def _reply(self, answer: Object) -> Reply:
        choice = answer["choices"][0]
        finish = choice.get("finish_reason")
        if finish == "content_filter":
            raise GenerationError("the endpoint filtered the answer", where=self.endpoint.base_url)
        usage: Object = answer.get("usage") or {}
        tokens = self._tokens(answer, choice) if self.with_token_ids else None
        return Reply(
            message=_message(choice["message"]),
            stop_reason="length" if finish == "length" else "stop",
            num_input_tokens=int(usage.get("prompt_tokens") or 0),
            num_output_tokens=int(usage.get("completion_tokens") or 0),
            weight_version=int(answer.get("weight_version") or 0),
            tokens=tokens,
        )

    def _tokens(self, answer: Object, choice: Object) -> Tokens:
        """The ids, from the message (NeMo Gym's spelling) or beside it (vLLM's)."""
        message = choice["message"]
        if message.get(TOKEN_FIELDS[1]) is not None:
            prompt, ids, logprobs = (message[field] for field in TOKEN_FIELDS)
        else:
            prompt, ids = answer.get("prompt_token_ids"), choice.get("token_ids")
            listed: Object = choice.get("logprobs") or {}
            entries: list[Object] = listed.get("content") or []
            logprobs = [entry["logprob"] for entry in entries]
        if not prompt or ids is None or len(ids) != len(logprobs):
            raise GenerationError(
                "the endpoint returned no token ids with log-probabilities",
                where=self.endpoint.base_url,
                fix="ask for none, or use a server that has them",
            )
        return Tokens(
            prompt_ids=[int(token) for token in prompt],
            ids=[int(token) for token in ids],
            logprobs=[float(value) for value in logprobs],
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.endpoint.close()


def _sent(message: Object) -> Object:
    """A message as endpoints take it: the content of an answer that only calls is null."""
    if message.get("role") == "assistant" and message.get("tool_calls") and not message.get("content"):
        return {**message, "content": None}
    return message


def _message(given: Object) -> Object:
    """The chat message of an answer, checked."""
    content = given.get("content") or ""
    if not isinstance(content, str):
        raise TypeError("content is no string")
    message: Object = {"role": "assistant", "content": content, "malformed_calls": 0}
    reasoning = given.get("reasoning_content") or given.get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        message["reasoning_content"] = reasoning
    if given.get(TOKEN_FIELDS[1]) is not None:  # a server that gives ids this way continues them when they come back
        message |= {field: given[field] for field in TOKEN_FIELDS[:2]}
    calls = [_call(call) for call in cast("list[Object]", given.get("tool_calls") or [])]
    if calls:
        message["tool_calls"] = calls
    return message


def _call(call: Object) -> Object:
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise TypeError("a tool call has no name or its arguments are no text")
    return {"id": str(call.get("id") or ""), "type": "function", "function": {"name": name, "arguments": arguments}}
