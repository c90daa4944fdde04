"""The conversation of one episode with a model: token by token where the ids are ours, message by message elsewhere.

In: the prompt's messages and tools, then what follows each answer. Out: the model's replies.
Held as ids, history is never rendered again: the next prompt is the previous prompt, the sampled ids and the ids of
what follows. A model behind an endpoint is sent all messages each time, and renders them itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from regimen.generation.base import ChatModel, Generation, Reply, Sampling, Tokens

Message = dict[str, Any]


class Renderer(Protocol):
    """What a conversation needs of `regimen.tokens.template.Renderer`."""

    fingerprint: str
    template_fingerprint: str
    stop_ids: tuple[int, ...]

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Message]) -> list[int]:
        """Ids of a conversation, the header of the assistant's turn included."""
        ...

    def continuation_ids(self, assistant: Message, appended: Sequence[Message], tools: Sequence[Message]) -> list[int]:
        """Ids between the sampled ids of `assistant` and its next turn."""
        ...

    def parse_assistant(self, ids: Sequence[int]) -> Message:
        """The chat message in sampled ids."""
        ...


class Conversation(Protocol):
    """One episode's talk with a model. The fingerprints are None where the model renders for itself."""

    fingerprint: str | None
    template_fingerprint: str | None

    def begin(self, messages: Sequence[Message], tools: Sequence[Message]) -> None:
        """Take the prompt."""
        ...

    def num_tokens(self) -> int:
        """Tokens so far, 0 where they are not known."""
        ...

    async def reply(self, sampling: Sampling, seed: int) -> Reply:
        """The model's next answer."""
        ...

    def extend(self, reply: Reply, appended: Sequence[Message]) -> None:
        """Go on behind `reply` with what followed it."""
        ...


class TokenConversation:
    """A conversation held as ids."""

    def __init__(self, generation: Generation, renderer: Renderer) -> None:
        self.generation = generation
        self.renderer = renderer
        self.fingerprint: str | None = renderer.fingerprint
        self.template_fingerprint: str | None = renderer.template_fingerprint
        self.prompt_ids: list[int] = []
        self.tools: list[Message] = []

    def begin(self, messages: Sequence[Message], tools: Sequence[Message]) -> None:
        """Render the prompt."""
        self.tools = list(tools)
        self.prompt_ids = self.renderer.prompt_ids(messages, tools)

    def num_tokens(self) -> int:
        """Length of the next prompt."""
        return len(self.prompt_ids)

    async def reply(self, sampling: Sampling, seed: int) -> Reply:
        """Sample, and read the message in the ids."""
        if not sampling.stop_ids:
            sampling = msgspec.structs.replace(sampling, stop_ids=self.renderer.stop_ids)
        sample = await self.generation.sample(self.prompt_ids, sampling, seed)
        return Reply(
            message=self.renderer.parse_assistant(sample.ids),
            stop_reason=sample.stop_reason,
            num_input_tokens=len(self.prompt_ids),
            num_output_tokens=len(sample.ids),
            weight_version=sample.weight_version,
            tokens=Tokens(prompt_ids=self.prompt_ids, ids=sample.ids, logprobs=sample.logprobs),
        )

    def extend(self, reply: Reply, appended: Sequence[Message]) -> None:
        """The next prompt: this one, the sampled ids, the ids of what follows."""
        following = self.renderer.continuation_ids(reply.message, appended, self.tools)
        sampled = reply.tokens.ids if reply.tokens else []
        self.prompt_ids = [*self.prompt_ids, *sampled, *following]


class MessageConversation:
    """A conversation with a model that takes messages."""

    fingerprint: str | None = None
    template_fingerprint: str | None = None

    def __init__(self, model: ChatModel) -> None:
        self.model = model
        self.messages: list[Message] = []
        self.tools: list[Message] = []

    def begin(self, messages: Sequence[Message], tools: Sequence[Message]) -> None:
        """Take the prompt."""
        self.messages, self.tools = list(messages), list(tools)

    def num_tokens(self) -> int:
        """Not known here; the endpoint refuses what is too long."""
        return 0

    async def reply(self, sampling: Sampling, seed: int) -> Reply:
        """Ask the model."""
        return await self.model.chat(self.messages, self.tools, sampling, seed)

    def extend(self, reply: Reply, appended: Sequence[Message]) -> None:
        """Append the answer and what followed it."""
        answer = {key: value for key, value in reply.message.items() if key != "malformed_calls"}
        self.messages = [*self.messages, answer, *appended]
