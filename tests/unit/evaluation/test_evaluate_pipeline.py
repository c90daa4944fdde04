import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from regimen.config.schema import EnvironmentConfig, EvaluateConfig, SamplingConfig
from regimen.errors import ConfigError, UsageError
from regimen.generation.fake import FakeGeneration
from regimen.pipelines.evaluate import Evaluation, check_models, evaluate, evaluate_rollouts, folder_name, labels_of

ENVIRONMENT = str(Path(__file__).parents[2] / "fixtures" / "evaluation" / "addition.py") + ":Addition"
STOP = 0


class CharacterRenderer:
    """One id per character; the stop token is 0."""

    fingerprint = "characters"
    template_fingerprint = "plain"
    stop_ids = (STOP,)

    def prompt_ids(self, messages, tools):
        return [ord(character) for message in messages for character in message["content"]]

    def continuation_ids(self, assistant, appended, tools):
        return self.prompt_ids(appended, tools)

    def parse_assistant(self, ids):
        return {"role": "assistant", "content": "".join(chr(id_) for id_ in ids if id_ != STOP)}


def opener(seen, skill):
    """Opens fake models: `skill[name]` says to which numbers a model adds 1 rightly."""

    def open_model(name, settings):
        def answer(prompt_ids, sampling, seed):
            number = int("".join(map(chr, prompt_ids)).split(" + ")[0])
            seen.append((name, number, sampling, seed))
            text = skill[name](number)
            return [*map(ord, text), STOP]

        return FakeGeneration(answer), CharacterRenderer()

    return open_model


def right(number):
    return str(number + 1)


def right_when_even(number):
    return str(number + 1) if number % 2 == 0 else "?"


def broken_at_305(number):
    return "boom" if number == 305 else right(number)


def play(tmp_path, seen=None, skill=None, progress=None, resume=False, environment=ENVIRONMENT, **changes):
    values = {
        "models": ["m/new"],
        "against": "m/old",
        "environment": environment
        if isinstance(environment, EnvironmentConfig)
        else EnvironmentConfig(name=environment),
        "num_tasks": 20,
        "num_repeats": 2,
        "generation": SamplingConfig(temperature=0.7),
        "output": str(tmp_path / "out"),
        **changes,
    }
    skill = skill or {"m/new": right, "m/old": right_when_even, "m/middle": right_when_even}
    open_model = opener([] if seen is None else seen, skill)
    return evaluate(EvaluateConfig(**values), progress, resume=resume, open_model=open_model)


def test_two_models_are_played_alike_scored_and_compared(tmp_path):
    seen, progress = [], []
    found = play(tmp_path, seen, progress=lambda *heard: progress.append(heard))
    assert [model.score.label for model in found.models] == ["old", "new"]
    assert (found.base.reward.mean, found.score.reward.mean) == (0.5, 1.0)
    assert found.comparison.verdict == "better"
    assert (found.comparison.wins, found.comparison.ties, found.comparison.losses) == (10, 10, 0)
    asked = {name: [call[1:] for call in seen if call[0] == name] for name in ("m/old", "m/new")}
    key = lambda call: (call[0], call[2])  # noqa: E731
    assert sorted(asked["m/old"], key=key) == sorted(asked["m/new"], key=key)
    assert min(call[0] for call in asked["m/new"]) == 300
    assert progress[-1] == ("new", 40, 40)
    assert len(progress) == 80


def test_what_is_written_gives_the_same_numbers_again(tmp_path):
    found = play(tmp_path)
    out = tmp_path / "out"
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert {"evaluation.json", "report.html", "settings.json", "new/rollouts.jsonl", "old/rollouts.jsonl"} <= set(names)
    assert msgspec.json.decode((out / "evaluation.json").read_bytes(), type=Evaluation) == found
    again = evaluate_rollouts(out / "new" / "rollouts.jsonl", out / "old" / "rollouts.jsonl")
    assert again.comparison.difference == found.comparison.difference
    assert again.comparison.interval == found.comparison.interval
    assert again.score.metrics == found.score.metrics
    assert (again.comparison.label, again.comparison.against) == ("new", "old")


