"""The loop with fake stages: models are files that hold a number, and the number is how good they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from regimen.config.load import load_iterate_config
from regimen.config.schema import IterateConfig
from regimen.errors import ConfigError, ConvertError, UsageError
from regimen.gym.protocol import stamps
from regimen.pipelines.evaluate import (
    Evaluation,
    labels_of,
    read_side,
    results_by_environment,
    results_of,
    write_evaluation,
)
from regimen.pipelines.iterate import Stages, iterate

NUM_TASKS = 10


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it runs."""


def skill(model: str | Path) -> float:
    return json.loads((Path(model) / "config.json").read_text())["skill"]


def write_model(folder: Path, value: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"skill": value}))
    return folder


class FakeStages:
    """Stages that record what they were asked; training the n-th time makes a model of the n-th skill.

    `kill_at` is the number of the call that is killed before it does anything, `half` lets it do its work first.
    """

    def __init__(self, skills: list[float], *, kill_at: int | None = None, half: bool = False) -> None:
        self.skills, self.kill_at, self.half = skills, kill_at, half
        self.names = ["calculator"]
        self.calls: list[tuple[Any, ...]] = []
        self.stopped = False

    def stages(self) -> Stages:
        return Stages(
            collect=self._killable(self.collect),
            convert=self._killable(self.convert),
            train=self._killable(self.train),
            evaluate=self._killable(self.evaluate),
        )

    def _killable(self, stage: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            is_last = len(self.calls) == self.kill_at
            if is_last and not self.half:
                raise Killed
            done = stage(*arguments, **options)
            if is_last:
                raise Killed
            return done

        return run

    def collect(self, config: Any, *, on_start: Any, on_row: Any) -> Any:
        self.calls.append(("collect", Path(config.model).name, config.split, config.seed, config.resume))
        Path(config.output).parent.mkdir(parents=True, exist_ok=True)
        on_start(2)
        on_row({})
        return SimpleNamespace(num_episodes=2, mean_reward=skill(config.model))

    def convert(self, rollouts: Path, to: str, out: Path, options: Any, *, overwrite: bool) -> Any:
        self.calls.append(("convert", rollouts.parent.name, to, options.max_per_task, overwrite))
        ledger = SimpleNamespace(rows={"trained": 1, "below_threshold": 1})
        return SimpleNamespace(format="openai", ledger=ledger)

    def train(self, config: Any, *, resume: bool, progress: Any) -> Any:
        folder = Path(config.checkpointing.checkpoint_dir)
        self.calls.append(("train", Path(config.policy.model_name).name, folder.parent.name, resume))
        number = int(folder.parent.name.removeprefix("round_"))
        write_model(folder / "model", self.skills[number - 1])
        (folder / "config.yaml").write_text("")
        progress("train sft", 1, 1, "loss 0.5")
        return SimpleNamespace(ledger={"trained": 1}, num_steps=3, stopped=self.stopped)

    def evaluate(self, config: Any, progress: Any, *, resume: bool) -> Evaluation:
        names = [config.against, *config.models] if config.against else config.models
        self.calls.append(("evaluate", config.split, tuple(Path(name).name for name in names)))
        output, sides, rollouts = Path(config.output), {}, {}
        for label, name in zip(labels_of(names), names, strict=True):
            path = output / label / "rollouts.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(skill(name), self.names)))
            sides[label], rollouts[label] = read_side([path], max_bad=0.0), str(path.relative_to(output))
        results = results_of(sides, config.against is not None, [1], 1.0)
        sources = {label: [label] for label in sides}
        environments = results_by_environment(sides, config.against is not None, [1], 1.0)
        evaluation = Evaluation(models=results, sources=sources, rollouts=rollouts, environments=environments)
        write_evaluation(evaluation, sides, output)
        return evaluation


def rows_of(value: float, names: list[str]) -> list[dict[str, Any]]:
    """Episodes of ten tasks, of the environments in turn, of which a model of this skill solves `10 * value`."""
    return [
        {
            "responses_create_params": {"input": f"question {task}"},
            "response": {"output": [{"type": "message", "role": "assistant", "content": "answer"}]},
            "reward": float(task < round(NUM_TASKS * value)),
            **stamps(task, 0, names[task % len(names)]),
        }
        for task in range(NUM_TASKS)
    ]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_model(tmp_path / "base", 0.2)


def config_of(base: Path, *overrides: str) -> IterateConfig:
    output = base.parent / "loop"
    given = [f"model={base}", f"output={output}", *overrides]
    return load_iterate_config("quickstart/iterate", given)


def test_a_better_model_is_kept_and_the_next_round_begins_with_it(base: Path):
    fake = FakeStages([0.5, 0.9])
    heard: list[Any] = []
    result = iterate(config_of(base), stages=fake.stages(), progress=lambda *given: heard.append(given))
    assert fake.calls == [
        ("collect", "start", "train", 0, True),
        ("convert", "round_1", "sft", 1, True),
        ("train", "start", "round_1", False),
        ("evaluate", "validation", ("start", "round_1")),
        ("collect", "round_1", "train", 1, True),
        ("convert", "round_2", "sft", 1, True),
        ("train", "round_1", "round_2", False),
        ("evaluate", "validation", ("round_1", "round_2")),
        ("evaluate", "test", ("start", "round_2")),
    ]
    assert [(done.start, done.kept) for done in result.rounds] == [(0, True), (1, True)]
    assert [done.comparison.difference for done in result.rounds if done.comparison] == pytest.approx([0.3, 0.4])
    assert (result.kept, skill(result.model)) == (2, 0.9)
    assert ("round 1: train sft", 1, 1, "loss 0.5") in heard
    assert ("round 1: collect", 1, 2) in heard


def test_adapters_are_merged_before_the_next_stages(base: Path, monkeypatch: pytest.MonkeyPatch):
    fake = FakeStages([0.5, 0.9])
    plain = fake.train

    def train(config: Any, **options: Any) -> Any:
        done = plain(config, **options)
        model = Path(config.checkpointing.checkpoint_dir) / "model"
        (model / "config.json").rename(model / "adapter_config.json")
        return done

    def merge(source: Path, output: Path, *, overwrite: bool) -> None:
        assert overwrite  # a kill may have left one
        write_model(output, json.loads((source / "adapter_config.json").read_text())["skill"])

    monkeypatch.setattr(fake, "train", train)
    monkeypatch.setattr("regimen.pipelines.iterate.merge", merge)
    result = iterate(config_of(base, "rounds=2"), stages=fake.stages())
    assert (result.kept, result.model) == (2, base.parent / "loop" / "round_2" / "merged")
    assert [call[1] for call in fake.calls if call[0] == "train"] == ["start", "round_1"]


def test_a_worse_or_equal_model_is_dropped_and_the_best_so_far_goes_on(base: Path):
    fake = FakeStages([0.6, 0.6, 0.1])
    result = iterate(config_of(base, "rounds=3"), stages=fake.stages())
    assert [(done.start, done.kept) for done in result.rounds] == [(0, True), (1, False), (1, False)]
    assert [done.comparison.verdict for done in result.rounds if done.comparison][1:] == [
        "not distinguishable",
        "worse",
    ]
    assert fake.calls[-1] == ("evaluate", "test", ("start", "round_1"))
    assert (result.kept, skill(result.model)) == (1, 0.6)


def test_a_gain_up_to_min_improvement_is_not_enough(base: Path):
    result = iterate(config_of(base, "rounds=1", "min_improvement=0.3"), stages=FakeStages([0.4]).stages())
    assert (result.kept, result.model, result.rounds[0].kept) == (0, str(base), False)
    # A gain that the interval cannot tell from none is enough when it is above the limit: the verdict is recorded.
    other = config_of(base, "rounds=1", f"output={base.parent / 'other'}", "min_improvement=0.15")
    result = iterate(other, stages=FakeStages([0.4]).stages())
    assert result.rounds[0].comparison is not None
    assert (result.kept, result.rounds[0].comparison.verdict) == (1, "not distinguishable")


def test_without_a_better_model_the_final_tasks_are_played_by_the_starting_one_alone(base: Path):
    fake = FakeStages([0.1])
    result = iterate(config_of(base, "rounds=1"), stages=fake.stages())
    assert [call for call in fake.calls if "test" in call] == [("evaluate", "test", ("start",))]
    assert "no round made a better one" in str(result)


def test_what_is_written_and_shown(base: Path):
    result = iterate(config_of(base), stages=FakeStages([0.5, 0.4]).stages())
    record = json.loads((result.folder / "iterate.json").read_text())
    assert (record["kept"], record["model"]) == (1, str(result.folder / "round_1/run/model"))
    assert [done["kept"] for done in record["rounds"]] == [True, False]
    assert [side["score"]["label"] for side in record["final"]] == ["start", "round_1"]
    assert record["final"][1]["comparison"]["difference"] == pytest.approx(0.3)
    page = (result.folder / "report.html").read_text()
    assert "Round 2, from round 1: -0.100" in page
    text = str(result)
    assert all(part in text for part in ("+0.300", "kept", "dropped", "final tasks, played once", "kept: round 1"))
    assert max(map(len, text.splitlines()[:-2])) <= 100


def test_the_final_comparison_is_told_by_environment(base: Path):
    """Of the ten tasks the odd ones are of `sums`: the start solves 0 and 1, the kept model 0 to 4."""
    fake = FakeStages([0.5])
    fake.names = ["letters", "sums"]
    result = iterate(config_of(base, "rounds=1"), stages=fake.stages())
    record = json.loads((result.folder / "iterate.json").read_text())
    means = {
        name: [side["score"]["reward"]["mean"] for side in sides] for name, sides in record["environments"].items()
    }
    assert means == {"letters": [0.2, 0.6], "sums": [0.2, 0.4]}
    assert '<td rowspan="2">sums</td>' in (result.folder / "report.html").read_text()
    text = str(result)
    assert text.index("final tasks, played once") < text.index("environment letters") < text.index("environment sums")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kill_at", range(9))
def test_a_killed_loop_resumes_to_the_same_end(base: Path, kill_at: int, half: bool):
    config, skills = config_of(base), [0.5, 0.9]
    with pytest.raises(Killed):
        iterate(config, stages=FakeStages(skills, kill_at=kill_at, half=half).stages())
    resumed = FakeStages(skills)
    result = iterate(config, resume=True, stages=resumed.stages())
    assert len(resumed.calls) == 9 - kill_at  # what was finished is not done again
    if resumed.calls[0][0] == "train":
        assert resumed.calls[0][-1] is half  # a run that was begun is resumed
    assert (result.kept, [done.kept for done in result.rounds]) == (2, [True, True])
    assert (result.folder / "report.html").exists()
    again = FakeStages(skills)
    assert str(iterate(config, resume=True, stages=again.stages())) == str(result)
    assert again.calls == []


def test_a_stopped_training_leaves_a_loop_to_resume(base: Path):
    fake = FakeStages([0.5, 0.9])
    fake.stopped = True
    result = iterate(config_of(base), stages=fake.stages())
    assert (result.stopped, result.evaluation, len(fake.calls)) == (True, None, 3)
    assert "continue with --resume" in str(result)
    assert not (result.folder / "iterate.json").exists()
    assert iterate(config_of(base), resume=True, stages=FakeStages([0.5, 0.9]).stages()).kept == 2


def test_rounds_may_be_added_until_the_final_tasks_were_played(base: Path):
    with pytest.raises(Killed):
        iterate(config_of(base, "rounds=1"), stages=FakeStages([0.5], kill_at=4).stages())
    fake = FakeStages([0.5, 0.9])
    assert iterate(config_of(base, "rounds=2"), resume=True, stages=fake.stages()).kept == 2
    with pytest.raises(UsageError, match=r"its final tasks were played; .*looked at once"):
        iterate(config_of(base, "rounds=3"), resume=True, stages=fake.stages())


def test_only_a_folder_of_a_loop_is_replaced(base: Path):
    config = config_of(base, "rounds=1")
    iterate(config, stages=FakeStages([0.5]).stages())
    with pytest.raises(UsageError, match="the folder is not empty"):
        iterate(config, stages=FakeStages([0.5]).stages())
    fake = FakeStages([0.4])
    assert iterate(config_of(base, "rounds=1", "overwrite=true"), stages=fake.stages()).kept == 1
    assert len(fake.calls) == 5
    assert skill(base) == 0.2  # the links to models were removed, not what they point to
    foreign = base.parent / "mine"
    (foreign / "sub").mkdir(parents=True)
    with pytest.raises(UsageError, match="holds no loop of iterate"):
        iterate(config_of(base, f"output={foreign}", "overwrite=true"))
    assert (foreign / "sub").exists()


def test_resuming_needs_a_loop_and_the_same_settings(base: Path):
    with pytest.raises(UsageError, match="holds no loop of iterate; to fix: start it without --resume"):
        iterate(config_of(base), resume=True)
    iterate(config_of(base, "rounds=1"), stages=FakeStages([0.5]).stages())
    with pytest.raises(UsageError, match="begun with other settings"):
        iterate(config_of(base, "rounds=1", "collect.num_repeats=3"), resume=True)
    other_batches = config_of(base, "rounds=1", "collect.concurrency=2", "evaluate.generation.max_batch_size=3")
    assert iterate(other_batches, resume=True, stages=FakeStages([0.5]).stages()).kept == 1


def test_nothing_to_train_on_in_a_later_round_says_how_to_end(base: Path):
    fake = FakeStages([0.5])

    def refuse_in(number: int) -> Stages:
        def convert(rollouts: Path, *arguments: Any, **options: Any) -> Any:
            if rollouts.parent.name == f"round_{number}":
                raise ConvertError("no rollout reaches the reward threshold 1", fix="lower it")
            return fake.convert(rollouts, *arguments, **options)

        return Stages(fake.collect, convert, fake.train, fake.evaluate)

    with pytest.raises(ConvertError, match=r"fix: lower it$"):
        iterate(config_of(base), stages=refuse_in(1))
    with pytest.raises(ConvertError, match=r"fix: lower it, or end the loop here: --resume with rounds=1$"):
        iterate(config_of(base), resume=True, stages=refuse_in(2))
    result = iterate(config_of(base, "rounds=1"), resume=True, stages=refuse_in(2))
    assert ([done.number for done in result.rounds], result.kept) == ([1], 1)


def test_wrong_options_and_models_are_refused_before_anything_is_played(base: Path):
    with pytest.raises(ConfigError, match=r"convert.max_per_tsk: unknown key.*convert.max_per_task"):
        iterate(config_of(base, "convert.max_per_tsk=2"))
    with pytest.raises(ConfigError, match="convert: Expected"):
        iterate(config_of(base, "convert.max_per_task=many"))
    with pytest.raises(UsageError, match="no such folder"):
        iterate(config_of(base, "model=/no/such/model"))
    assert not (base.parent / "loop").exists()
