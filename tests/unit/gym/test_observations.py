"""Environments that answer a turn with an observation: in the loop, in the row, in the tokens."""

from __future__ import annotations

from typing import Any

import pytest

from regimen.generation.base import Reply, Sampling
from regimen.gym.agent import Limits, play, play_with
from regimen.gym.environment import Environment, Task, Verdict
from regimen.rollouts.messages import output_messages
from regimen.rollouts.turns import sequences_of, turns_of

SAMPLING = Sampling(temperature=0.7, max_new_tokens=16)


class Guessing(Environment):
    """The model guesses a number; the environment says lower or higher until it is right."""

    name = "guessing"
    max_turns = 4

    def tasks(self, split: Any, num_tasks: int | None = None) -> list[Task]:
        return [Task(0, {"responses_create_params": {"input": "guess"}, "number": 5})]

    async def seed(self, task: Task) -> Any:
        return {"number": task.row["number"], "guesses": []}

    async def observe(self, session: Any, output: list[dict[str, Any]]) -> str | None:
        guess = int(output[-1]["content"][0]["text"])
        session["guesses"].append(guess)
        if guess == session["number"]:
            return None
        return "higher" if guess < session["number"] else "lower"

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        return Verdict(float(session["guesses"][-1:] == [5]), metrics={"guesses": len(session["guesses"])})


async def run(generation: Any, renderer: Any, environment: Environment | None = None, **limits: Any) -> dict[str, Any]:
    environment = environment or Guessing()
    task = environment.tasks("train")[0]
    return await play(task, 0, environment, generation, renderer, SAMPLING, 0, Limits(**limits))


async def test_observations_are_user_messages_between_the_turns(renderer, say):
    generation = say("9", "2", "5")
    row = await run(generation, renderer)
    output = row["response"]["output"]
    assert [item["role"] for item in output] == ["assistant", "user", "assistant", "user", "assistant"]
    assert output[1] == {"type": "message", "role": "user", "content": "lower"}
    assert (row["reward"], row["guesses"], row["num_turns"], row["regimen"]["outcome"]) == (1.0, 3, 3, "ok")
    assert [(m["role"], m["content"]) for m in output_messages(output)][1] == ("user", "lower")


async def test_observations_are_context_and_train_nothing(renderer, say):
    row = await run(say("9", "2", "5"), renderer)
    turns = turns_of(row["response"]["output"])
    (sequence,) = sequences_of(turns)
    prompt = renderer.prompt_ids([{"role": "user", "content": "guess"}], [])
    words = "9 <end> [user] lower [assistant] 2 <end> [user] higher [assistant] 5 <end>"
    assert sequence.ids == prompt + renderer.encode(words)
    begin = len(prompt)
    assert sequence.spans == [(begin, begin + 2), (begin + 5, begin + 7), (begin + 10, begin + 12)]
    assert sequence.num_trained == row["response"]["usage"]["output_tokens"] == 6


async def test_an_endpoint_is_sent_the_observations():
    class Model:
        asked: list[Any] = []

        async def chat(self, messages: Any, tools: Any, sampling: Any, seed: int) -> Reply:
            self.asked.append([(message["role"], message["content"]) for message in messages])
            said = "9" if len(messages) == 1 else "5"
            return Reply(
                message={"role": "assistant", "content": said},
                stop_reason="stop",
                num_input_tokens=1,
                num_output_tokens=1,
            )

    environment = Guessing()
    row = await play_with(environment.tasks("train")[0], 0, environment, Model(), SAMPLING, 0)
    assert row["reward"] == 1.0
    assert Model.asked[1] == [("user", "guess"), ("assistant", "9"), ("user", "lower")]


@pytest.mark.parametrize(
    ("limits", "reason", "guesses"),
    # the first prompt has 3 words; a turn samples 2 and is followed by 3
    [({"max_turns": 2}, "max_turns", 2), ({}, "max_turns", 4), ({"max_sequence_length": 8}, "max_sequence_length", 1)],
)
async def test_limits_hold(renderer, say, limits, reason, guesses):
    row = await run(say("9", "9", "9", "9", "9"), renderer, **limits)
    assert (row["regimen"]["outcome"], row["regimen"]["reason"]) == ("truncated", reason)
    assert (row["guesses"], row["num_turns"], row["reward"]) == (guesses, guesses, 0.0)


async def test_a_turn_that_is_cut_is_no_action(renderer, say):
    row = await run(say("9 9 9"), renderer, max_sequence_length=5)
    assert (row["regimen"]["reason"], row["guesses"]) == ("max_new_tokens", 0)


@pytest.mark.parametrize("said", [7, b"x", ["a"]])
async def test_an_observation_that_is_no_text_is_the_environments_failure(renderer, say, monkeypatch, said):
    async def observe(*_: Any) -> Any:
        return said

    monkeypatch.setattr(Guessing, "observe", observe)
    row = await run(say("9"), renderer)
    assert (row["_ng_failure_class"], row["_ng_failure_type"]) == ("environment_failed", "TypeError")
    assert "reward" not in row


async def test_a_failure_to_observe_is_no_zero(renderer, say):
    row = await run(say("nine"), renderer)
    assert (row["_ng_failure_class"], row["_ng_failure_type"]) == ("environment_failed", "ValueError")
    assert "reward" not in row