def test_failures_are_kept_apart(tmp_path):
    found = play(tmp_path, skill={"m/new": broken_at_305, "m/old": right_when_even})
    assert (found.score.num_rollouts, found.score.num_failed, found.score.num_tasks_unscored) == (40, 2, 1)
    assert found.score.outcomes == {"ok": 38, "verifier_failed": 2}
    assert found.score.reward.mean == 1.0
    assert (found.comparison.num_tasks, found.comparison.num_only_base) == (19, 1)
    assert "2 of 40 episodes failed" in (tmp_path / "out" / "report.html").read_text()


def test_a_finished_evaluation_is_not_overwritten_unasked(tmp_path):
    play(tmp_path)
    with pytest.raises(UsageError, match="holds an evaluation"):
        play(tmp_path)
    play(tmp_path, overwrite=True)


def test_an_evaluation_that_was_begun_is_refused_before_anything_is_written(tmp_path):
    play(tmp_path)
    out = tmp_path / "out"
    (out / "evaluation.json").unlink()  # as when it was killed
    before = (out / "settings.json").read_bytes()
    with pytest.raises(UsageError, match=r"begun.*--resume"):
        play(tmp_path, seed=9)
    assert (out / "settings.json").read_bytes() == before
    play(tmp_path, resume=True)


def test_resuming_compares_whole_paths(tmp_path, monkeypatch):
    skill = {"m/new": right, "m/old": right}
    for home in ("a", "b"):
        (tmp_path / home / "m" / "new").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    play(tmp_path, skill=skill)
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(UsageError, match="other models or settings"):
        play(tmp_path, skill=skill, resume=True)


def test_resuming_plays_only_what_is_missing(tmp_path):
    seen = []
    play(tmp_path)
    rollouts = tmp_path / "out" / "new" / "rollouts.jsonl"
    lines = rollouts.read_bytes().splitlines(keepends=True)
    rollouts.write_bytes(b"".join(lines[:-3]))
    found = play(tmp_path, seen, resume=True)
    assert [name for name, *_ in seen] == ["m/new"] * 3
    assert found.score.num_rollouts == 40


def test_resuming_with_other_settings_is_refused(tmp_path):
    play(tmp_path)
    with pytest.raises(UsageError, match="other models or settings"):
        play(tmp_path, resume=True, seed=9)
    with pytest.raises(UsageError, match="other models or settings"):
        play(tmp_path, resume=True, against="m/middle")
    play(tmp_path, resume=True, concurrency=2)


def test_several_models_are_each_compared_with_the_base(tmp_path):
    found = play(tmp_path, models=["m/middle", "m/new"])
    assert [(model.score.label, model.comparison and model.comparison.verdict) for model in found.models] == [
        ("old", None),
        ("middle", "not distinguishable"),
        ("new", "better"),
    ]


