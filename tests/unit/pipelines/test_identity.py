"""What a run was begun with, and which of its changes are free, allowed when asked for, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from regimen.errors import RunError, UsageError
from regimen.pipelines import identity
from regimen.pipelines.identity import Decision, config_changes, file_changes, inputs_of, model_fingerprint, read_inputs
from regimen.pipelines.run import RunFolder

CONFIG = """\
policy: {model_name: a, optimizer: {kwargs: {lr: 0.1}}, scheduler: null}
sft: {seed: 1, max_num_steps: 3, val_period: 2}
checkpointing: {save_period: 5, metric_name: val:loss}
logger: {wandb: {project: null}}
run: {deterministic: false, stage_timeout: 60}
"""


def decide(changed: str) -> Decision:
    return Decision.of(config_changes(CONFIG, changed))


def test_an_equal_configuration_has_no_changes() -> None:
    assert config_changes(CONFIG, CONFIG.replace("{seed: 1,", "{seed:   1,")) == []


@pytest.mark.parametrize(
    "before, after, name",
    [
        ("max_num_steps: 3", "max_num_steps: 9", "sft.max_num_steps (3 -> 9)"),
        ("val_period: 2", "val_period: 1", "sft.val_period (2 -> 1)"),
        ("save_period: 5", "save_period: 1", "checkpointing.save_period (5 -> 1)"),
        ("project: null", "project: p", 'logger.wandb.project (null -> "p")'),
        ("stage_timeout: 60", "stage_timeout: null", "run.stage_timeout (60 -> null)"),
    ],
)
def test_what_alters_no_step_is_free_and_recorded(before: str, after: str, name: str) -> None:
    assert decide(CONFIG.replace(before, after)) == Decision([], [], [name])


@pytest.mark.parametrize(
    "before, after, name",
    [
        ("model_name: a", "model_name: b", 'policy.model_name ("a" -> "b")'),
        ("seed: 1", "seed: 2", "sft.seed (1 -> 2)"),
        ("metric_name: val:loss", "metric_name: null", 'checkpointing.metric_name ("val:loss" -> null)'),
        ("deterministic: false", "deterministic: true", "run.deterministic (false -> true)"),
        (", metric_name: val:loss", "", 'checkpointing.metric_name ("val:loss" -> absent)'),
    ],
)
def test_what_alters_a_step_needs_permission(before: str, after: str, name: str) -> None:
    assert decide(CONFIG.replace(before, after)) == Decision([], [name], [name])


@pytest.mark.parametrize(
    "before, after, name",
    [
        ("lr: 0.1", "lr: 0.2", "policy.optimizer.kwargs.lr (0.1 -> 0.2)"),
        ("scheduler: null", "scheduler: [{name: x}]", 'policy.scheduler (null -> [{"name": "x"}])'),
        ("sft:", "dpo:", "algorithm (sft -> dpo)"),
    ],
)
def test_what_the_checkpoint_holds_is_refused_whatever_is_asked(before: str, after: str, name: str) -> None:
    assert decide(CONFIG.replace(before, after)).refused == [name]


def test_a_learning_rate_is_refused_even_with_permission(tmp_path: Path) -> None:
    text = "policy: {optimizer: {kwargs: {lr: 0.1}}}\n"
    RunFolder(tmp_path / "run", text, resume=False).open()
    with pytest.raises(UsageError, match=r"lr \(0\.1 -> 0\.2\).*start a new run in another folder"):
        RunFolder(tmp_path / "run", text.replace("0.1", "0.2"), resume=True, allow_changed=True)


def test_a_model_folder_is_told_by_its_configuration_and_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(identity, "WHOLE", 1000)
    monkeypatch.setattr(identity, "BLOCK", 100)
    monkeypatch.setattr(identity, "NUM_BLOCKS", 4)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = bytearray(range(250)) * 100
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("not part of it")
    first = model_fingerprint(str(folder))
    (folder / "README.md").write_text("other words")
    assert model_fingerprint(str(folder)) == first
    for place in (0, len(weights) - 1):  # blocks at both ends are read
        changed = bytearray(weights)
        changed[place] ^= 1
        (folder / "model.safetensors").write_bytes(changed)
        assert model_fingerprint(str(folder)) != first
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_text('{"a": 1}')
    assert model_fingerprint(str(folder)) != first
    assert model_fingerprint("some-hub/model") is None


def test_changed_weights_and_environments_are_named(tmp_path: Path) -> None:
    model, environment = tmp_path / "model", tmp_path / "letters.py"
    model.mkdir()
    (model / "config.json").write_text("{}")
    environment.write_text("# judge")
    text = f"policy: {{model_name: {model}}}\ndata: {{train: {{env_name: '{environment}:Letters'}}}}\n"
    before = inputs_of(text)
    (model / "config.json").write_text('{"a": 1}')
    environment.write_text("# a kinder judge")
    changes = [change.what for change in file_changes(before, inputs_of(text))]
    assert changes == [f"data file {environment}", f"model {model}"]


def test_the_program_of_an_environment_in_a_folder_is_watched(tmp_path: Path) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    for name in ("environment.py", "judge.py", "notes.md"):
        (folder / name).write_text("# as it was")
    text = f"data: {{train: {{env_name: '{folder}'}}}}\n"
    before = inputs_of(text)
    for name in ("environment.py", "judge.py", "notes.md"):
        (folder / name).write_text("# changed")
    changes = [change.what for change in file_changes(before, inputs_of(text))]
    assert changes == [f"data file {folder / 'environment.py'}", f"data file {folder / 'judge.py'}"]


def test_a_broken_inputs_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text("{")
    with pytest.raises(RunError, match=r"inputs\.json: cannot be read"):
        read_inputs(tmp_path / "inputs.json")
