from __future__ import annotations

import asyncio
from typing import Any

import pytest

from regimen.errors import GenerationError
from regimen.generation.base import Sampling
from regimen.gym.agent import Limits, episode_seed, play
from regimen.gym.environment import Verdict
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Source, rollout_from_row
from regimen.rollouts.turns import sequences_of, turns_of

SAMPLING = Sampling(temperature=0.7, max_new_tokens=16)


async def run(environment: Any, generation: Any, renderer: Any, **settings: Any) -> dict[str, Any]:
    task = environment.tasks("train", 8)[6]
    return await play(task, 2, environment, generation, renderer, SAMPLING, seed=5, **settings)


def kinds(row: dict[str, Any]) -> list[str]:
    return [item["type"] for item in row["response"]["output"]]


async def test_two_turns_make_one_row_in_gym_layout(environment, renderer, say, call):
    generation = say(call(value=3), "6")
    row = await run(environment, generation, renderer, model_name="m", step=4)
    assert row["reward"] == 1.0
    assert row["reward_components"] == {"right": 1.0}
    assert (row["calls"], row["label"], row["num_turns"], row["num_tool_calls"]) == (1, "x", 2, 1)
    assert (row["_ng_task_index"], row["_ng_rollout_index"], row["agent_ref"]) == (6, 2, {"name": "counting"})
    assert kinds(row) == ["function_call", "function_call_output", "message"]
    assert row["response"]["output"][1]["output"] == "6"
    assert row["response"]["output"][1]["call_id"] == row["response"]["output"][0]["call_id"]
    assert (row["response"]["object"], row["response"]["status"], row["response"]["model"]) == (
        "response",
        "completed",
        "m",
    )
    assert row["responses_create_params"]["temperature"] == 0.7
    # prompt: "double [user] say 6 [assistant]" is 5 words; then 2 sampled, "[tool] 6 [assistant]" 3, 2 sampled
    assert row["response"]["usage"] == {"input_tokens": 5 + 10, "output_tokens": 4, "total_tokens": 19}
    assert row["regimen"] == {
        "tokenizer": "words",
        "template": "template",
        "weight_version": 0,
        "outcome": "ok",
        "reason": None,
        "stop_reasons": ["stop", "stop"],
        "seed": 5,
        "step": 4,
    }
    assert environment.open_sessions == 0
    rollout = rollout_from_row(row, Source("x", 1))
    assert (rollout.outcome, rollout.reward) == (Outcome.OK, 1.0)


async def test_next_prompt_is_previous_prompt_sampled_and_continuation(environment, renderer, say, call):
    generation = say(call(value=3), "6")
    row = await run(environment, generation, renderer)
    first, second = turns_of(row["response"]["output"])
    assert second.prompt_ids == first.prompt_ids + first.generation_ids + renderer.encode("[tool] 6 [assistant]")
    assert len(sequences_of([first, second])) == 1
    assert first.logprobs == [-0.5, -0.5]
    assert [request[2] for request in generation.requests] == [episode_seed(5, 0, 6, 2, 0), episode_seed(5, 0, 6, 2, 1)]
    assert generation.requests[0][1].stop_ids == renderer.stop_ids


async def test_parallel_calls_run_in_order_and_the_last_item_carries_tokens(environment, renderer, say, call):
    row = await run(environment, say(f"{call(value=1)} {call(value=2)}", "6"), renderer)
    output = row["response"]["output"]
    assert kinds(row) == ["function_call"] * 2 + ["function_call_output"] * 2 + ["message"]
    assert ["prompt_token_ids" in item for item in output] == [False, True, False, False, True]
    assert [item["output"] for item in output[2:4]] == ["2", "4"]
    assert len({item["call_id"] for item in output[:2]}) == 2
    assert [item["call_id"] for item in output[2:4]] == [item["call_id"] for item in output[:2]]


