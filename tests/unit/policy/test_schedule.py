from __future__ import annotations

import pytest
import torch

from regimen.errors import ConfigError
from regimen.policy.schedule import build_optimizer, build_schedule

WARM_UP = {"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"start_factor": 0.1, "total_iters": 2}}
CONSTANT = {"name": "torch.optim.lr_scheduler.ConstantLR", "kwargs": {"factor": 1.0, "total_iters": 10}}
DECAY = {
    "name": "torch.optim.lr_scheduler.LinearLR",
    "kwargs": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 2},
}


def optimizer(name: str = "torch.optim.AdamW", **kwargs: object) -> torch.optim.Optimizer:
    return build_optimizer(torch.nn.Linear(2, 2), name, {"lr": 1.0, **kwargs})


def rates(stages: list[dict] | None, steps: int) -> list[float]:
    built = optimizer()
    schedule = build_schedule(built, stages)
    seen = []
    for _ in range(steps):
        seen.append(built.param_groups[0]["lr"])
        built.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    "stages, expected",
    [
        (None, [1.0] * 4),
        ([WARM_UP], [0.1, 0.55, 1.0, 1.0]),
        ([WARM_UP, CONSTANT, {"milestones": [2]}], [0.1, 0.55, 1.0, 1.0]),
        ([CONSTANT, DECAY, {"milestones": [1]}], [1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_rates_by_hand(stages: list[dict] | None, expected: list[float]) -> None:
    assert rates(stages, 4) == pytest.approx(expected)


def test_optimisers() -> None:
    adamw = optimizer(betas=[0.9, 0.98], weight_decay=0.5)
    assert adamw.defaults["betas"] == (0.9, 0.98)
    assert adamw.defaults["weight_decay"] == 0.5
    assert adamw.defaults["fused"]
    assert not optimizer(foreach=True).defaults["fused"]
    assert isinstance(optimizer("torch.optim.RMSprop"), torch.optim.RMSprop)


def test_frozen_parameters_are_left_out() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    built = build_optimizer(model, "torch.optim.SGD", {"lr": 1.0})
    assert [p.shape for p in built.param_groups[0]["params"]] == [(2, 2)]


@pytest.mark.parametrize(
    "name", ["torch.optim.Nonsense", "AdamW", "os.system", "torch.optim.lr_scheduler", "torch.nn.Linear"]
)
def test_unknown_optimisers_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown class") as caught:
        optimizer(name)
    assert caught.value.where == "policy.optimizer.name"


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        optimizer(learning_rate=1.0)
    with pytest.raises(ConfigError, match="LinearLR"):
        build_schedule(optimizer(), [{"name": WARM_UP["name"], "kwargs": {"warmup": 3}}])


@pytest.mark.parametrize("milestones", [[], [{"milestones": [1, 2]}]])
def test_several_stages_need_milestones_between_them(milestones: list[dict]) -> None:
    with pytest.raises(ConfigError, match="2 schedulers"):
        build_schedule(optimizer(), [WARM_UP, CONSTANT, *milestones])
