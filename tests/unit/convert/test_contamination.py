import json
import random

import pytest

from regimen.convert.contamination import contaminated, prompt_of_row
from regimen.convert.near import Evaluation, read_evaluation, signature, words_of
from regimen.errors import ConvertError, UsageError

SYSTEM, ANSWER = {"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}
WORDS = [f"word{index}" for index in range(5000)]


def _text(seed, size=200):
    return random.Random(seed).choices(WORDS, k=size)


def _jaccard(one, other):
    sets = [{tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def _evaluation(*texts, similarity=0.8):
    return Evaluation(iter(enumerate(texts, start=1)), similarity)


def test_the_estimate_is_near_the_overlap():
    for seed in range(20):
        one = _text(seed)
        other = [*one[: 10 * seed], *_text(seed + 1000, 200 - 10 * seed)]
        estimate = float((signature(one) == signature(other)).mean())
        # The standard error of 128 draws is at most 0.045.
        assert abs(estimate - _jaccard(one, other)) < 0.16


def test_the_estimate_is_right_on_average():
    one = _text(0)
    errors = []
    for seed in range(1, 60):
        other = [*one[:130], *_text(seed, 70)]
        errors.append(float((signature(one) == signature(other)).mean()) - _jaccard(one, other))
    assert abs(sum(errors) / len(errors)) < 0.03


def test_exact_is_of_words_whatever_their_case_and_spaces():
    found = _evaluation("What is 2 + 2?", "Other").find("  what IS 2 +\n2?")
    assert (found.kind, found.similarity, found.line) == ("exact", 1.0, 1)
    assert _evaluation("ﬁne １").find("fine 1").kind == "exact"
    # Signs are words: these are three questions.
    assert _evaluation("What is 2 + 2?", "What is 2 - 2?").find("What is 2 * 2?") is None
    assert words_of("x+1, y") == ["x", "+", "1", ",", "y"]


def test_near_prompts_are_found_among_many_and_others_are_not():
    texts = [" ".join(_text(seed)) for seed in range(300)]
    evaluation = _evaluation(*texts)
    for seed in range(0, 300, 10):
        words = _text(seed)
        words[100] = "changed"  # 5 of 196 sequences change: 191 / 201 are shared
        found = evaluation.find(" ".join(words))
        assert (found.kind, found.line) == ("near", seed + 1)
        assert abs(found.similarity - 0.95) < 0.1
    assert [evaluation.find(" ".join(_text(seed))) for seed in range(1000, 1100)] == [None] * 100


def test_the_threshold_decides():
    one = _text(0)
    half = " ".join([*one[:150], *_text(1, 50)])  # 146 of 246 shared
    assert _evaluation(" ".join(one), similarity=0.8).find(half) is None
    assert _evaluation(" ".join(one), similarity=0.4).find(half).kind == "near"


@pytest.mark.parametrize(
    "row, text",
    [
        ({"responses_create_params": {"input": "q"}}, "q"),
        ({"responses_create_params": {"input": [SYSTEM, {"role": "user", "content": "q"}]}}, "q"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]}, "q"),
        ({"context": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "a\nb"),
        ({"prompt": "q"}, "q"),
        ({"input": "q", "output": "a"}, "q"),
        ({"problem": "q"}, "q"),
        ({"responses_create_params": {"input": [SYSTEM]}}, "s"),
        ({"answer": "a"}, None),
        ({"messages": [{"role": "user", "content": 7}]}, None),
    ],
)
def test_the_prompt_of_a_row_of_any_shape(row, text):
    assert prompt_of_row(row) == text


def test_an_evaluation_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    path.write_text('{"prompt": "one"}\n\n{"input": "two"}\n{"input": "TWO"}\n')
    evaluation = read_evaluation(path, 0.8)
    assert evaluation.lines == [1, 3]
    assert evaluation.find("two").line == 3


@pytest.mark.parametrize(
    "text, error, said",
    [
        ("", ConvertError, "holds no prompts"),
        ('{"prompt": "q"}\nnot json\n', ConvertError, r"evaluation\.jsonl:2: not JSON"),
        ('{"prompt": "q"}\n{"answer": 1}\n', ConvertError, r"evaluation\.jsonl:2: holds no prompt; expected responses"),
        ("[1]\n", ConvertError, r"evaluation\.jsonl:1: holds no prompt"),
        (None, UsageError, "no such file"),
    ],
)
def test_what_is_no_evaluation_file_is_refused(tmp_path, text, error, said):
    path = tmp_path / "evaluation.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=said):
        read_evaluation(path, 0.8)


def test_an_example_is_short():
    match = _evaluation("q").find("q")
    shown = contaminated("t", "q" * 500, match)
    assert (len(shown.prompt), shown.evaluation_line, shown.task_id) == (100, 1, "t")
    assert json.loads(json.dumps(shown.prompt)).endswith("…")
