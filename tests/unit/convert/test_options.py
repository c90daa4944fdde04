import pytest

from regimen.convert.options import ConvertOptions, check_for_target, with_reasoning
from regimen.errors import UsageError


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"reward_threshold": float("nan")}, "--reward-threshold"),
        ({"min_gap": -0.1}, "--min-gap"),
        ({"min_pass_rate": 1.5}, "--min-pass-rate"),
        ({"min_pass_rate": 0.8, "max_pass_rate": 0.2}, "--min-pass-rate"),
        ({"validation_fraction": 1.0}, "--validation-fraction"),
        ({"max_per_task": 0}, "--max-per-task"),
        ({"min_turns": 0}, "--min-turns"),
        ({"max_bad": -1.0}, "--max-bad"),
        ({"reasoning": "shout"}, "--reasoning"),
        ({"strategy": "stratified"}, "--strategy"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_flag(changes, flag):
    with pytest.raises(UsageError) as caught:
        ConvertOptions(**changes)
    assert caught.value.where == flag


@pytest.mark.parametrize(
    "to, changes, flag",
    [
        ("grpo", {"min_gap": 0.5}, "--min-gap"),
        ("sft", {"max_pass_rate": 0.5}, "--max-pass-rate"),
        ("dpo", {"reward_threshold": 0.5}, "--reward-threshold"),
        ("grpo", {"reasoning": "drop"}, "--reasoning"),
        ("sft", {"format": "binary"}, "--format"),
        ("sft", {"format": "simple", "reasoning": "reasoning_content"}, "--reasoning"),
        ("rlhf", {}, "--to"),
    ],
)
def test_an_option_without_meaning_for_the_target_is_refused(to, changes, flag):
    with pytest.raises(UsageError) as caught:
        check_for_target(ConvertOptions(**changes), to)
    assert caught.value.where == flag


def test_options_of_their_own_target_pass():
    check_for_target(ConvertOptions(min_gap=0.5, strategy="all_pairs", format="binary"), "dpo")
    check_for_target(ConvertOptions(reward_threshold=0.5, require_tool_use=True, format="simple"), "sft")


def test_reasoning_auto_is_text_where_rows_hold_strings():
    assert with_reasoning(ConvertOptions(), "simple").reasoning == "inline"
    assert with_reasoning(ConvertOptions(), "openai").reasoning == "reasoning_content"
    assert with_reasoning(ConvertOptions(reasoning="drop"), "openai").reasoning == "drop"
