"""GRPO whose episodes are played by the agents of a gym that runs elsewhere, against the model that is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
import tiny_runs
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from training_processes import finish, start

from regimen.config.load import load_train_config
from regimen.errors import ConfigError, GymError
from regimen.pipelines.serve import ServeConfig, application
from regimen.pipelines.train import train
from regimen.rollouts.turns import turns_of

TOKEN = "a-token-of-the-tests"
AGENT = "letters_agent"


@pytest.fixture
def gym(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """The head server of a gym with one agent, and the port where it looks for its model."""
    monkeypatch.setenv("REGIMEN_SERVER_TOKEN", TOKEN)
    monkeypatch.setenv("REGIMEN_MODEL_KEY", TOKEN)
    port = servers.free_port()
    config = ServeConfig(
        model="tiny",
        model_url=f"http://127.0.0.1:{port}/v1",
        environment=f"{tiny_runs.__file__}:Letters",
        with_token_ids=True,
    )
    with servers.running(application(config)) as url:
        yield url, port


def tree(tiny_folder: Path, folder: Path, head: str, port: int, **grpo: Any) -> dict[str, Any]:
    found = tiny_runs.configuration("grpo", tiny_folder, folder, folder / "run", **{"max_num_steps": 2, **grpo})
    for split, tasks in (("train", range(4)), ("validation", range(100, 102))):
        rows = [
            {"responses_create_params": {"input": f"Write {n}."}, "agent_ref": {"name": AGENT}, "_ng_task_index": n}
            for n in tasks
        ]
        path = tiny_runs.write_rows(folder / f"{split}.jsonl", rows)
        found["data"][split] = {"dataset_name": "NemoGymDataset", "env_name": "nemo_gym", "data_path": path}
    gym = {"head_server_url": head, "model_server_port": port, "model_name": "tiny", "config_paths": ["letters.yaml"]}
    found["env"] = {"should_use_nemo_gym": True, "nemo_gym": gym}
    return found


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_gyms_episodes_train(gym: tuple[str, int], tiny_folder: Path, tmp_path: Path) -> None:
    result = train(load_train_config(tree(tiny_folder, tmp_path, *gym, val_period=1)))
    assert result.num_steps == 2
    assert sum(result.ledger.values()) == 2 * 6
    assert not any(name.startswith("failed") for name in result.ledger)
    for step in (1, 2):
        rows = rows_of(tmp_path / "run" / "rollouts" / f"step_{step}.jsonl")
        assert {row["regimen"]["weight_version"] for row in rows} == {step - 1}
        assert all(len(turns_of(row["response"]["output"])) == row["num_turns"] == 1 for row in rows)
    # Sampler and policy agree in float32, so what trained is what was sampled, with its log-probabilities.
    assert max(tiny_runs.column(tmp_path / "run", "train/gen_logprob_error_max")) < 1e-3
    assert len(tiny_runs.column(tmp_path / "run", "validation/reward")) == 2
    assert {row["_ng_task_index"] for row in rows_of(tmp_path / "run" / "rollouts" / "validation_2.jsonl")} == {
        100,
        101,
    }


@pytest.mark.slow
def test_seeds_are_of_the_run_not_of_the_agents(gym: tuple[str, int], tiny_folder: Path, tmp_path: Path) -> None:
    losses: list[list[float]] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        losses.append(train(load_train_config(tree(tiny_folder, tmp_path / name, *gym, val_period=0))).losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)  # batches depend on what arrives when, samples do not


@pytest.mark.slow
def test_two_processes_train_on_what_the_first_lets_the_gym_play(
    gym: tuple[str, int], tiny_folder: Path, tmp_path: Path
) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    losses = train(load_train_config(tree(tiny_folder, folders[0], *gym, val_period=1))).losses
    config = folders[1] / "config.json"
    config.write_text(json.dumps(tree(tiny_folder, folders[1], *gym, val_period=1)))
    code, stdout, stderr = finish(start(str(config), "policy.dtensor_cfg.enabled=true", "cluster.num_processes=2"))
    assert (code, stdout.count("done: 2 steps")) == (0, 1), stderr
    assert tiny_runs.column(folders[1] / "run", "train/loss") == pytest.approx(losses, abs=1e-4)
    for step in (1, 2):
        played = [rows_of(folder / "run" / "rollouts" / f"step_{step}.jsonl") for folder in folders]
        assert len(played[0]) == len(played[1]) == 6
        assert {row["regimen"]["weight_version"] for row in played[1]} == {step - 1}
    assert len(tiny_runs.column(folders[1] / "run", "validation/reward")) == 2


@pytest.mark.slow
def test_playing_ahead_goes_through_the_gym_too(gym: tuple[str, int], tiny_folder: Path, tmp_path: Path) -> None:
    config = tree(tiny_folder, tmp_path, *gym, async_grpo={"enabled": True}, max_num_epochs=1)
    result = train(load_train_config(config))
    assert result.num_steps == 2
    rows = rows_of(tmp_path / "run" / "rollouts" / "step_2.jsonl")
    assert {row["regimen"]["weight_version"] for row in rows} == {0}


def head_of(answer: Any) -> Starlette:
    """A gym whose agent answers every episode the same way."""

    async def config(request: Request) -> Response:
        place = {"host": "127.0.0.1", "port": request.url.port}
        return JSONResponse(json.dumps({AGENT: {"responses_api_agents": {"simple_agent": place}}}))

    async def run(_request: Request) -> Response:
        return JSONResponse(answer)

    return Starlette(routes=[Route("/global_config_dict_yaml", config), Route("/run", run, methods=["POST"])])


ITEM = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "abc"}]}
FOREIGN = {"prompt_token_ids": [5, 6], "generation_token_ids": [7], "generation_log_probs": [-0.5]}


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (ITEM, "no token ids: start the gym with a model server that returns them"),
        ({**ITEM, **FOREIGN}, "not sampled by this run: does the gym's model server ask another model"),
        ({**ITEM, **FOREIGN, "generation_log_probs": []}, "cannot be read: .*1 sampled ids but 0 log-probabilities"),
    ],
)
def test_tokens_of_another_model_do_not_train(
    item: Any, says: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIMEN_SERVER_TOKEN", TOKEN)
    answer = {"reward": 1.0, "response": {"output": [item]}}
    with servers.running(head_of(answer)) as url:
        config = load_train_config(tree(tiny_folder, tmp_path, url, servers.free_port(), val_period=0))
        with pytest.raises(GymError, match=says):
            train(config)
    (failure, *_) = rows_of(tmp_path / "run" / "rollouts" / "step_1_failures.jsonl")
    assert (failure["_ng_failure_class"], "reward" in failure) == ("environment_failed", False)


def test_a_gym_that_does_not_run_is_said_with_the_command_that_starts_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGIMEN_SERVER_TOKEN", TOKEN)
    nothing = servers.free_port()
    config = load_train_config(tree(tiny_folder, tmp_path, f"http://127.0.0.1:{nothing}", servers.free_port()))
    with pytest.raises(GymError, match=f"127.0.0.1:{nothing}/.* does not answer: cannot connect .*gym env start"):
        train(config)


def test_a_token_and_an_agent_are_needed(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGIMEN_SERVER_TOKEN", raising=False)
    found = tree(tiny_folder, tmp_path, "http://127.0.0.1:1", servers.free_port())
    with pytest.raises(ConfigError, match=r"no token for the model server.*REGIMEN_SERVER_TOKEN"):
        train(load_train_config(found))
    tiny_runs.write_rows(tmp_path / "train.jsonl", [{"responses_create_params": {"input": "x"}}] * 2)
    with pytest.raises(ConfigError, match=r"task 0 names no agent.*env\.nemo_gym\.agent"):
        train(load_train_config(found))
