import json

import pytest

from regimen.errors import RolloutError
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Source, outcome_of_failure, rollout_from_row, task_id_of

SOURCE = Source("rows.jsonl", 7)
SAID = [{"type": "message", "role": "assistant", "content": "hi"}]


def row(**fields):
    return {"responses_create_params": {"input": "Say hi."}, "response": {"output": SAID}, "reward": 1.0, **fields}


def test_a_row_of_the_shop(data):
    given = json.loads((data / "shop.jsonl").read_text().splitlines()[0])
    rollout = rollout_from_row(given, SOURCE, {"expected_total": 9})
    assert (rollout.reward, rollout.outcome, rollout.reason) == (0.0, Outcome.OK, None)
    assert (rollout.task_id, rollout.task_index, rollout.rollout_index) == ("shop_agent/1", 1, 1)
    assert rollout.environment == "shop_agent"
    assert rollout.metrics == {"given_total": 1.0, "accuracy": 0.0, "overlap": 0.5}
    assert rollout.row is given
    assert rollout.output is given["response"]["output"]
    assert rollout.task == {"expected_total": 9}
    assert str(rollout.source) == "rows.jsonl:7"


def test_flat_output_list_of_lists_and_a_string():
    flat = {"responses_create_params": {"input": "x"}, "reward": 1}
    assert rollout_from_row({**flat, "output": SAID}, SOURCE).output == SAID
    assert rollout_from_row({**flat, "output": [SAID, [*SAID, *SAID]]}, SOURCE).output == SAID * 3
    assert rollout_from_row({**flat, "output": "hi"}, SOURCE).output == SAID


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reward": None}, "the row has no reward"),
        ({"reward": "1.0"}, r"reward is a string \('1.0'\)"),
        ({"reward": True}, "reward is true or false"),
        ({"reward": [1]}, "reward is a list"),
        ({"reward": float("nan")}, "reward is nan"),
        ({"reward": float("inf")}, "reward is inf"),
        ({"reward": 10**400}, "reward is inf"),
        ({"reward": -1e300}, r"reward is -1e\+300"),
        ({"response": None}, "output is missing"),
        ({"response": {"output": 3}}, "output is a number"),
        ({"response": {"output": [1]}}, r"output\[0\] is a number"),
        ({"responses_create_params": None}, "responses_create_params is missing"),
        ({"responses_create_params": {"input": None}}, "input is missing"),
        ({"response": {"output": [{"generation_token_ids": [1]}]}}, "generation_token_ids but not"),
        ({"regimen": {"outcome": "fine"}}, "regimen.outcome is 'fine'"),
    ],
)
def test_rows_that_are_refused(fields, said):
    with pytest.raises(RolloutError, match=said):
        rollout_from_row(row(**fields), SOURCE)


@pytest.mark.parametrize(("value", "said"), [([1], "a list"), ("x", "a string"), (None, "missing")])
def test_rows_that_are_no_objects(value, said):
    with pytest.raises(RolloutError, match=f"the row is {said}"):
        rollout_from_row(value, SOURCE)


def test_the_request_may_come_from_the_task_row():
    task = {"responses_create_params": {"input": "from the task"}}
    rollout = rollout_from_row(row(responses_create_params=None), SOURCE, task)
    assert rollout.params == {"input": "from the task"}


@pytest.mark.parametrize(
    ("fields", "outcome", "reason"),
    [
        ({"mask_sample": True}, Outcome.ENVIRONMENT_FAILED, "mask_sample"),
        ({"failure_kind": "agent_timeout", "failure_reason": "60 s"}, Outcome.TIMED_OUT, "agent_timeout: 60 s"),
        ({"failure_kind": "verifier_error"}, Outcome.VERIFIER_FAILED, "verifier_error"),
        ({"failure_kind": "policy_model_error"}, Outcome.MODEL_FAILED, "policy_model_error"),
        ({"_ng_failure_class": "agent_run_error"}, Outcome.ENVIRONMENT_FAILED, "agent_run_error"),
        ({"regimen": {"outcome": "timed_out", "reason": "late"}}, Outcome.TIMED_OUT, "late"),
        ({"response": {"output": [], "status": "failed", "error": {"message": "oom"}}}, Outcome.MODEL_FAILED, "oom"),
    ],
)
def test_failures_have_no_reward_whatever_the_row_says(fields, outcome, reason):
    for reward in (0.0, None, "n/a", float("nan")):
        rollout = rollout_from_row(row(**{**fields, "reward": reward}), SOURCE)
        assert (rollout.outcome, rollout.reason, rollout.reward) == (outcome, reason, None)


