"""What is worth telling about written rows, though it decides nothing: counted in the ledger's notes.

In: the episodes that rows are made of, each once. Out: notes. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regimen.convert.asked import Asked, Message
from regimen.convert.episodes import Episode, num_invalid_arguments
from regimen.convert.ledger import Ledger
from regimen.convert.options import Reasoning
from regimen.rollouts.usual import Told

DONE_WITH_REASONING = {"auto": "kept", "reasoning_content": "kept", "inline": "inlined", "drop": "dropped"}


def note_episodes(episodes: Iterable[Episode], reasoning: Reasoning, ledger: Ledger) -> None:
    """Note what the messages of `episodes` hold, and what became of their reasoning and token ids."""
    done = DONE_WITH_REASONING[reasoning]
    for episode in episodes:
        if num_invalid_arguments(episode.completion):
            ledger.note("rows_with_invalid_arguments")
        if episode.num_sequences != 1:
            ledger.note("rows_not_one_sequence" if episode.num_sequences else "rows_without_token_ids")
        if episode.reasoning_characters:
            ledger.note(f"rows_with_reasoning_{done}")
            ledger.note(f"reasoning_characters_{done}", episode.reasoning_characters)
        if episode.num_hidden_reasoning:
            ledger.note("rows_with_hidden_reasoning")
        if episode.num_developer_messages:
            ledger.note("rows_with_developer_messages")
        has_refusals, has_images = _odd_contents((*episode.prompt, *episode.completion))
        ledger.note("rows_with_refusals", has_refusals)
        ledger.note("rows_with_images", has_images)


def note_told(told: Sequence[Told], asked: Asked, ledger: Ledger) -> None:
    """The same for rows of the usual shape that were asked the same and keep their reasoning."""
    number = len(told)
    ledger.note("rows_with_invalid_arguments", sum([num_invalid_arguments(one.completion) > 0 for one in told]))
    ledger.note("rows_without_token_ids", number)
    characters = [asked.reasoning_characters + one.reasoning_characters for one in told]
    ledger.note("rows_with_reasoning_kept", number - characters.count(0))
    ledger.note("reasoning_characters_kept", sum(characters))
    ledger.note("rows_with_hidden_reasoning", number if asked.num_hidden_reasoning else 0)
    ledger.note("rows_with_developer_messages", number if asked.num_developer_messages else 0)
    has_refusals, has_images = _odd_contents(asked.prompt)
    ledger.note("rows_with_refusals", number if has_refusals else 0)
    ledger.note("rows_with_images", number if has_images else 0)


def _odd_contents(messages: Sequence[Message]) -> tuple[bool, bool]:
    """Whether there is a refusal among messages, and a content of parts."""
    has_refusals = has_images = False
    for message in messages:
        has_refusals = has_refusals or "refusal" in message
        has_images = has_images or type(message["content"]) is list
    return has_refusals, has_images
