from __future__ import annotations

import json
from typing import Any

import pytest

from regimen.config.load import load_collect_config
from regimen.config.schema_policy import SamplingConfig
from regimen.errors import ConfigError, UsageError
from regimen.generation.fake import FakeGeneration
from regimen.gym.agent import Limits
from regimen.pipelines import collect as module
from regimen.pipelines.collect import collect, limits_of, sampling_of


class LetterRenderer:
    """One id per character; nothing is ever a call."""

    fingerprint = "letters"
    template_fingerprint = "template"
    stop_ids = (0,)

    def prompt_ids(self, messages: Any, tools: Any) -> list[int]:
        return [ord(letter) for letter in messages[-1]["content"]]

    def continuation_ids(self, assistant: Any, appended: Any, tools: Any) -> list[int]:
        raise AssertionError("no calls are made")

    def parse_assistant(self, ids: Any) -> dict[str, Any]:
        return {"role": "assistant", "content": "".join(chr(i) for i in ids if i), "malformed_calls": 0}


def config_in(folder: Any, *overrides: str) -> Any:
    source = {"environment": {"name": "calculator"}, "model": "m", "num_tasks": 4, "output": str(folder / "r.jsonl")}
    return load_collect_config(source, overrides)


def thousand() -> FakeGeneration:
    return FakeGeneration(lambda *_: [*map(ord, "1000"), 0])


def test_parts_are_joined_and_rows_written(tmp_path):
    heard: list[Any] = []
    started: list[int] = []
    config = config_in(tmp_path, "num_repeats=2", "split=test")
    found = collect(
        config, on_start=started.append, on_row=heard.append, generation=thousand(), renderer=LetterRenderer()
    )
    assert (len(found.rows), started, len(heard)) == (8, [8], 8)
    row = json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])
    assert (row["split"], row["response"]["model"], row["extracted_answer"]) == ("test", "m", "1000")


def test_the_backend_is_loaded_and_closed(tmp_path, monkeypatch):
    loaded: list[Any] = []
    generation = thousand()

    class Backend:
        @staticmethod
        def load(folder: str, **settings: Any) -> FakeGeneration:
            loaded.append((folder, settings))
            return generation

    monkeypatch.setattr(module, "resolve", lambda kind, name: {("generation", "transformers"): Backend}[kind, name])
    config = config_in(tmp_path, "generation.precision=float32", "generation.max_batch_size=7")
    collect(config, renderer=LetterRenderer())
    assert loaded == [("m", {"precision": "float32", "max_batch_size": 7, "trust_remote_code": False})]
    assert generation.is_closed


def test_existing_output_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "r.jsonl").write_text("")
    with pytest.raises(UsageError, match="the file exists"):
        collect(config_in(tmp_path))
    with pytest.raises(UsageError, match="is a folder"):
        collect(config_in(tmp_path, f"output={tmp_path}"))


def test_a_split_with_too_few_tasks_is_refused(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(
        "from regimen.gym.environment import Environment\n"
        "class Small(Environment):\n"
        "    def tasks(self, split, num_tasks=None):\n"
        "        return []\n"
        "    async def verify(self, session, task, output): ...\n"
    )
    with pytest.raises(ConfigError, match=r"has 0 tasks.*at least 4"):
        collect(config_in(tmp_path, f"environment.name={path}:Small"), renderer=LetterRenderer())


def test_settings_reach_the_sampler_and_the_limits(tmp_path):
    config = config_in(
        tmp_path, "generation.temperature=0.5", "generation.stop_token_ids=[5, 0]", "max_turns=2", "generation.top_k=3"
    )
    sampling = sampling_of(config.generation, LetterRenderer())
    assert (sampling.temperature, sampling.top_k, sampling.max_new_tokens, sampling.stop_ids) == (0.5, 3, 256, (0, 5))
    assert limits_of(config) == Limits(max_turns=2, max_sequence_length=2048, episode_seconds=None)


def test_the_clock_ends_no_episode_of_an_engine_in_this_process(tmp_path):
    assert limits_of(config_in(tmp_path)).episode_seconds is None
    elsewhere = config_in(tmp_path).model_copy(update={"generation": SamplingConfig(backend="a_server")})
    assert limits_of(elsewhere).episode_seconds == 600.0
