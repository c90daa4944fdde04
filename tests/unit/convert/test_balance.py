"""Whatever the rewards, texts and options: every row ends in one bucket and every token is counted once."""

from itertools import count
from types import SimpleNamespace

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.convert.episodes import Episode
from regimen.convert.ledger import Ledger
from regimen.convert.options import STRATEGIES, ConvertOptions
from regimen.rollouts.records import Source

ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", "z", None]), st.sampled_from([0.0, 0.3, 0.5, 1.0])),
    max_size=14,
)


def _episodes(rows):
    lines = count(1)
    return [
        Episode(
            source=Source("r", line := next(lines)),
            task_id=task,
            task_index=None,
            rollout_index=line,
            environment=None,
            reward=reward,
            prompt=[{"role": "user", "content": task}],
            completion=[] if text is None else [{"role": "assistant", "content": text}],
            tools=[],
            prompt_key=task,
            packed=msgspec.msgpack.encode([]),
            num_sequences=0,
            num_sampled=line,
            tokenizer=None,
            template=None,
        )
        for task, text, reward in rows
    ]


def _close(build, rows, options):
    episodes, ledger = _episodes(rows), Ledger()
    examples = build(episodes, options, ledger)
    for key in dict.fromkeys(key for example in examples for key in example.keys):
        ledger.count(key, "trained", key[1])
    totals = ledger.close(len(episodes), sum(episode.num_sampled for episode in episodes))
    return SimpleNamespace(examples=examples, totals=totals, by_line={e.source.line: e for e in episodes})


@settings(deadline=None)
@given(ROWS, st.integers(1, 3), st.sampled_from([0.3, 1.0]))
def test_sft_balances(build_sft, rows, cap, threshold):
    options = ConvertOptions(format="openai", reward_threshold=threshold, max_per_task=cap)
    done = _close(build_sft, rows, options)
    per_task = [example.task_id for example in done.examples]
    assert all(per_task.count(task) <= cap for task in per_task)
    assert all(example.record.reward >= threshold for example in done.examples)


@settings(deadline=None)
@given(ROWS, st.sampled_from(STRATEGIES), st.integers(1, 4), st.sampled_from([0.0, 0.2, 0.5]))
def test_dpo_balances(build_dpo, rows, strategy, limit, gap):
    options = ConvertOptions(format="preference", strategy=strategy, max_pairs_per_task=limit, min_gap=gap)
    done = _close(build_dpo, rows, options)
    for example in done.examples:
        chosen, rejected = (done.by_line[line] for _, line in example.keys)
        assert chosen.task_id == rejected.task_id
        assert chosen.completion != rejected.completion
        assert chosen.reward > rejected.reward
        assert chosen.reward - rejected.reward >= gap - 1e-9
    tasks = [example.task_id for example in done.examples]
    assert all(tasks.count(task) <= (1 if strategy == "same_prompt" else limit) for task in tasks)
    assert done.totals.uses.get("pairs", 0) == len(done.examples)