def test_models_without_a_base_are_not_compared(tmp_path):
    found = play(tmp_path, models=["m/middle", "m/new"], against=None)
    assert [model.comparison for model in found.models] == [None, None]
    assert found.base is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_tasks": 31}, "has 30 tasks"),
        ({"pass_at": [1, 4]}, "pass@4 with 2 repeats a task"),
        ({"environment": "adition"}, "unknown environment"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        play(tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_no_model_are_refused_before_anything_is_played(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    check_models([str(tmp_path / "good"), "organisation/model"])
    bad = {"": "holds no config.json", "file": "is no folder", "missing": "no such folder"}
    for name, message in bad.items():
        with pytest.raises(UsageError, match=message):
            check_models([str(tmp_path / "good"), str(tmp_path / name)])


def write_rows(path, rewards, **fields):
    rows = [
        {
            "responses_create_params": {"input": [{"role": "user", "content": f"question {index}"}]},
            "response": {"output": [{"type": "message", "role": "assistant", "content": "answer"}]},
            "reward": reward,
            "_ng_task_index": index,
            "_ng_rollout_index": 0,
            **fields,
        }
        for index, reward in enumerate(rewards)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_alone_are_scored_without_a_comparison(tmp_path):
    found = evaluate_rollouts(write_rows(tmp_path / "a.jsonl", [0.5, 0.75, 1]))
    assert found.comparison is None
    assert found.base is None
    assert found.score.reward.mean == 0.75
    assert list(tmp_path.iterdir()) == [tmp_path / "a.jsonl"]


def test_files_can_be_written_to_a_folder_once(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [0, 1])
    evaluate_rollouts(path, output=tmp_path / "out")
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["evaluation.json", "report.html"]
    with pytest.raises(UsageError, match="holds an evaluation"):
        evaluate_rollouts(path, output=tmp_path / "out")
    evaluate_rollouts(path, output=tmp_path / "out", overwrite=True)


def test_a_failure_that_a_later_attempt_made_good_does_not_count(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [1, 1])
    failed = {"_ng_failure_class": "agent", "_ng_failure_message": "503", "_ng_rollout_index": 0}
    lines = [json.dumps({**failed, "_ng_task_index": index}) + "\n" for index in (1, 2)]
    (tmp_path / "a_failures.jsonl").write_text("".join(lines))
    found = evaluate_rollouts(path).score
    assert (found.num_rollouts, found.num_scored, found.num_failed) == (3, 2, 1)


def test_a_file_compared_with_itself_is_refused(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [1])
    with pytest.raises(UsageError, match="compared with itself"):
        evaluate_rollouts(path, path)


MIXED = EnvironmentConfig(
    name="mixture",
    options={
        "environments": {name: {"environment": ENVIRONMENT, "weight": w} for name, w in (("most", 3), ("few", 1))}
    },
)


def test_a_mixture_is_scored_and_reported_by_environment(tmp_path):
    """Both entries begin with number 300. The old model is right on even ones, 8 of 15 and 3 of 5."""
    found = play(tmp_path, environment=MIXED, num_repeats=1)
    figures = {
        name: [(model.score.num_tasks, model.score.reward.mean, model.score.pass_at_k[0].k) for model in models]
        for name, models in found.environments.items()
    }
    assert figures == {"few": [(5, 3 / 5, 1), (5, 1.0, 1)], "most": [(15, 8 / 15, 1), (15, 1.0, 1)]}
    assert sum(models[0].score.num_rollouts for models in found.environments.values()) == 20
    assert found.environments["few"][1].comparison.wins == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<td rowspan="2">most</td>' in page
    assert "0.533 [" in page[page.index("<h2>Environments</h2>") :]


def test_an_environment_in_which_one_side_failed_is_not_compared(tmp_path):
    """Number 300 is the only task of the second entry."""
    broken = lambda number: "boom" if number == 300 else right(number)  # noqa: E731
    found = play(tmp_path, environment=MIXED, num_tasks=4, pass_at=[2], skill={"m/new": broken, "m/old": right})
    few, most = found.environments["few"], found.environments["most"]
    assert [model.comparison for model in few] == [None, None]
    assert (few[1].score.num_failed, few[1].score.reward) == (2, None)
    assert most[1].comparison.num_tasks == 2
    assert [item.k for item in most[1].score.pass_at_k] == [1, 2]


def test_an_environment_with_too_few_scored_repeats_for_a_k_has_the_others(tmp_path):
    paths = [tmp_path / "a" / "rollouts.jsonl", tmp_path / "b" / "rollouts.jsonl"]
    for path, repeats in zip(paths, (2, 1), strict=True):
        for repeat in range(repeats):
            part = path.with_name(f"{repeat}.jsonl")
            write_rows(part, [1, 0], _ng_environment_server=path.parent.name, _ng_rollout_index=repeat)
            path.open("a").write(part.read_text().replace("question", path.parent.name))
    found = evaluate_rollouts(paths, ks=[2])
    assert {name: [item.k for item in models[0].score.pass_at_k] for name, models in found.environments.items()} == {
        "a": [1, 2],
        "b": [1],
    }


def test_labels():
    assert labels_of(["models/sft"]) == ["sft"]
    assert labels_of(["runs/a/final", "runs/b/final"]) == ["a/final", "b/final"]
    assert labels_of(["a/b", "a-b"]) == ["b", "a-b"]
    assert labels_of(["x", "./x/."]) == ["1-x", "2-x"]
    assert folder_name("a/final step") == "a-final-step"
    assert folder_name("..") == "model"


def test_reading_files_imports_no_torch(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [0, 1])
    script = (
        "import sys; from regimen.pipelines.evaluate import evaluate_rollouts; import regimen.cli.evaluate;"
        f"evaluate_rollouts({str(path)!r}, output=__import__('pathlib').Path({str(tmp_path / 'out')!r}));"
        "assert not {'torch', 'transformers', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
