"""Checkpoints at once and by a thread: the same files; a write that fails stops the run with its reason."""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType

import pytest
import torch

from regimen.config.schema import CheckpointingConfig
from regimen.pipelines.run import STATE_FILE, RunFolder, checkpoints
from regimen.pipelines.saving import Checkpointer
from regimen.policy.checkpoint import load_state
from regimen.policy.local import LocalPolicy, LocalPolicyOptions
from regimen.tokens.template import Renderer

INFO = {
    "metric": None,
    "total_steps": 9,
    "ledger": {"trained": 3},
    "environments": {"sums": {"trained": 3}},
    "metrics": {"train/loss": 0.5},
}


def checkpointer(tiny: ModuleType, folder: Path, **settings: object) -> Checkpointer:
    run = RunFolder(folder, "seed: 1\n", resume=False)
    run.open()
    policy = LocalPolicy(tiny.tiny_model(), LocalPolicyOptions(precision="float32"))
    config = CheckpointingConfig.model_validate(settings)
    return Checkpointer(config, run, policy, Renderer(tiny.tiny_tokenizer()))


def fill(saver: Checkpointer, value: float) -> None:
    with torch.no_grad():
        for _, tensor in saver.policy.named_tensors():
            tensor.fill_(value)


def test_a_thread_writes_what_stood_when_it_was_asked(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = checkpointer(tiny, tmp_path / "run", is_async=True)
    may_write, real = threading.Event(), saver.run.save

    def late(*args: object, **options: object) -> Path:
        assert may_write.wait(20)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(saver.run, "save", late)
    fill(saver, 1.0)
    saver.save(1, INFO, with_state=True)
    fill(saver, 2.0)  # training goes on
    assert checkpoints(saver.run.path) == []
    may_write.set()
    saver.wait()
    saver.close()
    [checkpoint] = checkpoints(saver.run.path)
    state = load_state(checkpoint / STATE_FILE)
    assert {float(tensor.mean()) for tensor in state["policy"]["model"].values()} == {1.0}
    written = LocalPolicy.load(checkpoint, LocalPolicyOptions(precision="float32", train=False))
    assert {float(tensor.mean()) for _, tensor in written.named_tensors()} == {1.0}
    assert {name: state[name] for name in ("ledger", "environments", "metrics")} == {
        name: INFO[name] for name in ("ledger", "environments", "metrics")
    }


def test_a_write_that_fails_in_the_thread_is_raised_at_the_next_step(tiny: ModuleType, tmp_path: Path) -> None:
    saver = checkpointer(tiny, tmp_path / "run", is_async=True)

    def full_disk(_: Path) -> None:
        raise OSError("No space left on device")

    saver.renderer.save = full_disk  # type: ignore[method-assign]
    saver.save(1, INFO, with_state=True)
    saver.close()
    with pytest.raises(OSError, match="No space left"):
        saver.check()
    assert checkpoints(saver.run.path) == []


class SecondOfTwo:
    """`regimen.policy.ranks.Ranks` of a process that is not the first; notes when it waits for the other."""

    is_first, group = False, None

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def apart(self) -> SecondOfTwo:
        return self

    def wait(self) -> None:
        self.events.append("wait")


def test_no_process_writes_shards_before_the_first_has_put_the_folder_there(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = checkpointer(tiny, tmp_path / "run", is_async=True)
    events: list[str] = []
    monkeypatch.setattr(saver, "ranks", SecondOfTwo(events))
    monkeypatch.setattr(saver.policy, "saver", lambda: lambda _: events.append("weights"))
    monkeypatch.setattr(saver.policy, "shards_saver", lambda _: lambda _: events.append("shards"))
    saver.save(1, INFO, with_state=True)
    saver.wait()
    saver.close()
    assert events == ["wait", "weights", "wait", "shards", "wait"]


def test_one_checkpoint_after_the_other(tiny: ModuleType, tmp_path: Path) -> None:
    saver = checkpointer(tiny, tmp_path / "run", is_async=True, keep_top_k=1)
    for step, metric in ((1, 0.1), (2, 0.9), (3, 0.5)):
        saver.save(step, {**INFO, "metric": metric}, with_state=step < 3)
    saver.wait()
    saver.close()
    assert [path.name for path in checkpoints(saver.run.path)] == ["step_1", "step_3"]  # lower is better
    assert not list(saver.run.path.rglob(STATE_FILE))


def test_at_once_nothing_is_left_to_wait_for(tiny: ModuleType, tmp_path: Path) -> None:
    saver = checkpointer(tiny, tmp_path / "run")
    saver.save(4, INFO, with_state=False)
    assert [path.name for path in checkpoints(saver.run.path)] == ["step_4"]
    assert saver.saved_step == 4
    saver.check()
    saver.wait()
    saver.close()
