"""Plans of tiny runs: batches as training makes them, what is held against the machine, time, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs

from regimen.config.load import load_train_config
from regimen.config.schema import TrainConfig
from regimen.diagnosis.plan import MachineMemory
from regimen.errors import UsageError
from regimen.pipelines import plan as plans
from regimen.pipelines.first_steps import planned_batches
from regimen.pipelines.machine import machine_memory, peak_bytes, resident_bytes
from regimen.pipelines.plan import plan
from regimen.pipelines.prepare import prepare
from regimen.pipelines.workload import num_processes, workload_of
from regimen.tokens.packing import micro_batches
from regimen.tokens.template import Renderer


def config_of(algorithm: str, model: Path, home: Path, **changes: Any) -> TrainConfig:
    tree = tiny_runs.configuration(algorithm, model, home, home / "run")
    return load_train_config(tree, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_rows_make_the_batches_that_training_makes(tiny_folder: Path, tmp_path: Path, algorithm: str) -> None:
    config = config_of(algorithm, tiny_folder, tmp_path)
    prepared = prepare(config, tmp_path / "run", for_training=False)
    batches = planned_batches(config, prepared.renderer)
    assert batches.total_steps == prepared.source.total_steps == 6  # 8 rows by 3, twice
    for step, forests in enumerate(batches.steps):
        real = micro_batches(prepared.source.batch(step).sequences, config.policy.train_token_budget)
        assert [forest.tokens.tolist() for forest in forests] == [forest.tokens.tolist() for forest in real]
    work = workload_of(config, batches)
    assert work.tokens == max(forest.num_tokens for step in batches.steps for forest in step)
    assert work.reference == ("before" if algorithm == "dpo" else "none")


def test_episodes_are_as_long_as_they_may_be(tiny_folder: Path, tmp_path: Path) -> None:
    changes = {"policy__train_micro_batch_tokens": 100000, "grpo__max_rollout_turns": 2}
    config = config_of("grpo", tiny_folder, tmp_path, **changes)
    batches = planned_batches(config, Renderer.load(tiny_folder))
    first = batches.prompts[:2]
    shared = len(first[0]) - next(i for i, (a, b) in enumerate(zip(*first, strict=False)) if a != b)
    # Two prompts, of which the second adds what it does not share, and to each three answers of two turns of 8 tokens.
    assert [forest.num_tokens for forest in batches.steps[0]] == [len(first[0]) + shared + 2 * 3 * 2 * 8]
    assert batches.total_steps == 3  # as the configuration limits them
    work = workload_of(config, batches)
    assert work.generation is not None
    assert (work.generation.rows, work.generation.turns) == (64, 2)
    assert work.generation.positions == max(map(len, batches.prompts)) + 16


def test_the_plan_of_a_run_with_its_time(tiny_folder: Path, tmp_path: Path) -> None:
    made = plan(config_of("grpo", tiny_folder, tmp_path))
    assert made.memory is not None
    assert made.memory.libraries > 100 * 2**20  # torch alone is more
    assert (made.fits, made.changes, made.needed) == (True, [], made.memory.total)
    assert set(made.seconds) >= {"policy_training", "generation"}
    assert all(part >= 0 for part in made.seconds.values())
    assert made.seconds_per_step == sum(made.seconds.values()) > 0
    assert not (tmp_path / "run").exists()  # nothing is begun


def test_what_does_not_fit_is_not_tried(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = MachineMemory(kind="RAM", total=10**7, available=10**6)
    monkeypatch.setattr(plans, "machine_memory", lambda: small)
    made = plan(config_of("sft", tiny_folder, tmp_path))
    assert (made.fits, made.seconds, made.seconds_per_step) == (False, {}, None)
    assert made.changes
    assert not any(change.fits for change in made.changes)
    assert "no time was measured, as it does not fit" in made.notes


def test_many_processes_share_a_machine_and_have_a_gpu_each(tiny_folder: Path, tmp_path: Path) -> None:
    config = config_of("sft", tiny_folder, tmp_path, policy__dtensor_cfg__enabled="true", cluster__num_processes=2)
    assert num_processes(config) == 2
    here, there = plan(config, with_probe=False), plan(config, device_memory=80)
    assert here.memory is not None
    assert there.memory is not None
    assert (here.processes, here.needed) == (2, 2 * here.memory.total)
    assert (there.machine.kind, there.needed, there.memory.libraries) == ("GPU", there.memory.total, 0)
    assert any("another machine" in note for note in there.notes)
    # Each gets a share of a batch of three rows.
    assert here.micro_batches_per_step >= 2


def test_a_model_with_other_names_has_no_estimate_but_a_time(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "config_of", lambda *_: {})
    made = plan(config_of("sft", tiny_folder, tmp_path))
    assert (made.memory, made.fits, made.needed) == (None, None, None)
    assert made.seconds["policy_training"] > 0
    assert any("no estimate of memory" in note for note in made.notes)


def test_missing_data_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        plan(config_of("sft", tiny_folder, tmp_path, data__train__data_path=tmp_path / "gone.jsonl"))


def test_the_memory_of_the_machine_and_of_this_process() -> None:
    before = resident_bytes()
    held = np.ones(50 * 2**20, np.uint8)
    assert 40 * 2**20 < resident_bytes() - before < 60 * 2**20
    assert peak_bytes() >= resident_bytes() - held.nbytes
    machine = machine_memory()
    assert 0 < machine.available <= machine.total
