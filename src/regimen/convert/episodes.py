"""Scored rollouts in the form that training rows are made of: prompt, completion, tools, reward and token sequences.

In: `Rollout`s that carry a reward. Out: `Episode`s, with every message in chat spelling.
Refuses: items that have no chat form (`RolloutError`, raised by the message mapping; the row is quarantined).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from regimen.convert.options import Reasoning
from regimen.rollouts.messages import chat_tools, input_messages, output_messages
from regimen.rollouts.records import Rollout, Source
from regimen.rollouts.turns import TokenSequence, sequences_of, turns_of

Message = dict[str, Any]
RowKey = tuple[str, int]


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """One scored episode.

    `prompt_key` is equal for equal prompts and tools. `num_sampled` counts the sampled ids of the rollout. `packed`
    holds its token sequences (`num_sequences` of them) in a sixth of the memory that Python's numbers take.
    """

    source: Source
    task_id: str
    task_index: int | None
    rollout_index: int | None
    environment: str | None
    reward: float
    prompt: list[Message]
    completion: list[Message]
    tools: list[dict[str, Any]]
    prompt_key: str
    packed: bytes
    num_sequences: int
    num_sampled: int
    tokenizer: str | None
    template: str | None

    @property
    def key(self) -> RowKey:
        """The row's identity in the ledger."""
        return (self.source.path, self.source.line)

    @property
    def sequences(self) -> list[TokenSequence]:
        """The token sequences, unpacked; none when the rollout carried no ids."""
        return msgspec.msgpack.decode(self.packed, type=list[TokenSequence])

    @property
    def num_turns(self) -> int:
        """Model calls: assistant messages of the completion."""
        return sum(message["role"] == "assistant" for message in self.completion)

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """All tool calls of the completion, in order."""
        return [call for message in self.completion for call in message.get("tool_calls", [])]

    @property
    def has_reasoning(self) -> bool:
        """Whether any message carries reasoning."""
        return any(message.get("reasoning_content") for message in [*self.prompt, *self.completion])

    @property
    def is_single_message(self) -> bool:
        """Whether the model answered with one message of text and had no tools, so that a string says it all."""
        return not self.tools and len(self.completion) == 1 and not self.tool_calls and self.num_turns == 1

    @property
    def is_plain_exchange(self) -> bool:
        """Whether the whole episode is one user message and one answer of text."""
        return self.is_single_message and [message["role"] for message in self.prompt] == ["user"]


def episode_of(rollout: Rollout) -> Episode:
    """Map a scored rollout; raises `RolloutError` when an item has no chat form."""
    assert rollout.reward is not None
    prompt = input_messages(rollout.params)
    tools = chat_tools(rollout.params)
    sequences = sequences_of(turns_of(rollout.output))
    tokenizer, template = fingerprints(rollout)
    return Episode(
        source=rollout.source,
        task_id=rollout.task_id,
        task_index=rollout.task_index,
        rollout_index=rollout.rollout_index,
        environment=rollout.environment,
        reward=rollout.reward,
        prompt=prompt,
        completion=output_messages(rollout.output),
        tools=tools,
        prompt_key=digest([with_numbered_calls(prompt), tools]),
        packed=msgspec.msgpack.encode(sequences),
        num_sequences=len(sequences),
        num_sampled=sum(sequence.num_trained for sequence in sequences),
        tokenizer=tokenizer,
        template=template,
    )


def fingerprints(rollout: Rollout) -> tuple[str | None, str | None]:
    """The tokenizer's and the chat template's fingerprint that the collector stamped, where it did."""
    stamp = rollout.row.get("regimen")
    if not isinstance(stamp, dict):
        return None, None
    stamp = cast("dict[str, Any]", stamp)
    found = (stamp.get("tokenizer"), stamp.get("template"))
    tokenizer, template = (value if isinstance(value, str) else None for value in found)
    return tokenizer, template


def num_sampled_ids(rollout: Rollout) -> int:
    """Sampled ids that the row carries, counted without a look at them."""
    found = (item.get("generation_token_ids") for item in rollout.output)
    return sum(len(cast("list[Any]", ids)) for ids in found if isinstance(ids, list))


