"""Options of the algorithms that only a whole run shows: the guard, kept references, components of rewards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regimen.config.load import assignment, load_train_config
from regimen.errors import RunError
from regimen.gym.environment import Environment, Task, Verdict
from regimen.pipelines import prepare
from regimen.pipelines.run import checkpoints
from regimen.pipelines.train import TrainResult, train
from regimen.tracking.jsonl import read_metrics


class Same(Environment):
    """Every answer gets the same reward."""

    name = "same"
    max_turns = 1

    def tasks(self, split: Any, num_tasks: int | None = None) -> list[Task]:
        return [Task(n, {"responses_create_params": {"input": f"{split} {n}"}}) for n in range(num_tasks or 8)]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        return Verdict(1.0)


class Parts(Same):
    """Two components of the answer's bytes, whose sum is always 1."""

    name = "parts"

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        text = output[-1]["content"][0]["text"] if output else ""
        share = sum(text.encode()) % 7 / 6
        return Verdict(1.0, components={"first": share, "second": 1 - share})


class Share(Same):
    """A reward that differs between answers."""

    name = "share"

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:
        text = output[-1]["content"][0]["text"] if output else ""
        return Verdict(sum(text.encode()) % 7 / 6)


def play(model: Path, folder: Path, environment: str, *, resume: bool = False, **values: Any) -> TrainResult:
    given = {
        "policy.model_name": str(model),
        "policy.tokenizer.chat_template": "tools",
        "policy.precision": "float32",
        "policy.max_total_sequence_length": 1024,
        "policy.generation.max_new_tokens": 6,
        "data.train.env_name": f"{__file__}:{environment}",
        "data.train.dataset_name": "Environment",
        "grpo.num_prompts_per_step": 2,
        "grpo.num_generations_per_prompt": 3,
        "grpo.val_period": 0,
        "grpo.max_num_epochs": 3,
        "loss_fn.reference_policy_kl_penalty": 0.0,
        "checkpointing.checkpoint_dir": str(folder),
        "logger.log_dir": str(folder),
        **values,
    }
    return train(load_train_config("grpo", [assignment(key, value) for key, value in given.items()]), resume=resume)


def figures(folder: Path, name: str) -> list[float]:
    return [row[name] for row in read_metrics(folder / "metrics.jsonl") if name in row]


def test_a_run_without_anything_to_learn_stops_with_its_weights_saved(tiny_folder: Path, tmp_path: Path) -> None:
    values = {"grpo.max_steps_without_variance": 3}
    with pytest.raises(RunError, match=r"^step 3: in no group did the rewards differ for 3 steps in succession"):
        play(tiny_folder, tmp_path / "run", "Same", **values)
    assert figures(tmp_path / "run", "train/steps_without_variance") == [1.0, 2.0, 3.0]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step_3"]
    with pytest.raises(RunError, match=r"^step 4: in no group"):  # what was counted before is not forgotten
        play(tiny_folder, tmp_path / "run", "Same", resume=True, **values)
    values = {"grpo.max_steps_without_variance": None, "grpo.max_num_steps": 4}
    assert play(tiny_folder, tmp_path / "other", "Same", **values).num_steps == 4


def test_gdpo_learns_from_components_where_the_rewards_are_equal(tiny_folder: Path, tmp_path: Path) -> None:
    values = {"grpo.max_num_steps": 2, "grpo.max_steps_without_variance": 1}
    estimator = {"grpo.adv_estimator.name": "gdpo", "grpo.adv_estimator.reward_weights": [1.0, 2.0]}
    result = play(tiny_folder, tmp_path / "run", "Parts", **values, **estimator)
    assert result.ledger["trained"] > 6
    assert min(figures(tmp_path / "run", "train/grad_norm")) > 0
    totals = zip(*(figures(tmp_path / "run", f"train/reward/{name}") for name in ("first", "second")), strict=True)
    assert [sum(pair) for pair in totals] == pytest.approx([1.0, 1.0])
    with pytest.raises(RunError, match="in no group"):
        play(tiny_folder, tmp_path / "grpo", "Parts", **values)


def test_reinforce_plus_plus_with_the_penalty_in_the_reward(tiny_folder: Path, tmp_path: Path) -> None:
    """The first step's policy is the reference: no penalty. The second's is not."""
    estimator = {"grpo.adv_estimator.name": "reinforce_plus_plus", "loss_fn.use_kl_in_reward": True}
    penalty = {"loss_fn.reference_policy_kl_penalty": 0.5, "policy.optimizer.kwargs.lr": 1e-2}
    play(tiny_folder, tmp_path / "run", "Share", **estimator, **penalty, **{"grpo.max_num_steps": 2})
    first, second = figures(tmp_path / "run", "train/kl_in_reward")
    assert first == pytest.approx(0, abs=1e-6)
    assert second > 1e-5
    assert figures(tmp_path / "run", "train/kl_penalty") == [0.0, 0.0]  # not in the loss too


