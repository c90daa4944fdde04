"""What is worth telling about written rows, though it decides nothing: counted in the ledger's notes.

In: the episodes that rows are made of, each once. Out: notes. Refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from regimen.convert.episodes import Episode, num_invalid_arguments
from regimen.convert.ledger import Ledger
from regimen.convert.options import Reasoning

DONE_WITH_REASONING = {"auto": "kept", "reasoning_content": "kept", "inline": "inlined", "drop": "dropped"}


def note_episodes(episodes: Iterable[Episode], reasoning: Reasoning, ledger: Ledger) -> None:
    """Note what the messages of `episodes` hold, and what became of their reasoning and token ids."""
    done = DONE_WITH_REASONING[reasoning]
    for episode in episodes:
        if num_invalid_arguments(episode):
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
        has_refusals = has_images = False
        for message in (*episode.prompt, *episode.completion):
            has_refusals = has_refusals or "refusal" in message
            has_images = has_images or type(message["content"]) is list
        ledger.note("rows_with_refusals", has_refusals)
        ledger.note("rows_with_images", has_images)