def without_trailing_observations(episode: Episode) -> Episode:
    """`episode` ending with the last thing the model wrote; what the environment said after it trains nothing."""
    last = max((i for i, message in enumerate(episode.completion) if message["role"] == "assistant"), default=-1)
    if last + 1 == len(episode.completion):
        return episode
    return msgspec.structs.replace(episode, completion=episode.completion[: last + 1])


def with_reasoning(episode: Episode, mode: Reasoning) -> Episode:
    """`episode` with its reasoning as a field, as `<think>` text, or dropped.

    Dropped reasoning drops the token ids too: they hold the reasoning and would train it all the same.
    """
    if mode in ("auto", "reasoning_content") or not episode.has_reasoning:
        return episode
    return msgspec.structs.replace(
        episode,
        prompt=[_reasoned(message, mode) for message in episode.prompt],
        completion=[_reasoned(message, mode) for message in episode.completion],
        **({"packed": msgspec.msgpack.encode([]), "num_sequences": 0} if mode == "drop" else {}),
    )


def lost_ids(before: Episode, after: Episode) -> bool:
    """Whether dropping reasoning took the token ids away."""
    return before.num_sequences > after.num_sequences


def _reasoned(message: Message, mode: Reasoning) -> Message:
    reasoning = message.get("reasoning_content")
    if not reasoning:
        return message
    kept = {key: value for key, value in message.items() if key != "reasoning_content"}
    if mode == "inline":
        kept["content"] = f"<think>\n{reasoning}\n</think>\n\n{kept.get('content') or ''}"
    return kept


def num_invalid_arguments(episode: Episode) -> int:
    """Tool calls whose arguments are not a JSON object; they are kept as the text they are."""
    return sum(not _is_json_object(call["function"]["arguments"]) for call in episode.tool_calls)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def text_key(episode: Episode) -> str:
    """Equal for completions that say the same; call ids, which are random, count only by their order."""
    return digest(with_numbered_calls(episode.completion))


def with_numbered_calls(messages: Sequence[Message]) -> list[Message]:
    """`messages` with call ids replaced by the order in which they appear."""
    numbers: dict[str, str] = {}
    numbered: list[Message] = []
    for message in messages:
        copied = dict(message)
        if "tool_calls" in copied:
            copied["tool_calls"] = [
                {**call, "id": numbers.setdefault(str(call["id"]), str(len(numbers)))} for call in copied["tool_calls"]
            ]
        if "tool_call_id" in copied:
            call_id = str(copied["tool_call_id"])
            copied["tool_call_id"] = numbers.setdefault(call_id, str(len(numbers)))
        numbered.append(copied)
    return numbered


def digest(value: Any) -> str:
    """A hash of a JSON value that does not depend on the order of keys."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()[:32]


def in_task_order(episodes: Iterable[Episode]) -> list[Episode]:
    """Sorted by environment, task and repeat: rollout files stand in completion order, which differs run by run."""
    return sorted(episodes, key=task_order)


def task_order(episode: Episode) -> tuple[str, bool, int, str, int, str, int]:
    """The sort key of `in_task_order`."""
    return (
        episode.environment or "",
        episode.task_index is None,
        episode.task_index or 0,
        episode.task_id,
        episode.rollout_index or 0,
        *episode.key,
    )


def rank(episode: Episode) -> tuple[float, bool]:
    """The sort key that puts the best-rewarded first, and of equal ones those that carry token ids."""
    return (-episode.reward, episode.num_sequences == 0)


def by_task(episodes: Iterable[Episode]) -> dict[str, list[Episode]]:
    """Episodes by task identity, in order of appearance."""
    groups: defaultdict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        groups[episode.task_id].append(episode)
    return dict(groups)


def by_task_and_prompt(episodes: Iterable[Episode]) -> dict[tuple[str, str], list[Episode]]:
    """Episodes that answer the very same prompt of the same task: task indices of several files may collide."""
    groups: defaultdict[tuple[str, str], list[Episode]] = defaultdict(list)
    for episode in episodes:
        groups[episode.task_id, episode.prompt_key].append(episode)
    return dict(groups)
