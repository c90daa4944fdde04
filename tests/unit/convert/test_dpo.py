import pytest

from regimen.convert.dpo import is_said_in_strings, nothing_to_pair
from regimen.convert.episodes import by_task
from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.pairs import balanced, wide_pairs

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def _options(**changes):
    return ConvertOptions(**({"format": "preference", "reasoning": "reasoning_content"} | changes))


@pytest.fixture
def built(build_dpo):
    def build(episodes, **changes):
        ledger = Ledger()
        examples = build_dpo(episodes, _options(**changes), ledger)
        for example in examples:
            for key in example.keys:
                if ledger.bucket_of(key) is None:
                    ledger.count(key, "trained")
        return examples, [ledger.bucket_of(episode.key) for episode in episodes], ledger

    return build


def test_best_against_worst_of_each_task(built, make_episode):
    episodes = [
        make_episode("a", "good", 1.0),
        make_episode("a", "fair", 0.6),
        make_episode("a", "bad", 0.0),
        make_episode("b", "alone", 1.0),
        make_episode("c", "x", 0.5),
        make_episode("c", "y", 0.5),
        make_episode("d", "x", 0.5),
        make_episode("d", "y", 0.4),
    ]
    examples, buckets, ledger = built(episodes)
    assert len(examples) == 1
    assert examples[0].row == {
        "context": [{"role": "user", "content": "question of a"}],
        "completions": [
            {"rank": 0, "completion": [{"role": "assistant", "content": "good"}]},
            {"rank": 1, "completion": [{"role": "assistant", "content": "bad"}]},
        ],
        "chosen_reward": 1.0,
        "rejected_reward": 0.0,
        "reward_gap": 1.0,
        "chosen_characters": 4,
        "rejected_characters": 3,
        "chosen_tokens": 2,
        "rejected_tokens": 2,
        "shared_messages": 1,
    }
    assert (examples[0].record.chosen.source.line, examples[0].record.rejected.source.line) == (1, 3)
    assert buckets == [
        "trained",
        "not_paired",
        "trained",
        "alone_in_task",
        "no_variance",
        "no_variance",
        "gap_too_small",
        "gap_too_small",
    ]
    uses = ledger.close(8, 12).uses  # six rows left out with two sampled tokens each
    # Pairs with a gap of 0.2 in task a: good-fair, good-bad, fair-bad.
    assert uses == {"pairs": 1, "as_chosen": 1, "as_rejected": 1, "pairs_over_the_limit": 2}


def test_a_gap_is_compared_as_people_read_it(make_episode):
    assert 1.0 - 0.8 < 0.2
    assert len(wide_pairs([make_episode(reward=1.0), make_episode(reward=0.8)], 0.2)) == 1
    assert wide_pairs([make_episode(reward=1.0), make_episode(reward=1.0)], 0.0) == []


def test_all_pairs_use_each_answer_as_evenly_as_they_can(built, make_episode):
    good = [make_episode("a", f"good {index}", 1.0) for index in range(3)]
    bad = [make_episode("a", f"bad {index}", 0.0) for index in range(3)]
    chosen = balanced(wide_pairs([*good, *bad], 0.2), 3)
    assert [(pair.chosen.completion[0]["content"], pair.rejected.completion[0]["content"]) for pair in chosen] == [
        ("good 0", "bad 0"),
        ("good 1", "bad 1"),
        ("good 2", "bad 2"),
    ]
    examples, buckets, _ = built([*good, *bad], strategy="all_pairs", max_pairs_per_task=2)
    assert len(examples) == 2
    assert buckets == ["trained", "trained", "capped", "trained", "trained", "capped"]
    assert len(built([*good, *bad], strategy="all_pairs", max_pairs_per_task=99)[0]) == 9


def test_identical_answers_make_no_pair(built, make_episode):
    episodes = [make_episode("a", "same", 1.0), make_episode("a", "same", 0.0)]
    examples, buckets, ledger = built(episodes)
    assert examples == []
    assert buckets == ["identical_pair", "identical_pair"]
    assert ledger.close(2, 4).uses == {"identical_pairs_dropped": 1}


def test_the_next_pair_is_taken_when_the_widest_is_identical(built, make_episode):
    episodes = [make_episode("a", "x", 1.0), make_episode("a", "x", 0.0), make_episode("a", "y", 0.5)]
    examples, buckets, _ = built(episodes)
    assert [example.row["reward_gap"] for example in examples] == [0.5]
    assert buckets == ["trained", "not_paired", "trained"]


def test_the_same_pair_of_texts_stands_once(built, make_episode):
    episodes = [make_episode("a", "x", 1.0), make_episode("a", "x", 1.0), make_episode("a", "y", 0.0)]
    examples, buckets, ledger = built(episodes, strategy="all_pairs")
    assert len(examples) == 1
    assert buckets == ["trained", "duplicate", "trained"]
    assert ledger.close(3, 2).uses["duplicate_pairs_dropped"] == 1


def test_of_equal_answers_the_one_with_token_ids_is_paired(built, make_episode):
    episodes = [
        make_episode("a", "x", 1.0, num_sequences=0),
        make_episode("a", "y", 0.0, num_sequences=0),
        make_episode("a", "x", 1.0),
        make_episode("a", "y", 0.0),
    ]
    examples, _, _ = built(episodes)
    assert [line for _, line in examples[0].keys] == [3, 4]


