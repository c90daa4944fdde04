"""When an answer stands in its prompt, and when only the same characters do."""

import pytest

from regimen.diagnosis.leaks import answers_of, holds_truth, is_leaked, prompt_text


@pytest.mark.parametrize(
    ("answer", "prompt", "leaked"),
    [
        ("Nairobi", "What is the capital of Kenya? (Nairobi)", True),
        ("Nairobi", "What is the capital of Kenya?", False),
        ("art", "Name a part of a cart.", False),  # inside other words only
        ("Nairobi", "Which?\nA) Nairobi\nB) Lagos", False),  # an option, not a leak
        ("17", "What is 17 + 4?", False),
        (17, "What is 17 + 4?", False),
        ("21", "What is 17 + 4? The answer is 21.", True),
        (21.0, "What is 17 + 4? Answer: **21**", True),
        ("12", "Give the answer: 12 * 3", False),
        ("3.5", "Numbers: 3.5, 7", False),
        ("3", "The answer is 3.5 at most.", False),
        ("B", "Pick A or B.", False),
        ("B", "The answer is (B).", True),
        ("C++ (17)", "Use C++ (17) please", True),
        (True, "True or false?", False),
        (["x"], "x", False),
        ("", "anything", False),
    ],
)
def test_leaks(answer, prompt, leaked):
    assert is_leaked([answer], {"input": prompt}) is leaked


def test_all_of_what_was_asked_is_searched_and_examples_are_not():
    params = {
        "instructions": "one",
        "input": [
            {"role": "system", "content": "two"},
            {"role": "user", "content": [{"type": "input_text", "text": "three"}]},
            {"role": "assistant", "content": "four"},
            {"role": "user", "content": [{"type": "input_image", "image_url": "x"}]},
        ],
    }
    text = prompt_text(params)
    assert [word in text for word in ("one", "two", "three", "four")] == [True, True, True, False]


def test_answers_are_found_where_people_keep_them():
    assert answers_of({"answer": 1}, {"expected_words": "2", "reward": 9}, {"metadata": {"ground_truth": 3}}) == [
        "2",
        1,
        3,
    ]
    assert answers_of(None, {"answer": None}, {}) == []
    assert holds_truth({"options": ["a"]})
    assert not holds_truth({"id": 1, "_ng_task_index": 0, "responses_create_params": {}})
    assert not holds_truth(None)