def test_an_entropy_bonus_alone_makes_answers_more_various(tiny_folder: Path, tmp_path: Path) -> None:
    """All rewards are equal, so that nothing else has a gradient, and every episode is computed all the same."""
    values = {"grpo.max_num_steps": 4, "policy.optimizer.kwargs.lr": 1e-2, "policy.scheduler": None}
    result = play(tiny_folder, tmp_path / "run", "Same", **{**values, "loss_fn.entropy_coefficient": 1.0})
    entropies = figures(tmp_path / "run", "train/entropy")
    assert entropies[-1] > entropies[0] + 0.01
    assert result.losses == pytest.approx([-entropy for entropy in entropies], rel=1e-5)
    assert min(figures(tmp_path / "run", "train/grad_norm")) > 0
    result = play(tiny_folder, tmp_path / "measured", "Share", **{**values, "loss_fn.entropy_coefficient": 0.0})
    assert figures(tmp_path / "measured", "train/entropy")[0] == pytest.approx(entropies[0], rel=0.05)
    assert result.losses == play(tiny_folder, tmp_path / "plain", "Share", **values).losses


def test_playing_ahead_trains_on_episodes_one_step_old(tiny_folder: Path, tmp_path: Path) -> None:
    values = {"grpo.max_num_steps": 3, "policy.optimizer.kwargs.lr": 1e-2, "policy.scheduler": None}
    ahead = {**values, "grpo.async_grpo.enabled": True}
    result = play(tiny_folder, tmp_path / "ahead", "Share", **ahead)
    assert figures(tmp_path / "ahead", "train/trajectory_age") == [0.0, 1.0, 1.0]
    versions = [
        {json.loads(line)["regimen"]["weight_version"] for line in path.read_text().splitlines()}
        for path in (tmp_path / "ahead" / "rollouts" / f"step_{step}.jsonl" for step in (1, 2, 3))
    ]
    assert versions == [{0}, {0}, {1}]
    errors = figures(tmp_path / "ahead", "train/gen_logprob_error_max")
    assert errors[0] < 1e-4 < min(errors[1:])  # the policy has moved on, and that is no fault
    assert figures(tmp_path / "ahead", "train/sampling_importance_ratio")[1] != pytest.approx(1.0, abs=1e-4)
    again = play(tiny_folder, tmp_path / "again", "Share", **ahead)
    assert again.losses == result.losses  # two threads, and nothing left to chance
    in_turn = play(tiny_folder, tmp_path / "turn", "Share", **values)
    assert in_turn.losses[0] == result.losses[0]
    assert in_turn.losses[1:] != result.losses[1:]


def prefer(model: Path, folder: Path, data: Path, **values: Any) -> TrainResult:
    given = {
        "policy.model_name": str(model),
        "policy.tokenizer.chat_template": "tools",
        "policy.precision": "float32",
        "policy.max_total_sequence_length": 1024,
        "policy.train_global_batch_size": 2,
        "data.train.dataset_name": "BinaryPreferenceDataset",
        "data.train.data_path": str(data),
        "dpo.val_period": 0,
        "dpo.val_at_start": False,
        "checkpointing.checkpoint_dir": str(folder),
        "logger.log_dir": str(folder),
        **values,
    }
    return train(load_train_config("dpo", [assignment(key, value) for key, value in given.items()]))


def test_a_second_dpo_run_computes_no_reference(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": f"{n} yes", "rejected": "no"} for n in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    computed = []
    original = prepare.logprobs_of
    monkeypatch.setattr(prepare, "logprobs_of", lambda *given: computed.append(1) or original(*given))
    first = prefer(tiny_folder, tmp_path / "first", data)
    assert len(computed) == 1
    second = prefer(tiny_folder, tmp_path / "second", data)
    assert len(computed) == 1
    assert second.losses == first.losses
    moved = prefer(tmp_path / "first" / "model", tmp_path / "third", data)  # another model: computed again
    assert len(computed) == 2
    assert moved.losses[0] == pytest.approx(first.losses[0], abs=1e-4)  # log 2: a policy begins at its own reference
    prefer(tiny_folder, tmp_path / "fourth", data, **{"dpo.cache_reference_logprobs": False})
    assert len(computed) == 3