def test_rows_of_one_task_with_different_prompts_are_not_compared(built, make_episode):
    other = [{"role": "user", "content": "another question"}]
    episodes = [make_episode("a", "x", 1.0), make_episode("a", "y", 0.0, prompt=other)]
    examples, buckets, _ = built(episodes)
    assert examples == []
    assert buckets == ["alone_in_task", "alone_in_task"]


def test_tools_come_along_and_force_messages(built, make_episode):
    episodes = [make_episode("a", "x", 1.0, tools=[TOOL]), make_episode("a", "y", 0.0, tools=[TOOL])]
    assert not any(is_said_in_strings(episode) for episode in episodes)
    assert built(episodes)[0][0].row["tools"] == [TOOL]


def test_strings_are_chosen_when_they_lose_nothing(built, make_episode):
    episodes = [make_episode("a", "x", 1.0), make_episode("a", "y", 0.0)]
    assert all(is_said_in_strings(episode) for episode in episodes)
    thinking = make_episode(completion=[{"role": "assistant", "content": "x", "reasoning_content": "Hm."}])
    assert not is_said_in_strings(thinking)
    examples, _, _ = built(episodes, format="binary")
    assert examples[0].row == {
        "prompt": [{"role": "user", "content": "question of a"}],
        "chosen": "x",
        "rejected": "y",
        "chosen_reward": 1.0,
        "rejected_reward": 0.0,
        "reward_gap": 1.0,
        "chosen_characters": 1,
        "rejected_characters": 1,
        "chosen_tokens": 2,
        "rejected_tokens": 2,
        "shared_messages": 1,
    }


def test_binary_refuses_episodes_of_several_messages(built, make_episode):
    turns = [
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    episodes = [make_episode("a", "x", 1.0, completion=turns), make_episode("a", "y", 0.0)]
    assert built(episodes, format="binary")[1] == ["not_simple", "alone_in_task"]


@pytest.mark.parametrize(
    "rewards, text",
    [
        ([("a", 1.0), ("b", 0.0)], "no task has two scored rollouts to compare (2 rollouts of 2 tasks)"),
        ([("a", 0.5), ("a", 0.5)], "rewards do not differ within any of 1 tasks (rewards seen: 0.5)"),
        (
            [("a", 0.5), ("a", 0.4), ("b", 0.3), ("b", 0.3)],
            "no reward gap within a task reaches 0.2: the largest is 0.1; to fix: --min-gap 0.1 would give pairs in "
            "1 of 2 tasks",
        ),
    ],
)
def test_no_pairs_says_what_would_give_some(build_dpo, make_episode, rewards, text):
    episodes = [make_episode(task, f"answer {n}", reward) for n, (task, reward) in enumerate(rewards)]
    ledger = Ledger()
    assert build_dpo(episodes, _options(), ledger) == []
    groups = [[episode.reward for episode in group] for group in by_task(episodes).values()]
    assert text in str(nothing_to_pair(groups, _options(), ledger))


def test_stratified_without_strata_says_which_thresholds_would_do(make_episode):
    options = _options(strategy="stratified")
    error = nothing_to_pair([[0.6, 0.3], [0.5, 0.5]], options, Ledger())
    assert "no task has rewards both from 0.7 up and from 0.4 down" in str(error)
    assert "--high-threshold 0.6 --low-threshold 0.3 would give pairs, or pair --across-tasks" in str(error)


def test_pairs_across_tasks_say_so_and_count_who_stays_alone(built, make_episode):
    episodes = [
        make_episode("a", "good", 1.0),
        make_episode("a", "fine", 0.9),
        make_episode("b", "bad", 0.1, num_sequences=0, num_sampled=0),
    ]
    examples, buckets, ledger = built(episodes, strategy="stratified", across_tasks=True, validation_fraction=0)
    (example,) = examples
    assert (example.task_id, example.other_task_id) == ("a", "b")
    assert example.row["context"] == [{"role": "user", "content": "question of a"}]
    assert example.row["completions"][1]["completion"] == [{"role": "assistant", "content": "bad"}]
    assert "chosen_tokens" not in example.row
    assert sorted(buckets) == ["no_partner", "trained", "trained"]
    assert buckets[2] == "trained"
    assert ledger.close(3, 2).uses["pairs_across_tasks"] == 1


def test_rows_record_how_much_both_sides_share(built, make_episode):
    start = [{"role": "assistant", "content": "look"}, {"role": "user", "content": "a door"}]
    episodes = [
        make_episode("a", completion=[*start, {"role": "assistant", "content": word}], reward=reward)
        for word, reward in (("open", 1.0), ("leave", 0.0))
    ]
    (example,) = built(episodes, strategy="branches")[0]
    assert example.row["shared_messages"] == example.record.shared_messages == 3
    assert example.row["chosen_characters"] == len("look") + len("open")


def test_flat_spelling_reaches_both_sides(built, make_episode):
    def answer(arguments):
        call = {"id": "k", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return [{"role": "assistant", "content": "", "tool_calls": [call]}]

    episodes = [
        make_episode("a", completion=answer('{"x": 1}'), reward=1.0, tools=[TOOL]),
        make_episode("a", completion=answer("{x"), reward=0.0, tools=[TOOL]),
    ]
    (example,) = built(episodes, spelling="nemo_rl")[0]
    chosen, rejected = (side["completion"][0]["tool_calls"] for side in example.row["completions"])
    assert (chosen, rejected[0]["arguments"]) == ([{"id": "k", "name": "f", "arguments": {"x": 1}}], "{x")
    assert example.row["tools"] == [TOOL["function"]]
