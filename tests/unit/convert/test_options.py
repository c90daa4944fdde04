import pytest

from regimen.convert.options import ConvertOptions, check_for_target, parse_mix, with_reasoning
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
        ({"strategy": "every"}, "--strategy"),
        ({"spelling": "french"}, "--spelling"),
        ({"where": "accuracy >"}, "--where"),
        ({"balance": 0.5}, "--balance"),
        ({"high_threshold": float("inf")}, "--high-threshold"),
        ({"low_threshold": 0.7}, "--low-threshold"),
        ({"mix": {}}, "--mix"),
        ({"mix": {"a": 0.0}}, "--mix"),
        ({"against_similarity": 0.0}, "--against-similarity"),
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
        ("dpo", {"balance": 2.0}, "--balance"),
        ("grpo", {"spelling": "nemo_rl"}, "--spelling"),
        ("sft", {"format": "simple", "spelling": "nemo_rl"}, "--spelling"),
        ("sft", {"mix": {"a": 1.0}}, "--mix"),
        ("sft", {"with_pass_rate": True}, "--with-pass-rate"),
        ("sft", {"strategy": "halves"}, "--strategy"),
        ("dpo", {"high_threshold": 0.8}, "--high-threshold"),
        ("dpo", {"strategy": "halves", "low_threshold": 0.1}, "--low-threshold"),
        ("dpo", {"strategy": "halves", "across_tasks": True}, "--across-tasks"),
        ("dpo", {"max_pairs_per_task": 3}, "--max-pairs-per-task"),
        ("grpo", {"upsample": True}, "--upsample"),
        ("sft", {"against_similarity": 0.5}, "--against-similarity"),
    ],
)
def test_an_option_without_meaning_for_the_target_is_refused(to, changes, flag):
    with pytest.raises(UsageError) as caught:
        check_for_target(ConvertOptions(**changes), to)
    assert caught.value.where == flag


def test_options_of_their_own_target_pass():
    check_for_target(ConvertOptions(min_gap=0.5, strategy="all_pairs", format="binary"), "dpo")
    stratified = ConvertOptions(strategy="stratified", across_tasks=True, low_threshold=0.1, max_pairs_per_task=3)
    check_for_target(stratified, "dpo")
    check_for_target(ConvertOptions(mix={"a": 1.0}, upsample=True, where="a>1", with_pass_rate=True), "grpo")
    check_for_target(ConvertOptions(balance=1.0, spelling="nemo_rl", against="e", against_similarity=0.5), "sft")
    check_for_target(ConvertOptions(reward_threshold=0.5, require_tool_use=True, format="simple"), "sft")


def test_reasoning_auto_is_text_where_rows_hold_strings():
    assert with_reasoning(ConvertOptions(), "simple").reasoning == "inline"
    assert with_reasoning(ConvertOptions(), "openai").reasoning == "reasoning_content"
    assert with_reasoning(ConvertOptions(reasoning="drop"), "openai").reasoning == "drop"


def test_a_mixture_is_weights_by_environment():
    assert parse_mix("calculator=2, mcqa=.5") == {"calculator": 2.0, "mcqa": 0.5}
    for text in ("", "calculator", "a=1,a=2", "a=x", "=1", "a=1,"):
        with pytest.raises(UsageError, match="such as calculator=2,mcqa=1"):
            parse_mix(text)
