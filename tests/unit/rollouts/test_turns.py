import pytest

from regimen.errors import RolloutError
from regimen.rollouts.turns import TokenSequence, Turn, sequences_of, turns_of


def item(prompt, sampled, logprobs):
    return {"prompt_token_ids": prompt, "generation_token_ids": sampled, "generation_log_probs": logprobs}


def test_no_token_ids_no_turns():
    assert turns_of([{"type": "message"}, {"prompt_token_ids": None, "generation_token_ids": None}]) == []


def test_turns_in_order_with_integer_logprobs_as_floats():
    output = [
        {"type": "reasoning"},
        item([1], [2, 3], [-0.5, 0]),
        {"type": "function_call_output"},
        item([1], [4], [-1]),
    ]
    assert turns_of(output) == [Turn([1], [2, 3], [-0.5, 0.0]), Turn([1], [4], [-1.0])]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"prompt_token_ids": [1], "generation_token_ids": [2]}, "not generation_log_probs"),
        ({"generation_log_probs": [-0.1]}, "but not generation_token_ids, prompt_token_ids"),
        (item([1], [2, 3], [-0.1]), "2 sampled ids but 1 log-probabilities"),
        (item("1", [2], [-0.1]), "prompt_token_ids is not a list of numbers"),
        (item([1], [2.5], [-0.1]), "generation_token_ids is not a list of numbers"),
        (item([True], [2], [-0.1]), "prompt_token_ids is not a list of numbers"),
        (item([1], [2], [float("nan")]), "not finite"),
        (item([1], [2], [10**400]), "not finite"),
        (item([1], [2], [float("-inf")]), "not finite"),
    ],
)
def test_broken_token_fields(broken, said):
    with pytest.raises(RolloutError, match=said) as caught:
        turns_of([{"type": "message"}, broken])
    assert caught.value.where == "output[1]"


def test_turns_that_continue_become_one_sequence():
    turns = [Turn([1, 2], [3, 4], [-0.1, -0.2]), Turn([1, 2, 3, 4, 5], [6], [-0.3])]
    assert sequences_of(turns) == [TokenSequence([1, 2, 3, 4, 5, 6], [(2, 4), (5, 6)], [-0.1, -0.2, -0.3])]


def test_a_prompt_without_new_tokens_continues_too():
    assert sequences_of([Turn([1], [2], [-0.1]), Turn([1, 2], [3], [-0.2])]) == [
        TokenSequence([1, 2, 3], [(1, 2), (2, 3)], [-0.1, -0.2])
    ]


@pytest.mark.parametrize("second", [[1, 9, 3], [1], [9]])
def test_a_turn_that_does_not_continue_starts_a_new_sequence(second):
    turns = [Turn([1], [2], [-0.1]), Turn(second, [4, 5], [-0.2, -0.3])]
    start = len(second)
    assert sequences_of(turns) == [
        TokenSequence([1, 2], [(1, 2)], [-0.1]),
        TokenSequence([*second, 4, 5], [(start, start + 2)], [-0.2, -0.3]),
    ]


def test_no_sampled_token_is_lost():
    turns = [
        Turn([1], [2, 3], [0, 0]),
        Turn([1, 2, 3, 4], [5], [0]),
        Turn([7], [8, 9], [0, 0]),
        Turn([7, 8, 9], [1], [0]),
    ]
    assert sum(sequence.num_trained for sequence in sequences_of(turns)) == 6
    assert sequences_of([]) == []
