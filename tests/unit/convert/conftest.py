"""Factories for the tests of `regimen.convert`: episodes and task rollouts with little to say."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from regimen.convert import dpo, sft
from regimen.convert.balance import TaskRows, balanced_rows
from regimen.convert.episodes import Episode, by_task
from regimen.convert.grpo import TaskRollout, candidates_of
from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.pairs import Pair, leftover_of, pair_across_tasks
from regimen.convert.sidecar import Example
from regimen.rollouts.records import Source, canonical_bytes
from regimen.rollouts.turns import TokenSequence

FIXTURES = Path(__file__).parents[2] / "fixtures" / "convert"


@pytest.fixture
def calculator() -> Path:
    """Ten rows of four tasks with tools, reasoning, token ids; task rows and one failure beside them."""
    return FIXTURES / "calculator.jsonl"


@pytest.fixture
def choices() -> Path:
    """Four flat rows of two tasks, bare-string prompts, ground truth in the rows."""
    return FIXTURES / "choices.jsonl"


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """An episode of task `t` whose answer is `text`; lines count up so that keys differ."""
    lines = iter(range(1, 10_000))

    def make(task: str = "t", text: str = "yes", reward: float = 1.0, **changes: Any) -> Episode:
        line = next(lines)
        prompt = changes.pop("prompt", [{"role": "user", "content": f"question of {task}"}])
        tools = changes.pop("tools", [])
        fields: dict[str, Any] = {
            "source": Source("rollouts.jsonl", line),
            "task_id": task,
            "task_index": None,
            "rollout_index": line,
            "environment": None,
            "reward": reward,
            "prompt": prompt,
            "completion": [{"role": "assistant", "content": text}],
            "tools": tools,
            "prompt_key": canonical_bytes([prompt, tools]).hex(),
            "packed": msgspec.msgpack.encode([TokenSequence([1, 2, 3], [(1, 3)], [-0.5, -0.5])]),
            "num_sequences": 1,
            "num_sampled": 2,
            "tokenizer": None,
            "template": None,
        }
        return Episode(**(fields | changes))

    return make


@pytest.fixture
def make_task_rollout() -> Callable[..., TaskRollout]:
    """A rollout of task `t` as GRPO sees it."""
    lines = iter(range(1, 10_000))

    def make(name: str = "t", reward: float = 1.0, **changes: Any) -> TaskRollout:
        fields: dict[str, Any] = {
            "source": Source("rollouts.jsonl", next(lines)),
            "task_id": name,
            "task_index": None,
            "environment": None,
            "reward": reward,
            "params": {"input": f"question of {name}"},
            "task": None,
            "fields": {"expected_answer": "42"},
            "prompt_key": name,
            "num_sampled": 0,
            "tokenizer": None,
            "template": None,
        }
        fields |= changes
        return TaskRollout(candidates=candidates_of(fields["fields"]), **fields)

    return make


def _build_sft(episodes: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> list[Example]:
    """All rows of episodes in memory, as the passes make them task by task."""
    candidates = sft.sft_candidates(episodes, options, ledger)
    if options.balance is not None:
        groups = by_task(candidates)
        light = [TaskRows(group[0].environment, task_id, len(group)) for task_id, group in groups.items()]
        limits = balanced_rows(light, options.balance, options.seed)
        kept = [sft.keep_best(group, limits[task_id], "balanced", ledger) for task_id, group in groups.items()]
        candidates = [episode for group in kept for episode in group]
    return sft.sft_examples(candidates, options, ledger)


def _build_dpo(episodes: Sequence[Episode], options: ConvertOptions, ledger: Ledger) -> list[Example]:
    """All rows of episodes in memory, as the passes make them task by task."""
    paired = dpo.pair_tasks(episodes, options, ledger)
    by_key = {episode.key: episode for episode in paired.left}
    keys = pair_across_tasks(map(leftover_of, paired.left), options)
    across = [Pair(by_key[one], by_key[other], by_key[one].reward - by_key[other].reward) for one, other in keys]
    for key in by_key.keys() - {key for pair in across for key in pair.keys}:
        ledger.count(key, "no_partner", by_key[key].num_sampled)
    ledger.use("pairs_across_tasks", len(across))
    return dpo.dpo_examples([*paired.pairs, *across], options, ledger)


@pytest.fixture(scope="session")
def build_sft() -> Callable[..., list[Example]]:
    return _build_sft


@pytest.fixture(scope="session")
def build_dpo() -> Callable[..., list[Example]]:
    return _build_dpo
