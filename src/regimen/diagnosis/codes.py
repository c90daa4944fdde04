"""Every problem that is looked for: its code, how grave it is, and what to do about it.

`docs/diagnosis.md` has a section for each code. An error makes training pointless or impossible, a warning costs
quality, a note is good to know. A check may give a finding another severity or a fix with figures in it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")


class Code(NamedTuple):
    """How grave a problem is, and its fix."""

    severity: Severity
    fix: str


# What can be seen in rollouts.
ROLLOUT_CODES: dict[str, Code] = {
    "bad_rows": Code("warning", "mend the writer or the rows"),
    "logprobs_not_finite": Code(
        "warning", "find out why the sampler wrote NaN or infinity (its precision, a top-p cut) and collect again"
    ),
    "no_rewards": Code("error", "see the outcomes: mend what failed, collect again"),
    "rewards_all_zero": Code(
        "error", "give the verifier an answer known to be right; if it scores 1, use easier tasks or a better prompt"
    ),
    "rewards_all_equal": Code(
        "error", "give the verifier an answer known to be wrong; if it scores lower, use harder tasks or a higher"
        " temperature"
    ),
    "constant_verifier": Code(
        "warning", "show those verifiers a right and a wrong answer; leave them out until they tell them apart"
    ),
    "reward_out_of_range": Code(
        "warning", "scale them (grpo.reward_scaling), and give thresholds in the verifier's own range"
    ),
    "rewards_narrow": Code("warning", "make the verifier tell better from worse answers"),
    "success_low": Code(
        "warning", "use easier tasks, a better prompt or a stronger model, and see that the verifier is not too strict"
    ),
    "success_high": Code("note", "imitate the passing rows (SFT), or use harder tasks for reinforcement learning"),
    "no_group_variance": Code(
        "warning", "raise the temperature, collect more repeats, choose tasks neither too easy nor too hard"
    ),
    "single_repeats": Code("note", "collect 4 or more rollouts per task for DPO; GRPO repeats each task itself"),
    "no_pairs": Code("note", "collect more repeats at a higher temperature, or lower --min-gap"),
    "few_rollouts": Code("note", "collect more before choosing a plan"),
    "few_rows_for_sft": Code("note", "collect more tasks, or more repeats of those that pass"),
    "environment_small": Code("note", "collect more of those environments, so that the mix does not drown them"),
    "truncated": Code("warning", "raise max_output_tokens, or ask for shorter answers"),
    "many_failures": Code("warning", "see the outcomes; mend the environment or the verifier first"),
    "failure_as_zero": Code(
        "warning", "convert with Regimen, which keeps failures out of rewards, or collect those tasks again"
    ),
    "duplicate_rows": Code(
        "warning", "remove the repeats: they count twice in pass rates and baselines (files of two collections?)"
    ),
    "task_with_several_prompts": Code(
        "warning", "inspect files of different collections apart: their task indices mean different tasks"
    ),
    "empty_answers": Code(
        "warning", "raise max_output_tokens, and see whether the reasoning used it up or the stop token came first"
    ),
    "repeated_answers": Code(
        "warning", "collect with a higher temperature (0.7 to 1.0): equal answers give equal rewards"
    ),
    "same_answer_everywhere": Code(
        "warning", "read it: the model ignores its prompt, or the prompt lacks the question"
    ),
    "malformed_arguments": Code(
        "warning", "keep them as failures for GRPO and DPO; do not imitate them (SFT on passing rows leaves most out)"
    ),
    "tools_missing": Code(
        "warning", "put `tools` into responses_create_params: the model cannot learn to use what it is not shown"
    ),
    "tool_schemas_differ": Code(
        "warning", "give each tool one schema, or the tools different names: a model learns one meaning per name"
    ),
    "arguments_keys_differ": Code(
        "note", "write arguments as JSON text: loaders that give all rows one type fill the missing keys with null"
    ),
    "no_ground_truth": Code(
        "note", "for GRPO keep X_materialized_inputs.jsonl beside X.jsonl, or pass it with --tasks"
    ),
    "leaked_answer": Code(
        "warning", "take the answer out of the prompt, unless the task is to find it there"
    ),
    "tokens_do_not_continue": Code(
        "warning", "such an episode trains as several sequences; let the model server keep token ids across turns"
    ),
}  # fmt: skip

# What needs a tokenizer, a template or a length.
TOKEN_CODES: dict[str, Code] = {
    "template_drops_tools": Code(
        "error", "set policy.tokenizer.chat_template=tools (--chat-template tools), or a template that knows tools"
    ),
    "template_drops_tool_calls": Code(
        "error", "set policy.tokenizer.chat_template=tools (--chat-template tools), or a template that writes them"
    ),
    "template_rewrites_history": Code(
        "warning",
        "set chat_template_kwargs or another template so that history is kept; else such rows train in pieces",
    ),
    "template_failed": Code("error", "set policy.tokenizer.chat_template to a template that takes these roles"),
    "over_length": Code("warning", "raise policy.max_total_sequence_length, or leave those rows out"),
    "nothing_to_train": Code("warning", "remove the rows: they hold no word of the assistant after the prompt"),
    "double_bos": Code(
        "warning", "let either the template or the tokenizer write the first token, not both (add_special_tokens=False)"
    ),
    "missing_stop": Code(
        "warning", "keep the stop token in the sampled ids (and in the template), or the model never learns to end"
    ),
    "retokenised_ids_differ": Code("note", "train on the sampled ids, as Regimen does, not on their text"),
    "other_tokenizer": Code("error", "name the model that sampled these ids, or drop the ids and train on the text"),
}

# What needs a training configuration.
CONFIG_CODES: dict[str, Code] = {
    "data_unreadable": Code("error", "convert the rollouts again, and check data.train and data.validation"),
    "tokenizer_unusable": Code("error", "check policy.model_name and policy.tokenizer"),
    "environment_unusable": Code("error", "check data.train.env_name and env"),
    "length_over_positions": Code("error", "lower policy.max_total_sequence_length"),
    "tasks_across_splits": Code(
        "warning", "split by task (`regimen convert` does), and remove those rows from the training data"
    ),
    "equal_pair": Code("warning", "remove the pairs: both sides say the same, so nothing is preferred"),
    "batch_exceeds_data": Code("warning", "lower policy.train_global_batch_size, or collect more"),
    "batch_does_not_divide": Code(
        "note", "choose a batch that divides the rows where every row must count the same in each epoch"
    ),
    "rows_never_seen": Code("warning", "raise max_num_steps, or take larger batches"),
    "memory_exceeded": Code(
        "error", "lower policy.train_micro_batch_tokens, set policy.activation_checkpointing, or take a smaller model"
    ),
}

CODES: dict[str, Code] = {**ROLLOUT_CODES, **TOKEN_CODES, **CONFIG_CODES}
