"""A run's folder: what stays, what goes, what is refused, and that nothing half-written is ever taken for whole."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from regimen.errors import RunError, UsageError
from regimen.pipelines import run as run_module
from regimen.pipelines.run import INFO_FILE, STATE_FILE, RunFolder, checkpoints, listening_for_stop, publish_model

CONFIG = "seed: 1\n"


def opened(folder: Path, *, resume: bool = False) -> RunFolder:
    run = RunFolder(folder, CONFIG, resume=resume)
    run.open()
    return run


def save(
    run: RunFolder,
    step: int,
    metric: float | None = None,
    *,
    keep: int | None = 1,
    total: int | None = None,
    higher: bool = True,
    state: bool = True,
) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_text(f"weights of {step}")
        if state:
            (folder / STATE_FILE).write_text("state")

    run.save(step, write, {"metric": metric, "total_steps": total}, keep=keep, higher_is_better=higher)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def test_the_best_and_the_latest_stay(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    for step, metric in ((1, 0.2), (2, 0.9), (3, 0.1), (10, 0.3)):
        save(run, step, metric, keep=1)
    assert names(run.path) == ["step_2", "step_10"]  # by number, not by name
    assert run.best(higher_is_better=True) == run.path / "step_2"
    assert run.best(higher_is_better=False) == run.path / "step_10"
    assert not (run.path / "step_2" / STATE_FILE).exists()
    assert (run.path / "step_10" / STATE_FILE).exists()


@pytest.mark.parametrize(
    "keep, higher, expected",
    [
        (2, False, ["step_1", "step_3", "step_4"]),
        (None, True, [f"step_{n}" for n in range(1, 5)]),
        (1, True, ["step_2", "step_4"]),
    ],
)
def test_how_many_are_kept(tmp_path: Path, keep: int | None, higher: bool, expected: list[str]) -> None:
    run = opened(tmp_path / "run")
    for step, metric in ((1, 0.2), (2, 0.9), (3, 0.1), (4, 0.3)):
        save(run, step, metric, keep=keep, higher=higher)
    assert names(run.path) == expected


def test_without_a_metric_the_later_is_better_and_any_metric_beats_none(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    for step in (1, 2):
        save(run, step, None, keep=5)
    assert run.best(higher_is_better=False) == run.path / "step_2"
    save(run, 3, float("nan"), keep=5)
    save(run, 4, -7.0, keep=5)
    save(run, 5, float("nan"), keep=5)
    assert run.best(higher_is_better=True) == run.path / "step_4"
    assert RunFolder(tmp_path / "other", CONFIG, resume=False).best(higher_is_better=True) is None


def test_a_failed_save_leaves_no_checkpoint_and_the_next_open_clears_it(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    save(run, 1)

    def full_disk(folder: Path) -> None:
        folder.mkdir()
        (folder / STATE_FILE).write_text("half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space"):
        run.save(2, full_disk, {}, keep=1, higher_is_better=True)
    (run.path / "..step_2.tmp.tmp-123").mkdir()  # what a kill in the middle of writing a model leaves
    (run.path / ".step_0.old.tmp").mkdir()  # and in the middle of removing a checkpoint
    (run.path / ".metrics.jsonl.tmp").write_text("half")
    (run.path / "rollouts").mkdir()
    (run.path / "rollouts" / ".step_2_materialized_inputs.jsonl.7.tmp").write_text("half")
    assert names(run.path) == ["step_1"]
    resumed = opened(run.path, resume=True)
    assert resumed.start_step == 1
    assert sorted(path.name for path in run.path.iterdir()) == [
        "config.yaml",
        "inputs.json",
        "rollouts",
        "step_1",
        "versions.json",
    ]
    assert list((run.path / "rollouts").iterdir()) == []


def test_where_a_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = opened(folder)
    assert RunFolder(folder, CONFIG, resume=True).start_step == 0
    save(run, 3, 0.9, keep=3)
    save(run, 6, 0.1, keep=3)
    (folder / "step_9").mkdir()  # without its info file it was never finished
    resumed = RunFolder(folder, CONFIG, resume=True)
    assert (resumed.start_step, resumed.checkpoint) == (6, folder / "step_6")


def test_what_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UsageError, match="no run to resume"):
        RunFolder(folder, CONFIG, resume=True)
    opened(folder)
    with pytest.raises(UsageError, match="holds a run"):
        RunFolder(folder, CONFIG, resume=False)
    with pytest.raises(UsageError, match=r"changed since the run was begun: seed \(1 -> 2\).*--allow-changed"):
        RunFolder(folder, "seed: 2\n", resume=True)
    (folder / "step_final").mkdir()
    (folder / "step_final" / INFO_FILE).write_text("{}")
    with pytest.raises(RunError, match="not a checkpoint"):
        checkpoints(folder)


def test_a_finished_run_needs_no_training_state(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = opened(folder)
    save(run, 1, state=False, total=2)
    with pytest.raises(UsageError, match="no training state"):
        RunFolder(folder, CONFIG, resume=True)
    save(run, 2, state=False, total=2)
    resumed = RunFolder(folder, CONFIG, resume=True)
    assert (resumed.is_finished, resumed.start_step, resumed.checkpoint) == (True, 2, folder / "step_2")


def test_resuming_with_changed_data_is_refused(tmp_path: Path) -> None:
    folder, data = tmp_path / "run", tmp_path / "a${b}.jsonl"
    data.write_text("{}\n")
    escaped = str(data).replace("${", "\\${")  # as `config.dump` writes it
    config = f"data:\n  train:\n    data_path: {escaped}\n  validation: null\n"
    RunFolder(folder, config, resume=False).open()
    RunFolder(folder, config, resume=True)
    sidecar = tmp_path / "a${b}.sidecar.jsonl"
    sidecar.write_text("{}\n")
    with pytest.raises(UsageError, match=r"changed since the run was begun: data file .*sidecar\.jsonl"):
        RunFolder(folder, config, resume=True)
    sidecar.unlink()
    data.write_text("{ }\n")
    with pytest.raises(UsageError, match=r"data file .*a\$\{b\}\.jsonl"):
        RunFolder(folder, config, resume=True)
    allowed = RunFolder(folder, config, resume=True, allow_changed=True)
    assert allowed.changes == [f"data file {data}"]
    allowed.open()
    assert json.loads((folder / "changes.jsonl").read_text()) == {"step": 0, "changed": [f"data file {data}"]}
    assert RunFolder(folder, config, resume=True).changes == []  # it is the run's data now
    data.unlink()
    with pytest.raises(UsageError, match="data file"):
        RunFolder(folder, config, resume=True)


def test_resuming_with_another_tokenizer_or_template_is_refused(tmp_path: Path) -> None:
    def begin(*, resume: bool, allow: bool = False, tokenizer: str = "a", template: str = "b") -> RunFolder:
        run = RunFolder(tmp_path / "run", CONFIG, resume=resume, allow_changed=allow)
        run.check_rendering(tokenizer, template)
        return run

    begin(resume=False).open()
    assert begin(resume=True).changes == []
    with pytest.raises(UsageError, match="changed since the run was begun: tokenizer;"):
        begin(resume=True, tokenizer="c")
    with pytest.raises(UsageError, match="changed since the run was begun: tokenizer, chat template;"):
        begin(resume=True, tokenizer="c", template="d")
    assert begin(resume=True, allow=True, template="d").changes == ["chat template"]


def test_a_kill_while_a_checkpoint_is_removed_leaves_none_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(tmp_path / "run")
    for step in (1, 2):
        save(run, step, float(step), keep=5)
    real = run_module.shutil.rmtree

    def killed(path: Path, **options: object) -> None:
        if not options:  # not the clearing of leftovers
            raise KeyboardInterrupt
        real(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(run_module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        save(run, 3, 3.0, keep=1)
    assert names(run.path) == ["step_2", "step_3"]
    assert (run.path / ".step_1.old.tmp").is_dir()


def test_nothing_is_made_before_the_run_is_opened(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", CONFIG, resume=False)
    assert list(tmp_path.iterdir()) == []
    run = opened(tmp_path / "run")
    assert (run.path / "config.yaml").read_text() == CONFIG
    assert json.loads((run.path / "versions.json").read_text())["python"].startswith("3.")


def test_publishing_replaces_the_model_and_leaves_the_training_state(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    for step in (1, 2):
        save(run, step, keep=None)
        publish_model(run.path / f"step_{step}", run.path / "model")
    assert [path.name for path in (run.path / "model").iterdir()] == ["model.safetensors"]
    assert (run.path / "model" / "model.safetensors").read_text() == "weights of 2"


def test_models_are_copied_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(run_module.os, "link", no_links)
    run = opened(tmp_path / "run")
    save(run, 1)
    publish_model(run.path / "step_1", run.path / "model")
    assert (run.path / "model" / "model.safetensors").read_text() == "weights of 1"


def test_sigterm_sets_a_flag_only_inside_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with listening_for_stop() as stop:
        assert not stop.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received
    assert signal.getsignal(signal.SIGTERM) is before
    assert "saving a checkpoint" in capsys.readouterr().err
