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
        counts = {
            "rows_with_invalid_arguments": int(num_invalid_arguments(episode) > 0),
            "rows_without_token_ids": int(episode.num_sequences == 0),
            "rows_not_one_sequence": int(episode.num_sequences > 1),
            f"rows_with_reasoning_{done}": int(episode.reasoning_characters > 0),
            f"reasoning_characters_{done}": episode.reasoning_characters,
            "rows_with_hidden_reasoning": int(episode.num_hidden_reasoning > 0),
            "rows_with_developer_messages": int(episode.num_developer_messages > 0),
        }
        refuses = shows = False
        for messages in (episode.prompt, episode.completion):
            for message in messages:
                refuses = refuses or "refusal" in message
                shows = shows or type(message["content"]) is list
        counts |= {"rows_with_refusals": int(refuses), "rows_with_images": int(shows)}
        for name, number in counts.items():
            if number:
                ledger.note(name, number)
