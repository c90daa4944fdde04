"""Environments of the package verifiers: modules as their authors write them, played with the real package."""

from __future__ import annotations

import importlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from regimen.errors import ConfigError, UsageError
from regimen.generation.base import Sampling
from regimen.gym.agent import play
from regimen.gym.collect import collect_rollouts
from regimen.gym.environment import SPLITS, Environment, Task, load_environment
from regimen.rollouts.messages import output_messages

SAMPLING = Sampling(temperature=1.0, max_new_tokens=16)

SINGLE = """
import verifiers as vf
from datasets import Dataset

def right(completion, answer):
    return float(completion[-1]["content"] == answer)

async def short(completion):
    return 1.0 if len(completion[-1]["content"]) < 10 else 0.0

def length(completion):
    return len(completion[-1]["content"])

def load_environment(size=40, penalty=0.5, evaluation=0):
    def rows(start, count):
        return Dataset.from_list([{"question": f"say {i}", "answer": str(i)} for i in range(start, start + count)])
    rubric = vf.Rubric(funcs=[right, short, length], weights=[1.0, -penalty, 0.0])
    return vf.SingleTurnEnv(
        dataset=rows(0, size), eval_dataset=rows(size - 1, evaluation) if evaluation else None,
        few_shot=[{"role": "user", "content": "say x"}, {"role": "assistant", "content": "x"}],
        system_prompt="Be brief.", rubric=rubric,
    )
"""
MULTI = """
import verifiers as vf
from datasets import Dataset

class Guess(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["tries"] = 0
        return state

    async def env_response(self, messages, state, **kwargs):
        said = messages[-1].content
        state["tries"] += 1
        if said == "broken":
            raise RuntimeError("unlucky")
        if said == "refused":
            raise vf.Error("the world is gone")
        if said == "mute":
            return []
        if said == state["answer"]:
            state["final_env_response"] = [{"role": "user", "content": "yes"}]
            return state["final_env_response"]
        return [{"role": "user", "content": "higher" if said < state["answer"] else "lower"}]

    @vf.stop
    async def gave_up(self, state):
        steps = state["trajectory"]
        return bool(steps) and steps[-1]["completion"][-1].content == "pass"

def found(state, completion):
    return 1.0 if completion[-1]["content"] == "yes" else 0.0

def turns(state):
    if state["answer"] == "5" and len(state["trajectory"]) == 2:
        raise ZeroDivisionError("no turns")
    return len(state["trajectory"])

def load_environment(limit=4):
    prompt = [{"role": "user", "content": "guess"}]
    rows = [{"prompt": prompt, "answer": str(i % 10), "info": {"i": i}} for i in range(30)]
    rubric = vf.Rubric(funcs=[found, turns], weights=[1.0, -0.125])
    return Guess(dataset=Dataset.from_list(rows), rubric=rubric, max_turns=limit)
"""
TOOLS = """
import verifiers as vf
from datasets import Dataset

def double(value: int) -> int:
    '''Twice a number.'''
    if value == 13:
        raise ValueError("unlucky")
    return 2 * value

class Submit(vf.StatefulToolEnv):
    def __init__(self, **kwargs):
        super().__init__(tools=[double], **kwargs)
        self.add_tool(self.submit, args_to_skip=["box"])

    async def submit(self, value: int, box: list) -> str:
        '''Hand in a number.'''
        box.append(value)
        return "taken"

    async def setup_state(self, state):
        state["box"] = []
        return state

    def update_tool_args(self, tool_name, tool_args, messages, state, **kwargs):
        return {**tool_args, "box": state["box"]} if tool_name == "submit" else tool_args

    async def env_response(self, messages, state, **kwargs):
        said = await super().env_response(messages, state, **kwargs)
        if state["box"]:
            state["final_env_response"] = said
        return said

def handed_in(state, answer):
    return float(state.get("box") == [int(answer)])

def load_environment(stateful=True):
    rows = Dataset.from_list([{"question": f"double {i}", "answer": str(2 * i)} for i in range(30)])
    rubric = vf.Rubric(funcs=[handed_in])
    if stateful:
        return Submit(dataset=rows, rubric=rubric, max_turns=5)
    return vf.ToolEnv(tools=[double], dataset=rows, rubric=vf.Rubric(funcs=[lambda completion: 1.0]), max_turns=3)
"""
REFUSED = """
import verifiers as vf
from datasets import Dataset

ROWS = Dataset.from_list([{"question": f"say {i}", "answer": "a"} for i in range(30)])

def one(completion):
    return 1.0

def together(states) -> list[float]:
    return [1.0 for _ in states]

class Asking(vf.SingleTurnEnv):
    async def get_model_response(self, state, prompt, **kwargs):
        return None

def load_environment(kind):
    if kind == "group rewards":
        return vf.SingleTurnEnv(dataset=ROWS, rubric=vf.Rubric(funcs=[one, together]))
    if kind == "no reward":
        return vf.SingleTurnEnv(dataset=ROWS)
    if kind == "unscored":
        return vf.SingleTurnEnv(dataset=ROWS, rubric=vf.Rubric(funcs=[one]), score_rollouts=False)
    if kind == "asking":
        return Asking(dataset=ROWS, rubric=vf.Rubric(funcs=[one]))
    if kind == "group":
        return vf.EnvGroup([vf.SingleTurnEnv(dataset=ROWS, rubric=vf.Rubric(funcs=[one]))], env_names=["one"])
    if kind == "columns":
        return vf.SingleTurnEnv(dataset=ROWS.rename_column("question", "text"), rubric=vf.Rubric(funcs=[one]))
    raise RuntimeError("no key for the judge")
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Make a module that can be imported in this test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def module(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
        written.append(name.split("/")[0])
        importlib.invalidate_caches()

    yield module
    for name in [key for key in sys.modules if key.split(".")[0] in written]:
        del sys.modules[name]


@pytest.fixture
def load(write: Callable[[str, str], None]) -> Callable[..., Environment]:
    """The environment of a module's text, by the real package."""
    pytest.importorskip("verifiers.envs.multiturn_env", reason="needs verifiers before 0.4")

    def environment(text: str, **arguments: Any) -> Environment:
        write("vf_words", text)
        return load_environment("verifiers", {"module": "owner/vf-words", "arguments": arguments})

    return environment


