import msgspec

from regimen.convert.episodes import (
    episode_of,
    in_task_order,
    num_invalid_arguments,
    text_key,
    text_keys,
    with_numbered_calls,
    with_reasoning,
    without_trailing_observations,
)
from regimen.rollouts.reader import read_rollouts


def _call(call_id, arguments="{}"):
    return {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}


def _tool_episode(make_episode, call_id="a", arguments="{}"):
    return make_episode(
        completion=[
            {"role": "assistant", "content": "", "tool_calls": [_call(call_id, arguments)]},
            {"role": "tool", "tool_call_id": call_id, "name": "f", "content": "1"},
            {"role": "assistant", "content": "one", "reasoning_content": "It is one."},
        ]
    )


def test_everything_of_a_row_arrives(calculator):
    rollouts = {(r.task_index, r.rollout_index): r for r in read_rollouts(calculator)}
    episode = episode_of(rollouts[0, 0])
    assert episode.prompt == [
        {"role": "system", "content": "Use the calculator."},
        {"role": "user", "content": "What is 47 × 23?"},
    ]
    assert [message["role"] for message in episode.completion] == ["assistant", "tool", "assistant"]
    assert episode.completion[0]["reasoning_content"] == "Multiply."
    assert episode.completion[0]["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "47*23"}'}}
    ]
    assert episode.completion[1]["tool_call_id"] == "c1"
    assert episode.tools[0]["function"]["parameters"]["required"] == ["expression"]
    assert episode.sequences[0].ids == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert episode.sequences[0].spans == [(3, 5), (7, 10)]
    assert (episode.num_sampled, episode.num_turns) == (5, 2)
    parallel = episode_of(rollouts[0, 2])
    assert [call["id"] for call in parallel.completion[0]["tool_calls"]] == ["a", "b"]
    assert parallel.prompt_key == episode.prompt_key != episode_of(rollouts[1, 0]).prompt_key


def test_call_ids_count_only_by_their_order(make_episode):
    one, two = _tool_episode(make_episode, "a"), _tool_episode(make_episode, "b")
    assert one.completion != two.completion
    assert text_key(one.completion) == text_key(two.completion)
    assert text_key(one.completion) != text_key(_tool_episode(make_episode, "a", '{"x": 1}').completion)
    calls = [_call("x"), _call("y", "{ }")]
    quiet = [make_episode(completion=[{"role": "assistant", "content": "", "tool_calls": [call]}]) for call in calls]
    keys = text_keys([episode.completion for episode in (one, two, *quiet)])
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert with_numbered_calls(one.completion)[1]["tool_call_id"] == "0"


def test_reasoning_inline_keeps_the_ids_and_drop_takes_them(make_episode):
    episode = _tool_episode(make_episode)
    assert with_reasoning(episode, "reasoning_content") is episode
    inline = with_reasoning(episode, "inline")
    assert inline.completion[2] == {"role": "assistant", "content": "<think>\nIt is one.\n</think>\n\none"}
    assert inline.sequences == episode.sequences
    dropped = with_reasoning(episode, "drop")
    assert dropped.completion[2] == {"role": "assistant", "content": "one"}
    assert dropped.sequences == []
    plain = make_episode()
    assert with_reasoning(plain, "drop") is plain


def test_an_episode_ends_with_the_models_last_message(make_episode):
    episode = make_episode()
    assert without_trailing_observations(episode) is episode
    longer = msgspec.structs.replace(episode, completion=[*episode.completion, {"role": "user", "content": "Thanks."}])
    assert without_trailing_observations(longer).completion == episode.completion


def test_invalid_arguments_are_counted_and_kept(make_episode):
    for arguments, expected in (('{"x": 1}', 0), ("{x: 1}", 1), ("[1]", 1), ("", 1)):
        episode = _tool_episode(make_episode, arguments=arguments)
        assert num_invalid_arguments(episode.completion) == expected
        assert episode.tool_calls[0]["function"]["arguments"] == arguments


def test_rows_stand_in_task_order(make_episode):
    late = make_episode(task_index=10, rollout_index=0)
    second = make_episode(task_index=2, rollout_index=1)
    first = make_episode(task_index=2, rollout_index=0)
    assert in_task_order([late, second, first]) == [first, second, late]
