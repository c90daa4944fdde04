"""A custom environment with its own tool and reward: spell a word backwards.

    regimen collect --environment examples/custom_environment.py:Backwards --model MODEL --output rollouts.jsonl

The reward is partly for the answer, partly for brevity; both parts appear in each row's `reward_components`.
"""
# ruff: noqa: ARG002

from __future__ import annotations

from typing import Any

from regimen.gym.environment import Environment, Split, Task, ToolError, Verdict

WORDS = {
    "train": ["apple", "bread", "chair", "dream", "eagle", "flame", "grape", "house"],
    "validation": ["ivory", "jolly", "knife"],
    "test": ["lemon", "mango", "night", "ocean"],
}
TOOL = {
    "type": "function",
    "name": "letters",
    "description": "The letters of a word, numbered.",
    "parameters": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
}


class Backwards(Environment):
    """Ask for a word backwards; `letters(word)` helps. Option: `brevity`, the share of the reward for short answers."""

    name = "backwards"
    max_turns = 3

    def __init__(self, *, brevity: float = 0.2) -> None:
        super().__init__()
        self.brevity = brevity

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """One task a word; the splits share none."""
        words = WORDS[split][:num_tasks]
        params = [{"input": f"Spell '{word}' backwards.", "tools": [TOOL]} for word in words]
        return [
            Task(index, {"responses_create_params": params[index], "word": word}) for index, word in enumerate(words)
        ]

    async def call(self, session: Any, name: str, arguments: dict[str, Any]) -> str:
        """`letters("cat")` is "1 c, 2 a, 3 t"; a `ToolError` is shown to the model."""
        word = arguments.get("word")
        if name != "letters" or not isinstance(word, str):
            raise ToolError('Error: call letters with {"word": "cat"}')
        return ", ".join(f"{number} {letter}" for number, letter in enumerate(word, 1))

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        """Right when the final message contains the reversed word; brief when it is nothing else."""
        last = output[-1] if output else {}
        text = last["content"][0]["text"].strip(" .").lower() if last.get("type") == "message" else ""
        wanted = task.row["word"][::-1]
        right, brief = float(wanted in text), float(text == wanted)
        components = {"right": right, "brief": brief}
        return Verdict((1 - self.brevity) * right + self.brevity * brief, components, {"answer_length": len(text)})