async def test_same_call_id_in_two_turns_is_made_unique(environment, renderer, say, call):
    row = await run(environment, say(call(value=1), call(value=1), "6"), renderer)
    identities = [item["call_id"] for item in row["response"]["output"] if item["type"] == "function_call"]
    assert len(set(identities)) == 2


@pytest.mark.parametrize(
    "word, text",
    [
        ('call:double:{"value":-1}', "Error: negative"),
        ("call:halve:{}", "Error: unknown tool 'halve'; use double"),
        ("call:double:{oops", "Error: the arguments of double are not JSON"),
        ("call:double:[1]", "Error: the arguments of double must be a JSON object"),
    ],
)
async def test_tool_errors_are_told_to_the_model(environment, renderer, say, word, text):
    row = await run(environment, say(word, "6"), renderer)
    assert row["response"]["output"][1]["output"] == text
    assert (row["reward"], row["num_tool_errors"], row["regimen"]["outcome"]) == (1.0, 1, "ok")


async def test_malformed_call_is_the_final_message(environment, renderer, say):
    row = await run(environment, say("broken:6"), renderer)
    assert kinds(row) == ["message"]
    assert (row["num_malformed_calls"], row["reward"]) == (1, 0.0)


async def test_empty_answer_is_an_empty_message_with_tokens(environment, renderer, say):
    row = await run(environment, say(""), renderer)
    assert row["response"]["output"][0]["content"][0]["text"] == ""
    assert row["response"]["output"][0]["generation_token_ids"] == list(renderer.stop_ids)


async def test_text_before_a_call_is_kept_in_the_same_model_call(environment, renderer, say, call):
    row = await run(environment, say(f"thinking {call(value=3)}", "6"), renderer)
    assert kinds(row) == ["message", "function_call", "function_call_output", "message"]
    assert len(turns_of(row["response"]["output"])) == 2


@pytest.mark.parametrize(
    "limits, answers, reason, reward",
    [
        (Limits(max_turns=1), ['call:double:{"value":1}'], "max_turns", 0.0),
        (Limits(), ['call:double:{"value":1}'] * 3, "max_turns", 0.0),
        (Limits(max_sequence_length=9), ['call:double:{"value":1}', "6"], "max_sequence_length", 0.0),
        (Limits(max_sequence_length=6), ["6 6 6"], "max_new_tokens", 1.0),
    ],
)
async def test_truncated_episodes_are_verified_all_the_same(
    environment, renderer, say, limits, answers, reason, reward
):
    row = await run(environment, say(*answers), renderer, limits=limits)
    assert (row["regimen"]["outcome"], row["regimen"]["reason"]) == ("truncated", reason)
    assert row["reward"] == reward
    assert row["response"]["status"] == "incomplete"
    assert row["response"]["incomplete_details"] == {"reason": reason}


async def test_a_prompt_without_room_for_an_answer_is_a_failure_and_no_zero(environment, renderer, say):
    row = await run(environment, say("6"), renderer, limits=Limits(max_sequence_length=5))
    assert "reward" not in row
    assert row["_ng_failure_class"] == "environment_failed"
    reason = "prompt of 5 tokens leaves no room in max_sequence_length 5"
    assert row["regimen"]["reason"] == row["_ng_failure_message"] == reason
    assert environment.open_sessions == 0


async def test_room_limits_the_new_tokens(environment, renderer, say):
    generation = say("6")
    await run(environment, generation, renderer, limits=Limits(max_sequence_length=12))
    assert generation.requests[0][1].max_new_tokens == 7


async def test_environment_failure_has_no_reward(environment, renderer, say, call):
    row = await run(environment, say(call(value=13), "6"), renderer)
    assert "reward" not in row
    assert row["regimen"]["outcome"] == "environment_failed"
    assert (row["_ng_failure_class"], row["_ng_failure_type"], row["_ng_failure_message"]) == (
        "environment_failed",
        "RuntimeError",
        "unlucky",
    )
    assert row["mask_sample"] is True
    assert environment.open_sessions == 0
    rollout = rollout_from_row(row, Source("x", 1))
    assert (rollout.outcome, rollout.reward) == (Outcome.ENVIRONMENT_FAILED, None)


