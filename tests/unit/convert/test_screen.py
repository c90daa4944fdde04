import pytest

from regimen.convert.near import Evaluation
from regimen.convert.options import ConvertOptions
from regimen.convert.screen import EXAMPLES_KEPT, Screen
from regimen.errors import ConvertError
from regimen.rollouts.records import Source, rollout_from_row


def _rollout(prompt, task=0, **fields):
    row = {"responses_create_params": {"input": prompt}, "output": [], "reward": 1.0, "_ng_task_index": task, **fields}
    return rollout_from_row(row, Source("r", 1))


def _evaluation(*texts):
    return Evaluation(iter(enumerate(texts, start=1)), 0.8)


def test_a_rollout_that_meets_the_condition_passes():
    screen = Screen(ConvertOptions(where="accuracy>0.5 and score>0"))
    rollouts = [_rollout("q", accuracy=0.9, score=1), _rollout("q", accuracy=0.1, score=1), _rollout("q", score=1)]
    assert [screen.bucket_of(rollout) for rollout in rollouts] == [None, "where", "where"]
    assert screen.finish().missing_fields == {"accuracy": 1}


def test_a_field_that_no_row_has_is_an_error():
    screen = Screen(ConvertOptions(where="acuracy>0.5"))
    screen.bucket_of(_rollout("q", accuracy=0.9))
    with pytest.raises(ConvertError, match=r"acuracy.*did you mean 'accuracy'"):
        screen.finish()


def test_prompts_of_the_evaluation_are_kept_out_first_and_shown():
    screen = Screen(ConvertOptions(where="accuracy>0.5"), _evaluation("one", "two"))
    rollouts = [_rollout("ONE", accuracy=0.1), _rollout("three", accuracy=0.9), _rollout("two", 5, accuracy=0.9)]
    assert [screen.bucket_of(rollout) for rollout in rollouts * 2] == ["contaminated", None, "contaminated"] * 2
    found = screen.finish()
    assert (found.evaluation_prompts, found.exact_rows, found.near_rows) == (2, 4, 0)
    assert [(example.task_id, example.evaluation_line) for example in found.examples] == [("task/0", 1), ("task/5", 2)]


def test_screens_over_parts_add_up():
    evaluation, options = _evaluation("one"), ConvertOptions(where="accuracy>0.5")
    first, second = Screen(options, evaluation), Screen(options, evaluation)
    for index in range(EXAMPLES_KEPT):
        first.bucket_of(_rollout("one", index))
        second.bucket_of(_rollout("one", index + 5, accuracy=1))
    first.add(second)
    found = first.finish()
    assert (found.exact_rows, len(found.examples)) == (2 * EXAMPLES_KEPT, EXAMPLES_KEPT)
    assert found.missing_fields == {"accuracy": EXAMPLES_KEPT}
