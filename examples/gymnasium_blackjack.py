"""A world of the package gymnasium as an environment: blackjack.

    pip install 'regimen-rl[gymnasium]'
    regimen collect --environment examples/gymnasium_blackjack.py:Blackjack --model MODEL --output rollouts.jsonl

The reward is the game's: 1 for a win, 0 for a draw, -1 for a loss.
"""

from __future__ import annotations

import re
from typing import Any

import gymnasium

from regimen.gym.gymnasium_api import GymnasiumEnvironment, World


class Blackjack(GymnasiumEnvironment):
    """Hit or stick. Hands begin alike now and then, so a task is its seed."""

    name = "blackjack"
    max_turns = 12
    tasks_are = "seeds"
    rules = "You are playing blackjack. Answer with <action>hit</action> or <action>stick</action>."
    mistake = "Answer with <action>hit</action> or <action>stick</action>."

    def make(self) -> World:
        """The game."""
        return gymnasium.make("Blackjack-v1")

    def describe(self, observation: Any, info: dict[str, Any]) -> str:  # noqa: ARG002
        """The hand and the dealer's card."""
        total, dealer, ace = observation
        return f"Your hand: {total}{', with an ace that counts 11' if ace else ''}. The dealer shows {dealer}."

    def parse(self, text: str) -> int | None:
        """1 for hit, 0 for stick."""
        named = set(re.findall(r"<action>\s*(hit|stick)\s*</action>", text.lower()))
        return int(named == {"hit"}) if len(named) == 1 else None