def test_a_failure_needs_neither_output_nor_request():
    rollout = rollout_from_row({"mask_sample": True, "output": [1, 2]}, SOURCE)
    assert (rollout.output, rollout.params) == ([], {})


def test_truncated_episodes_are_scored():
    response = {"output": SAID, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    rollout = rollout_from_row(row(response=response, reward=0.5), SOURCE)
    assert (rollout.outcome, rollout.reason, rollout.reward) == (Outcome.TRUNCATED, "max_output_tokens", 0.5)


def by_steps(terminated, truncated, **info):
    """A row as NeMo Gym's agent for step-wise environments makes it."""
    return row(reward=0.0, terminated=terminated, truncated=truncated, info={"tool_outputs": [], **info})


def test_an_episode_by_steps_is_judged_where_the_environment_ended_it():
    ended = rollout_from_row(by_steps(True, False, won=True, score=2, name="x", reward_components={"a": 1}), SOURCE)
    assert (ended.outcome, ended.reason, ended.reward) == (Outcome.OK, None, 0.0)
    assert ended.metrics == {"terminated": 1.0, "truncated": 0.0, "info.won": 1.0, "info.score": 2.0}
    assert ended.components == {"a": 1.0}
    cut = rollout_from_row(by_steps(False, True, won=False), SOURCE)
    assert (cut.outcome, cut.reason, cut.reward) == (Outcome.TRUNCATED, "truncated", 0.0)
    unjudged = rollout_from_row(by_steps(False, True, judged=False), SOURCE)
    assert (unjudged.outcome, unjudged.reward) == (Outcome.VERIFIER_FAILED, None)
    assert unjudged.metrics == {"terminated": 0.0, "truncated": 1.0}


def test_fields_of_these_names_in_other_rows_say_nothing_of_the_end():
    for fields in ({"truncated": True}, {"truncated": True, "info": {"judged": False}}, {"info": {"score": 1}}):
        found = rollout_from_row(row(**fields), SOURCE)
        assert (found.outcome, found.reward) == (Outcome.OK, 1.0)
        assert "info.score" not in found.metrics


def test_our_stamp_decides_before_other_fields():
    stamped = row(mask_sample=True, regimen={"outcome": "truncated", "reason": "token limit"})
    assert rollout_from_row(stamped, SOURCE).outcome is Outcome.TRUNCATED


def test_an_unset_mask_is_no_failure():
    assert rollout_from_row(row(mask_sample=False, failure_kind=None), SOURCE).outcome is Outcome.OK


def test_metrics_and_components():
    rollout = rollout_from_row(
        row(
            score=3,
            ok=True,
            bad=float("nan"),
            name="x",
            expected_answer=42,
            _ng_attempt_index=2,
            reward_components={"form": 1, "fact": 0.5, "note": "x"},
        ),
        SOURCE,
    )
    assert rollout.metrics == {"score": 3.0, "ok": 1.0}
    assert rollout.components == {"form": 1.0, "fact": 0.5}


def test_the_task_without_an_index_is_what_was_asked():
    asked = {"input": "x", "tools": []}
    same = task_id_of("e", None, {**asked, "temperature": 0.7, "seed": 3, "metadata": None})
    assert task_id_of("e", None, asked) == same
    assert len(same) == 16
    assert task_id_of("f", None, asked) != same
    assert task_id_of("e", None, {**asked, "input": "y"}) != same
    assert task_id_of("e", None, {"tools": [], "input": "x"}) == same
    assert task_id_of("e", 3, asked) == "e/3"
    assert task_id_of(None, 3, asked) == "task/3"


def test_failure_names():
    assert outcome_of_failure("judge_unavailable") is Outcome.VERIFIER_FAILED
    assert outcome_of_failure("CONTEXT_LENGTH") is Outcome.MODEL_FAILED
    assert outcome_of_failure("???") is Outcome.ENVIRONMENT_FAILED
