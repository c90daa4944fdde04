"""Scored rollouts in the form that training rows are made of: prompt, completion, tools, reward and token sequences.

In: `Rollout`s that carry a reward. Out: `Episode`s, with every message in chat spelling.
Refuses: items that have no chat form (`RolloutError`, raised by the message mapping; the row is quarantined).
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, cast

import msgspec

from regimen.convert.asked import Asked, Message, asked_of, reasoning_characters, unwritten, with_numbered_calls
from regimen.convert.options import Reasoning
from regimen.rollouts.indexed import IndexedRow, RowReader
from regimen.rollouts.messages import (
    SAMPLED_IDS,
    output_messages,
    text_part,
)
from regimen.rollouts.records import Rollout, Source, canonical_bytes
from regimen.rollouts.turns import TokenSequence, sequences_of, turns_of
from regimen.rollouts.usual import Told


class _Object(msgspec.Struct):
    """Any JSON object; its members are looked at no further."""


OBJECT = msgspec.json.Decoder(_Object)
RowKey = tuple[str, int]
NO_SEQUENCES = msgspec.msgpack.encode([])
SEQUENCES = msgspec.msgpack.Decoder(list[TokenSequence])


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """One scored episode.

    `asked` is what prompt and tools come from, `prompt_key` is equal for equal ones. `num_sampled` counts the
    sampled ids of the rollout. `packed` holds its token sequences (`num_sequences` of them) in a sixth of the memory
    that Python's numbers take. `reasoning_characters` stay counted when the reasoning is dropped; hidden reasoning
    came encrypted, without text.
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
    reasoning_characters: int = 0
    num_hidden_reasoning: int = 0
    num_developer_messages: int = 0
    asked: Asked | None = None

    @property
    def key(self) -> RowKey:
        """The row's identity in the ledger."""
        return (self.source.path, self.source.line)

    @property
    def written(self) -> dict[str, Any]:
        """What training rows are made of."""
        return {"prompt": self.prompt, "completion": self.completion, "tools": self.tools}

    @property
    def sequences(self) -> list[TokenSequence]:
        """The token sequences, unpacked; none when the rollout carried no ids."""
        return SEQUENCES.decode(self.packed) if self.num_sequences else []

    @property
    def num_turns(self) -> int:
        """Model calls: assistant messages of the completion."""
        return [message["role"] for message in self.completion].count("assistant")

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """All tool calls of the completion, in order."""
        return [call for message in self.completion for call in message.get("tool_calls", [])]

    @property
    def num_characters(self) -> int:
        """Characters that the model wrote: text, refusals, reasoning, names and arguments of calls."""
        return sum(_num_characters(message) for message in self.completion if message["role"] == "assistant")

    @property
    def has_reasoning(self) -> bool:
        """Whether any message carries reasoning."""
        return any(message.get("reasoning_content") for message in [*self.prompt, *self.completion])

    @property
    def is_single_message(self) -> bool:
        """Whether the model answered with one message of text and had no tools, so that a string says it all."""
        if self.tools or len(self.completion) != 1:
            return False
        (answer,) = self.completion
        is_text = answer["role"] == "assistant" and isinstance(answer["content"], str)
        return is_text and not answer.get("tool_calls") and not answer.get("refusal")

    @property
    def is_plain_exchange(self) -> bool:
        """Whether the whole episode is one user message and one answer of text."""
        if not self.is_single_message or len(self.prompt) != 1:
            return False
        return self.prompt[0]["role"] == "user" and isinstance(self.prompt[0]["content"], str)


def episode_of(rollout: Rollout, like: Episode | None = None) -> Episode:
    """Map a scored rollout; raises `RolloutError` when an item has no chat form.

    `like` is an episode that may have been asked the same: then its prompt and tools are taken over, not mapped again.
    """
    assert rollout.reward is not None
    asked = asked_of(rollout.params, None if like is None else like.asked)
    completion = output_messages(rollout.output)
    has_ids = any(SAMPLED_IDS in item for item in rollout.output)
    sequences = sequences_of(turns_of(rollout.output)) if has_ids else []
    tokenizer, template = fingerprints(rollout)
    hidden, developer = unwritten(rollout.output)
    return Episode(
        source=rollout.source,
        task_id=rollout.task_id,
        task_index=rollout.task_index,
        rollout_index=rollout.rollout_index,
        environment=rollout.environment,
        reward=rollout.reward,
        prompt=asked.prompt,
        completion=completion,
        tools=asked.tools,
        asked=asked,
        prompt_key=asked.key,
        packed=msgspec.msgpack.encode(sequences),
        num_sequences=len(sequences),
        num_sampled=sum(sequence.num_trained for sequence in sequences),
        tokenizer=tokenizer,
        template=template,
        reasoning_characters=asked.reasoning_characters + reasoning_characters(completion),
        num_hidden_reasoning=asked.num_hidden_reasoning + hidden,
        num_developer_messages=asked.num_developer_messages + developer,
    )


