import numpy as np
import pytest

from regimen.convert.ledger import Ledger
from regimen.convert.options import ConvertOptions
from regimen.convert.sft import nothing_to_train, reward_threshold

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def _options(**changes):
    return ConvertOptions(**({"format": "openai", "reward_threshold": 1.0, "reasoning": "reasoning_content"} | changes))


def _buckets(ledger, episodes):
    return [ledger.bucket_of(episode.key) for episode in episodes]


def test_the_threshold_depends_on_the_rewards_unless_given():
    assert reward_threshold([np.array([0.0, 1.0]), np.array([1.0])], None) == 1.0
    assert reward_threshold([np.array([0.0, 1.0]), np.array([0.5])], None) == 0.95
    assert reward_threshold([np.array([0.0, 1.0])], 0.3) == 0.3


def test_a_row_holds_prompt_completion_and_tools(build_sft, make_episode):
    episode = make_episode(
        tools=[TOOL],
        prompt=[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        completion=[{"role": "assistant", "content": "", "tool_calls": [CALL]}],
    )
    (example,) = build_sft([episode], _options(), Ledger())
    assert example.row == {"messages": [*episode.prompt, *episode.completion], "tools": [TOOL]}
    assert example.record.num_prompt_messages == 2
    assert example.record.sequences == episode.sequences
    assert example.keys == [("rollouts.jsonl", 1)]


def test_tools_are_left_out_where_there_are_none(build_sft, make_episode):
    (example,) = build_sft([make_episode()], _options(), Ledger())
    assert list(example.row) == ["messages"]


def test_each_filter_has_its_bucket(build_sft, make_episode):
    with_call = [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "1"}]
    answer = {"role": "assistant", "content": "yes"}
    episodes = [
        make_episode("a", completion=[*with_call, answer]),
        make_episode("b", reward=0.5),
        make_episode("c", completion=[]),
        make_episode("d", "no tool"),
        make_episode("e", completion=with_call),
    ]
    ledger = Ledger()
    examples = build_sft(episodes, _options(require_tool_use=True, min_turns=2), ledger)
    assert [example.task_id for example in examples] == ["a"]
    assert _buckets(ledger, episodes) == [
        None,
        "below_threshold",
        "no_assistant_message",
        "no_tool_use",
        "too_few_turns",
    ]


def test_duplicates_are_counted_within_a_task_only_and_the_best_stays(build_sft, make_episode):
    episodes = [make_episode("a", reward=1.0), make_episode("a", reward=2.0), make_episode("b")]
    ledger = Ledger()
    examples = build_sft(episodes, _options(), ledger)
    assert [example.keys[0][1] for example in examples] == [2, 3]
    assert _buckets(ledger, episodes) == ["duplicate", None, None]


def test_of_duplicates_the_one_with_token_ids_stays(build_sft, make_episode):
    episodes = [make_episode("a", num_sequences=0), make_episode("a")]
    (example,) = build_sft(episodes, _options(), Ledger())
    assert example.keys == [("rollouts.jsonl", 2)]


def test_the_cap_keeps_the_best_of_each_task(build_sft, make_episode):
    episodes = [make_episode("a", text, reward) for text, reward in (("x", 1.0), ("y", 3.0), ("z", 2.0))]
    ledger = Ledger()
    examples = build_sft(episodes, _options(max_per_task=2), ledger)
    assert [example.record.reward for example in examples] == [3.0, 2.0]
    assert _buckets(ledger, episodes) == ["capped", None, None]


def test_of_equally_rewarded_answers_the_shorter_stays(build_sft, make_episode):
    episodes = [make_episode("a", text) for text in ("longer", "long", "short")]
    ledger = Ledger()
    examples = build_sft(episodes, _options(max_per_task=1), ledger)
    assert [example.row["messages"][1]["content"] for example in examples] == ["long"]
    assert _buckets(ledger, episodes) == ["capped", None, "capped"]


def test_environments_are_balanced_by_their_best_rows(build_sft, make_episode):
    few = [make_episode("few/0", environment="few")]
    many = [make_episode("many/0", text, reward, environment="many") for text, reward in (("x", 1), ("y", 3), ("z", 2))]
    ledger = Ledger()
    examples = build_sft([*few, *many], _options(balance=2.0), ledger)
    assert [(example.environment, example.record.reward) for example in examples] == [
        ("few", 1.0),
        ("many", 3),
        ("many", 2),
    ]
    assert _buckets(ledger, many) == ["balanced", None, None]