async def played(environment: Environment, task: Task, generation: Any, renderer: Any) -> dict[str, Any]:
    row = await play(task, 0, environment, generation, renderer, SAMPLING, seed=0)
    return json.loads(json.dumps(row, allow_nan=False))


def spoken(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in output_messages(row["response"]["output"])]


def task_of(environment: Environment, answer: str) -> Task:
    found = [task for split in SPLITS for task in environment.tasks(split)]
    return next(task for task in found if task.row["verifiers"]["answer"] == answer)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"verifiers is not installed; to fix: pip install 'regimen-rl\[verifiers\]'"):
        load_environment("verifiers", {"module": "words"})


def test_a_package_without_these_environments_is_named(write, monkeypatch):
    for name in [key for key in sys.modules if key.split(".")[0] == "verifiers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [one for one in sys.meta_path if "Alias" not in type(one).__name__])
    write("verifiers/__init__", "")
    with pytest.raises(
        ConfigError, match=r"has no environments with load_environment.*a version from 0\.1\.14 to 0\.3"
    ):
        load_environment("verifiers", {"module": "words"})


def test_an_option_of_another_name_is_refused():
    with pytest.raises(ConfigError, match=r"no option 'modul'.*module"):
        load_environment("verifiers", {"modul": "words"})


@pytest.mark.parametrize(
    "text, arguments, problem",
    [
        ("x = 1", {}, "it has no load_environment"),
        ("import no_such_package", {}, r"cannot be imported \(ModuleNotFoundError.*no_such_package"),
        (SINGLE, {"sise": 3}, r"other arguments.*'sise'.*expected size, penalty, evaluation.*size"),
        (REFUSED, {}, r"missing a required argument: 'kind'"),
        (REFUSED, {"kind": "x"}, r"load_environment failed \(RuntimeError: no key for the judge"),
        (REFUSED, {"kind": "group rewards"}, "over a group of rollouts"),
        (REFUSED, {"kind": "no reward"}, "its rubric gives no reward"),
        (REFUSED, {"kind": "unscored"}, "its rubric gives no reward"),
        (REFUSED, {"kind": "asking"}, r"Asking asks the model itself"),
        (REFUSED, {"kind": "group"}, r"EnvGroup, which plays by itself.*one by one, in a mixture"),
        (REFUSED, {"kind": "columns"}, "neither a prompt nor a question"),
    ],
)
def test_modules_that_cannot_be_played_are_refused(load, text, arguments, problem):
    with pytest.raises(ConfigError, match=problem):
        load(text, **arguments)


def test_a_module_that_is_not_there_is_named():
    pytest.importorskip("verifiers.envs.multiturn_env", reason="needs verifiers before 0.4")
    with pytest.raises(ConfigError, match="there is no module 'vf_nowhere'"):
        load_environment("verifiers", {"module": "vf-nowhere"})
    with pytest.raises(ConfigError, match=r"names no module; expected the option module"):
        load_environment("verifiers", {})


def test_tasks_are_the_rows_in_order_and_splits_share_none(load):
    environment = load(SINGLE)
    rows = {split: [task.row for task in environment.tasks(split)] for split in SPLITS}
    numbers = {split: [int(row["verifiers"]["answer"]) for row in found] for split, found in rows.items()}
    assert all(found == sorted(found) for found in numbers.values())
    assert sorted(number for found in numbers.values() for number in found) == list(range(40))
    assert environment.tasks("train", 3) == environment.tasks("train")[:3]
    first = rows["train"][0]
    assert [item["role"] for item in first["responses_create_params"]["input"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert first["responses_create_params"]["input"][0]["content"] == "Be brief."
    assert json.loads(json.dumps(first)) == first
    assert environment.judged_by["arguments"] == {}


def test_an_evaluation_set_is_all_of_test(load):
    environment = load(SINGLE, evaluation=5)
    answers = {split: [task.row["verifiers"]["answer"] for task in environment.tasks(split)] for split in SPLITS}
    assert answers["test"] == ["39", "40", "41", "42", "43"]
    assert sorted(map(int, answers["train"] + answers["validation"])) == list(range(39))  # 39 is in test alone


def test_a_split_without_rows_is_refused(load):
    with pytest.raises(ConfigError, match="there is no validation task"):
        load(SINGLE, size=1).tasks("validation")


async def test_one_turn_is_judged_by_the_rubric(load, say, renderer):
    environment = load(SINGLE, penalty=0.25)
    assert environment.max_turns == 1
    task = environment.tasks("train", 1)[0]
    answer = task.row["verifiers"]["answer"]
    row = await played(environment, task, say(answer), renderer)
    assert (row["reward"], row["reward_components"]) == (0.75, {"right": 1.0, "short": -0.25})
    assert (row["rubric/right"], row["rubric/short"], row["rubric/length"]) == (1.0, 1.0, len(answer))
    assert (row["stop_condition"], row["regimen"]["outcome"], row["num_turns"]) == ("max_turns_reached", "ok", 1)
    wrong = await played(environment, task, say("x"), renderer)
    assert (wrong["reward"], wrong["reward_components"]) == (-0.25, {"right": 0.0, "short": -0.25})


async def test_the_environment_answers_until_it_is_over(load, say, renderer):
    environment = load(MULTI)
    row = await played(environment, task_of(environment, "5"), say("3", "7", "5", "9"), renderer)
    assert spoken(row) == [
        ("assistant", "3"), ("user", "higher"), ("assistant", "7"), ("user", "lower"), ("assistant", "5"),
    ]  # fmt: skip
    assert (row["reward"], row["reward_components"]) == (1.0 - 3 / 8, {"found": 1.0, "turns": -3 / 8})
    assert (row["stop_condition"], row["regimen"]["outcome"]) == ("has_final_env_response", "ok")
    turns = [item for item in row["response"]["output"] if "generation_token_ids" in item]
    assert len(turns) == 3
    assert turns[1]["prompt_token_ids"][: len(turns[0]["prompt_token_ids"])] == turns[0]["prompt_token_ids"]


async def test_stop_conditions_and_limits_end_it(load, say, renderer):
    environment = load(MULTI, limit=2)
    task = task_of(environment, "6")
    for answers, condition in [(["pass"], "gave_up"), (["1", "2", "6"], "max_turns_reached")]:
        row = await played(environment, task, say(*answers), renderer)
        assert (row["stop_condition"], row["regimen"]["outcome"]) == (condition, "ok")
        assert row["reward"] == -0.125 * row["num_turns"]


async def test_a_cut_answer_is_judged_as_it_stands(load, say, renderer):
    environment = load(MULTI)
    row = await played(environment, task_of(environment, "6"), say(" ".join(["6"] * 20)), renderer)
    assert (row["regimen"]["outcome"], row["stop_condition"]) == ("truncated", None)
    assert (row["rubric/found"], row["rubric/turns"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    "answers, kind, reason",
    [
        (["broken"], "environment_failed", "unlucky"),
        (["refused"], "environment_failed", "the world is gone"),
        (["mute"], "environment_failed", "neither answers nor stops"),
        (["4", "pass"], "verifier_failed", "'turns' failed (ZeroDivisionError: no turns)"),
    ],
)
async def test_what_raises_fails_the_episode(load, say, renderer, answers, kind, reason):
    environment = load(MULTI)
    row = await played(environment, task_of(environment, "5"), say(*answers), renderer)
    assert (row["failure_kind"], "reward" in row) == (kind, False)
    assert reason in row["failure_reason"]


async def test_tools_run_in_the_package_and_a_call_may_end_the_episode(load, say, renderer, call):
    environment = load(TOOLS)
    task = task_of(environment, "14")
    tools = task.row["responses_create_params"]["tools"]
    assert [tool["name"] for tool in tools] == ["double", "submit"]
    assert list(tools[1]["parameters"]["properties"]) == ["value"]
    answers = [f"{call(value=7)} {call(value=13)}", call("no_such"), call("submit", value=14), "more"]
    row = await played(environment, task, say(*answers), renderer)
    output = row["response"]["output"]
    assert [item["type"] for item in output] == [
        "function_call", "function_call", "function_call_output", "function_call_output",
        "function_call", "function_call_output", "function_call",
    ]  # fmt: skip
    assert [item["output"] for item in output if item["type"] == "function_call_output"][:2] == ["14", "unlucky"]
    assert [item["call_id"] for item in output[2:4]] == [item["call_id"] for item in output[:2]]
    assert (row["reward"], row["reward_components"]) == (1.0, {"handed_in": 1.0})
    assert (row["stop_condition"], row["rubric/total_tool_calls"]) == ("has_final_env_response", 4.0)
    assert (row["num_turns"], row["num_tool_calls"]) == (3, 4)


async def test_a_tool_environment_ends_with_a_turn_without_calls(load, say, renderer, call):
    environment = load(TOOLS, stateful=False)
    row = await played(environment, environment.tasks("train", 1)[0], say(call(value=1), "done"), renderer)
    assert [role for role, _ in spoken(row)] == ["assistant", "tool", "assistant"]
    assert (row["stop_condition"], row["rubric/double_calls"]) == ("no_tools_called", 1.0)


async def test_collected_many_at_once_and_in_a_mixture(load, renderer, parrot, tmp_path):
    load(SINGLE)
    words = {"environment": "verifiers", "module": "vf_words", "arguments": {"penalty": 0}}
    environment = load_environment("mixture", {"environments": {"calculator": {}, "words": words}})
    tasks = [task for task in environment.tasks("train", 12) if task.row["agent_ref"]["name"] == "words"]
    collected = await collect_rollouts(
        tasks, 2, environment, parrot, renderer, SAMPLING, output=tmp_path / "rows.jsonl", concurrency=4
    )
    assert (len(collected.rows), collected.failures, collected.mean_reward) == (12, [], 1.0)
    assert {row["agent_ref"]["name"] for row in collected.rows} == {"words"}


async def test_a_reward_function_of_the_users_own_takes_its_verdict(load, say, renderer, tmp_path):
    load(SINGLE)
    file = tmp_path / "judge.py"
    file.write_text("def judge(row, output, verdict):\n    return 2 * verdict.reward\n")
    options = {"module": "vf_words", "reward_function": f"{file}:judge"}
    environment = load_environment("verifiers", options)
    assert {"module", "arguments", "verifiers", "reward_function"} <= set(environment.judged_by)
    task = environment.tasks("train", 1)[0]
    row = await played(environment, task, say(task.row["verifiers"]["answer"]), renderer)
    assert row["reward"] == 1.0


async def test_rows_of_another_module_fail(load, say, renderer):
    environment = load(SINGLE)
    task = environment.tasks("train", 1)[0]
    params = {"input": [{"type": "message", "role": "user", "content": "another"}]}
    row = await played(environment, Task(0, {**task.row, "responses_create_params": params}), say("x"), renderer)
    assert row["failure_kind"] == "environment_failed"
    assert "changes the prompt" in row["failure_reason"]


def test_signals_stay_ours_and_other_tools_and_the_wire_are_refused(load):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    environment = load(SINGLE)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    with pytest.raises(ConfigError, match="takes no other tools than its own"):
        load_environment("verifiers", {"module": "vf_words", "mcp_servers": {"a": {"command": "true"}}})
    serving = pytest.importorskip("regimen.serving.environment")
    with pytest.raises(UsageError, match="answers whole turns"):
        serving.environment_app(environment)