def read_episode(reader: RowReader, row: IndexedRow, like: Episode | None = None) -> Episode:
    """The episode of a scored row of the index, by the quick way where the row is of the usual shape."""
    found = reader.told(row)
    return episode_of(reader.said(row), like) if found is None else episode_told(*found, row, like)


def episode_told(
    told: Told, params: dict[str, Any], source: Source, row: IndexedRow, like: Episode | None = None
) -> Episode:
    """The episode of a row of the usual shape: what `episode_of` makes of its rollout, in less time."""
    assert row.reward is not None
    asked = asked_of(params, None if like is None else like.asked)
    tokenizer, template = stamped(told.stamp)
    return Episode(
        source=source,
        task_id=row.task_id,
        task_index=row.task_index,
        rollout_index=row.rollout_index,
        environment=row.environment,
        reward=row.reward,
        prompt=asked.prompt,
        completion=told.completion,
        tools=asked.tools,
        asked=asked,
        prompt_key=asked.key,
        packed=NO_SEQUENCES,
        num_sequences=0,
        num_sampled=0,
        tokenizer=tokenizer,
        template=template,
        reasoning_characters=asked.reasoning_characters + told.reasoning_characters,
        num_hidden_reasoning=asked.num_hidden_reasoning,
        num_developer_messages=asked.num_developer_messages,
    )


def _num_characters(message: Message) -> int:
    content = message["content"]
    text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    written = len(text) + len(message.get("refusal", "")) + len(message.get("reasoning_content", ""))
    functions = [call["function"] for call in message.get("tool_calls", [])]
    return written + sum(len(function["name"]) + len(function["arguments"]) for function in functions)


def fingerprints(rollout: Rollout) -> tuple[str | None, str | None]:
    """The tokenizer's and the chat template's fingerprint that the collector stamped, where it did."""
    return stamped(rollout.row.get("regimen"))


def stamped(stamp: object) -> tuple[str | None, str | None]:
    """The same two from the stamp itself."""
    if not isinstance(stamp, dict):
        return None, None
    stamp = cast("dict[str, Any]", stamp)
    found = (stamp.get("tokenizer"), stamp.get("template"))
    tokenizer, template = (value if isinstance(value, str) else None for value in found)
    return tokenizer, template


def without_trailing_observations(episode: Episode) -> Episode:
    """`episode` ending with the last thing the model wrote; what the environment said after it trains nothing."""
    completion = episode.completion
    stop = len(completion)
    while stop and completion[stop - 1]["role"] != "assistant":
        stop -= 1
    return episode if stop == len(completion) else msgspec.structs.replace(episode, completion=completion[:stop])


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
        **({"packed": NO_SEQUENCES, "num_sequences": 0} if mode == "drop" else {}),
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
        thought = f"<think>\n{reasoning}\n</think>\n\n"
        content = kept.get("content") or ""
        kept["content"] = thought + content if isinstance(content, str) else [text_part(thought), *content]
    return kept


def num_invalid_arguments(completion: Sequence[Message]) -> int:
    """Tool calls whose arguments are not a JSON object; they are kept as the text they are."""
    found = 0
    for message in completion:
        for call in message.get("tool_calls", ()):
            found += not _is_json_object(call["function"]["arguments"])
    return found


def _is_json_object(text: str) -> bool:
    try:
        OBJECT.decode(text)
        return True
    except (msgspec.DecodeError, UnicodeEncodeError):
        pass
    try:  # the standard library takes what msgspec does not: lone surrogates and numbers of any size
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def text_key(completion: Sequence[Message]) -> bytes:
    """Equal for completions that say the same; call ids, which are random, count only by their order."""
    return canonical_bytes(with_numbered_calls(completion))


def text_keys(completions: Sequence[Sequence[Message]]) -> list[Hashable]:
    """A key for each completion, equal among these for those that say the same.

    What was said last tells most of them apart, then all contents; only where neither does is everything looked at.
    """
    keys: list[Hashable] = [_last_content(completion) for completion in completions]
    for finer in (_contents, text_key):
        if len(set(keys)) == len(keys):
            break
        counts = Counter(keys)
        keys = [
            (key, finer(completion)) if counts[key] > 1 else key
            for key, completion in zip(keys, completions, strict=True)
        ]
    return keys


def texts_of(episodes: Sequence[Episode]) -> dict[RowKey, Hashable]:
    """The same for episodes, by their row."""
    keys = text_keys([episode.completion for episode in episodes])
    return {episode.key: key for episode, key in zip(episodes, keys, strict=True)}


def _last_content(completion: Sequence[Message]) -> Hashable:
    return _hashable(completion[-1]["content"]) if completion else None


def _contents(completion: Sequence[Message]) -> Hashable:
    return tuple([_hashable(message["content"]) for message in completion])


def _hashable(content: str | list[dict[str, Any]]) -> str | bytes:
    return content if isinstance(content, str) else canonical_bytes(content)


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


def best_first(episode: Episode) -> tuple[float, int, bool]:
    """The sort key that puts the best-rewarded first, of equal ones the shorter, then those that carry token ids."""
    return (-episode.reward, episode.num_characters, episode.num_sequences == 0)


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