def test_the_flat_spelling(build_sft, make_episode):
    episode = make_episode(tools=[TOOL], completion=[{"role": "assistant", "content": "", "tool_calls": [CALL]}])
    (example,) = build_sft([episode], _options(spelling="nemo_rl"), Ledger())
    assert example.row["messages"][1]["tool_calls"] == [{"id": "a", "name": "f", "arguments": {}}]
    assert example.row["tools"] == [{"name": "f", "parameters": {}}]


def test_images_and_refusals_are_not_simple(build_sft, make_episode):
    image = [{"type": "image_url", "image_url": {"url": "https://a"}}]
    episodes = [
        make_episode("a", prompt=[{"role": "user", "content": image}]),
        make_episode("b", completion=[{"role": "assistant", "content": "", "refusal": "no"}]),
        make_episode("c", completion=[{"role": "assistant", "content": image}]),
    ]
    ledger = Ledger()
    assert build_sft(episodes, _options(format="simple", reasoning="inline"), ledger) == []
    assert _buckets(ledger, episodes) == ["not_simple"] * 3


def test_what_messages_hold_is_noted(build_sft, make_episode):
    image = [{"type": "image_url", "image_url": {"url": "https://a"}}]
    episodes = [
        make_episode("a", reasoning_characters=7, num_hidden_reasoning=2),
        make_episode("b", reasoning_characters=5, prompt=[{"role": "user", "content": image}]),
        make_episode("c", completion=[{"role": "assistant", "content": "", "refusal": "no"}], num_developer_messages=1),
    ]
    ledger = Ledger()
    build_sft(episodes, _options(reasoning="drop"), ledger)
    ledger.count_many("trained", 3)
    assert ledger.close(3, 0).notes == {
        "reasoning_characters_dropped": 12,
        "rows_with_developer_messages": 1,
        "rows_with_hidden_reasoning": 1,
        "rows_with_images": 1,
        "rows_with_reasoning_dropped": 2,
        "rows_with_refusals": 1,
    }


def test_simple_rows_are_strings_and_refuse_what_strings_cannot_say(build_sft, make_episode):
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    thinking = [{"role": "assistant", "content": "yes", "reasoning_content": "Hm."}]
    episodes = [
        make_episode("a", completion=thinking),
        make_episode("b", prompt=system),
        make_episode("c", tools=[TOOL]),
        make_episode("d", completion=[*thinking, {"role": "user", "content": "?"}, *thinking]),
    ]
    ledger = Ledger()
    examples = build_sft(episodes, _options(format="simple", reasoning="inline"), ledger)
    assert [example.row for example in examples] == [
        {"input": "question of a", "output": "<think>\nHm.\n</think>\n\nyes"}
    ]
    assert _buckets(ledger, episodes) == [None, "not_simple", "not_simple", "not_simple"]


def test_simple_keeps_an_answer_that_an_observation_follows(build_sft, make_episode):
    episode = make_episode(
        completion=[{"role": "assistant", "content": "yes"}, {"role": "user", "content": "The game is over."}]
    )
    (example,) = build_sft([episode], _options(format="simple", reasoning="inline"), Ledger())
    assert example.row == {"input": "question of t", "output": "yes"}


def test_dropped_reasoning_takes_the_token_ids_and_says_so(build_sft, make_episode):
    episode = make_episode(completion=[{"role": "assistant", "content": "yes", "reasoning_content": "Hm."}])
    ledger = Ledger()
    (example,) = build_sft([episode], _options(reasoning="drop"), ledger)
    assert example.record.sequences == []
    ledger.count(episode.key, "trained", 2)
    assert ledger.close(1, 2).notes == {"rows_without_token_ids": 1, "token_ids_dropped_with_reasoning": 1}


@pytest.mark.parametrize(
    "rewards, text",
    [
        ([0.2, 0.8, 0.8], "no rollout reaches the reward threshold 1: 3 rewards from 0.2 to 0.8, mean 0.6; "
         "to fix: --reward-threshold 0.8 would keep 2"),
        ([], "no scored rollout is left to train on; to fix: look at the failures, and at the filters"),
    ],
)  # fmt: skip
def test_nothing_left_says_what_would_leave_some(build_sft, make_episode, rewards, text):
    episodes = [make_episode(reward=reward) for reward in rewards]
    ledger = Ledger()
    assert build_sft(episodes, _options(), ledger) == []
    assert str(nothing_to_train(rewards, _options(), ledger)) == text


def test_nothing_left_names_the_filters(build_sft, make_episode):
    episodes, ledger = [make_episode(), make_episode(reward=0.0)], Ledger()
    options = _options(require_tool_use=True)
    build_sft(episodes, options, ledger)
    assert "1 rollouts reach the reward threshold 1 but none passes the other filters (no_tool_use 1)" in str(
        nothing_to_train([1.0, 0.0], options, ledger)
    )