async def test_generation_failure_is_the_models(environment, renderer, say):
    row = await run(environment, say(GenerationError("out of memory")), renderer)
    assert (row["regimen"]["outcome"], row["_ng_failure_type"]) == ("model_failed", "GenerationError")


async def test_seed_failure_is_the_environments(environment, renderer, say, monkeypatch):
    async def broken(task: Any) -> Any:
        raise OSError("no server")

    monkeypatch.setattr(environment, "seed", broken)
    row = await run(environment, say("6"), renderer)
    assert (row["regimen"]["outcome"], row["_ng_failure_message"]) == ("environment_failed", "no server")


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), "1", None])
async def test_a_reward_that_is_no_finite_number_is_the_verifiers_failure(
    environment, renderer, say, monkeypatch, reward
):
    async def verify(*_: Any) -> Verdict:
        return Verdict(reward)

    monkeypatch.setattr(environment, "verify", verify)
    row = await run(environment, say("6"), renderer)
    assert row["regimen"]["outcome"] == "verifier_failed"
    assert environment.open_sessions == 0


async def test_slow_episode_times_out(environment, renderer, say, call, monkeypatch):
    async def slow(*_: Any) -> str:
        await asyncio.sleep(30)
        return "late"

    monkeypatch.setattr(environment, "call", slow)
    row = await run(environment, say(call(value=1)), renderer, limits=Limits(episode_seconds=0.05))
    assert (row["regimen"]["outcome"], row["regimen"]["reason"]) == ("timed_out", "longer than 0.05 seconds")
    assert environment.open_sessions == 0


async def test_a_call_that_hangs_ends_its_episode_without_an_episode_limit(
    environment, renderer, say, call, monkeypatch
):
    async def slow(*_: Any) -> str:
        await asyncio.sleep(30)
        return "late"

    monkeypatch.setattr(environment, "call", slow)
    limits = Limits(episode_seconds=None, call_seconds=0.05)
    row = await run(environment, say(call(value=1)), renderer, limits=limits)
    assert row["regimen"]["outcome"] == "timed_out"
    assert "longer than 0.05 seconds" in row["regimen"]["reason"]
    assert "reward" not in row


async def test_a_timeout_of_the_environments_own_is_its_failure(environment, renderer, say, call, monkeypatch):
    async def impatient(*_: Any) -> str:
        raise TimeoutError("server")

    monkeypatch.setattr(environment, "call", impatient)
    row = await run(environment, say(call(value=1)), renderer)
    assert row["regimen"]["outcome"] == "environment_failed"


async def test_failing_close_does_not_undo_the_verdict(environment, renderer, say, monkeypatch):
    async def broken(session: Any) -> None:
        raise OSError("gone")

    monkeypatch.setattr(environment, "close", broken)
    row = await run(environment, say("6"), renderer)
    assert (row["reward"], row["regimen"]["outcome"], row["num_close_errors"]) == (1.0, "ok", 1)


async def test_cancellation_passes_and_closes_the_session(environment, renderer, say, call, monkeypatch):
    started = asyncio.Event()

    async def slow(*_: Any) -> str:
        started.set()
        await asyncio.sleep(30)
        return "late"

    monkeypatch.setattr(environment, "call", slow)
    episode = asyncio.create_task(run(environment, say(call(value=1)), renderer))
    await started.wait()
    episode.cancel()
    with pytest.raises(asyncio.CancelledError):
        await episode
    assert environment.open_sessions == 0


def test_episode_seed_is_stable_and_63_bits():
    # the first 8 bytes of the SHA-256 of "0/0/0/0/0" are 23c046eed9f10b53
    assert episode_seed(0, 0, 0, 0, 0) == 0x23C046EED9F10B53 >> 1
    assert episode_seed(0, 0, 1, 0, 0) < 2**63
    seeds = {episode_seed(*key) for key in [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 0, 0, 1)]}
    assert len(seeds) == 4
