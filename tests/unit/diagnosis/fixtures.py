"""A set of rows for every code, which raises that code and nothing else; and clean sets, which raise none.

Rollout sets are lists of rows (a string is a line as it stands). `inspected` sets also name what they are looked at
with; `doctored` sets are files of a training configuration.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Encode = Callable[[str], list[int]]

# 200 passing of 400, half of the groups varied: nothing to complain about.
HEALTHY = [[1, 0, 1, 0]] * 50 + [[1, 1, 1, 1]] * 25 + [[0, 0, 0, 0]] * 25
TOOL = {"type": "function", "name": "look", "description": "Looks.", "parameters": {"type": "object"}}
SAID = {"type": "message", "role": "assistant", "content": "said"}

WRITES_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    "{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WRITES_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Reasoning of earlier turns is dropped once another turn follows.
FORGETFUL = WRITES_CALLS.replace(
    "{{ m.content }}",
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}",
)
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + WRITES_CALLS
WITHOUT_STOP = WRITES_CALLS.replace("<|im_end|>", "")


@dataclass(frozen=True)
class Inspected:
    """Rollouts, and what `regimen inspect` is given with them."""

    rows: list[Row | str]
    max_length: int | None = None
    template: str | None = None
    with_model: bool = False


@dataclass(frozen=True)
class Doctored:
    """The rows of a configuration's data files, and the configuration's other values."""

    train: list[Row] = field(default_factory=list)
    validation: list[Row] = field(default_factory=list)
    algorithm: str = "sft"
    settings: list[str] = field(default_factory=list)
    device_memory: float | None = None
    raw_line: str = ""


def rollouts(groups: list[list[float]], first_task: int = 0, environment: str = "words") -> list[Row]:
    """One row per reward; each group is a task; every answer differs."""
    return [
        {
            "responses_create_params": {"input": [{"role": "user", "content": f"Describe thing {task}."}]},
            "response": {"output": [{**SAID, "content": f"answer {task} {repeat}"}]},
            "reward": reward,
            "expected_answer": f"right words {task}",
            "agent_ref": {"name": environment},
            "_ng_task_index": task,
            "_ng_rollout_index": repeat,
        }
        for task, rewards in enumerate(groups, first_task)
        for repeat, reward in enumerate(rewards)
    ]


def healthy() -> list[Row]:
    return rollouts(HEALTHY)


def healthy_with(number: int = 1, **fields: Any) -> list[Row | str]:
    """Healthy rows, the first `number` of them with other fields."""
    rows = healthy()
    return [{**row, **copy.deepcopy(fields)} if index < number else row for index, row in enumerate(rows)]


def output(*items: Row) -> Row:
    return {"output": list(items)}


def call(arguments: Any, name: str = "look") -> Row:
    return {"type": "function_call", "call_id": "c", "name": name, "arguments": arguments}


def asking(task: int = 0, **params: Any) -> Row:
    return {"input": [{"role": "user", "content": f"Describe thing {task}."}], **params}


def recorded(encode: Encode, answer: str, sampled: list[int], text: str) -> Row:
    """An assistant's item with the ids of its call."""
    prompt = encode(f"<|im_start|>user\n{answer}<|im_end|>\n<|im_start|>assistant\n")
    ids = {"prompt_token_ids": prompt, "generation_token_ids": sampled, "generation_log_probs": [-0.5] * len(sampled)}
    return {**SAID, "content": text, **ids}


def with_answer(row: Row, text: str) -> Row:
    return {**row, "response": output({**SAID, "content": text})}


def failed(number: int, reward: float | None) -> list[Row]:
    rows = rollouts([[0]] * number, first_task=500)
    return [{**row, "mask_sample": True, "reward": reward} for row in rows]


def offering(parameters: Row) -> Row:
    return {"responses_create_params": asking(tools=[{**TOOL, "parameters": parameters}])}


def leaking() -> list[Row]:
    rows = healthy()
    for row in rows[:8]:
        row["responses_create_params"] = asking(row["_ng_task_index"])
        row["responses_create_params"]["input"][0]["content"] += f" (right words {row['_ng_task_index']})"
    return rows


def breaking_tokens() -> list[Row | str]:
    def said(prompt: list[int]) -> Row:
        return {**SAID, "prompt_token_ids": prompt, "generation_token_ids": [5], "generation_log_probs": [-0.1]}

    return healthy_with(response=output(said([1]), {"role": "user", "content": "b"}, said([1, 6, 2])))


def calling(arguments: Any) -> Row:
    return {"responses_create_params": asking(tools=[TOOL]), "response": output(call(arguments), SAID)}


def two_turns() -> Row:
    first = {**SAID, "content": "<think>hm</think>one"}
    return output(first, {"role": "user", "content": "and?"}, {**SAID, "content": "two"})


def written_letters(encode: Encode) -> list[Row | str]:
    """The letters of the stop token, sampled one by one: their text is read back as one id."""
    letters = [token for letter in "<|im_end|>" for token in encode(letter)]
    sampled = [*encode("said"), *letters, *encode("<|im_end|>")]
    return healthy_with(response=output(recorded(encode, "x", sampled, "said")))


def inspected_cases(encode: Encode) -> dict[str, Inspected]:
    """Code -> rollouts that raise it alone."""
    system = [{"role": "system", "content": "s"}, *asking()["input"]]
    not_finite = {**SAID, "prompt_token_ids": [1], "generation_token_ids": [2], "generation_log_probs": [float("nan")]}
    rows: dict[str, list[Any]] = {
        "bad_rows": [*healthy(), "{not JSON"],
        "logprobs_not_finite": healthy_with(response=output(not_finite)),
        "no_rewards": failed(40, None),
        "rewards_all_zero": rollouts([[0] * 4] * 50),
        "rewards_all_equal": rollouts([[0.5] * 4] * 50),
        "constant_verifier": [*healthy(), *rollouts([[1] * 4] * 30, 200, "lenient")],
        "reward_out_of_range": healthy_with(reward=2),
        "rewards_narrow": rollouts([[0.7, 0.9, 0.82, 0.84]] * 50),
        "success_low": rollouts([[1] + [0] * 10] * 110),
        "success_high": rollouts([[1] * 9 + [0]] * 20),
        "no_group_variance": rollouts([[1, 1]] * 50 + [[0, 0]] * 40 + [[1, 0]] * 10),
        "single_repeats": rollouts([[1], [0]] * 120),
        "no_pairs": rollouts([[0.9, 0.95], [0.1, 0.2]] * 60),
        "few_rollouts": rollouts([[1, 0]] * 14),
        "few_rows_for_sft": rollouts([[1, 0]] * 99),
        "environment_small": [*healthy(), *rollouts([[1, 0]] * 25, 200, "rare")],
        "truncated": healthy_with(50, regimen={"outcome": "truncated", "reason": None}),
        "many_failures": [*healthy(), *failed(50, None)],
        "failure_as_zero": [*healthy(), *failed(1, 0)],
        "duplicate_rows": [*healthy(), healthy()[-1]],
        "task_with_several_prompts": healthy_with(responses_create_params={"input": "something else"}),
        "empty_answers": [with_answer(healthy()[0], " \n"), *healthy()[1:]],
        "repeated_answers": [with_answer(row, f"same {row['_ng_task_index']}") for row in healthy()],
        "same_answer_everywhere": [
            with_answer(row, "I cannot") if row["_ng_rollout_index"] == 0 else row for row in healthy()
        ],
        "malformed_arguments": healthy_with(**calling("{")),
        "tools_missing": healthy_with(response=output(call("{}"), SAID)),
        "tool_schemas_differ": [
            {**healthy()[0], **offering({"type": "object"})},
            {**healthy()[1], **offering({"type": "object", "required": ["x"]})},
            *healthy()[2:],
        ],
        "arguments_keys_differ": [
            {**healthy()[0], **calling({"a": 1})},
            {**healthy()[1], **calling({"b": 1})},
            *healthy()[2:],
        ],
        "no_ground_truth": healthy_with(expected_answer=None),
        "leaked_answer": leaking(),
        "tokens_do_not_continue": breaking_tokens(),
    }
    long = [with_answer(healthy()[0], "word " * 100), *healthy()[1:]]
    stop = encode("<|im_end|>")
    return {
        **{code: Inspected(found) for code, found in rows.items()},
        "over_length": Inspected(long, max_length=200, with_model=True),
        "template_drops_tools": Inspected(
            healthy_with(responses_create_params=asking(tools=[TOOL])), template=WRITES_CALLS, with_model=True
        ),
        "template_drops_tool_calls": Inspected(healthy_with(**calling("{}")), template=WRITES_TOOLS, with_model=True),
        "template_rewrites_history": Inspected(healthy_with(response=two_turns()), template=FORGETFUL, with_model=True),
        "template_failed": Inspected(
            [
                {**row, "responses_create_params": {"input": system}} if row["_ng_task_index"] == 0 else row
                for row in healthy()
            ],
            template=WITHOUT_SYSTEM,
            with_model=True,
        ),
        "double_bos": Inspected(healthy(), template="<|im_start|>" + WRITES_CALLS, with_model=True),
        "missing_stop": Inspected(
            healthy_with(response=output(recorded(encode, "x", encode("said"), "said"))), with_model=True
        ),
        "retokenised_ids_differ": Inspected(written_letters(encode), with_model=True),
        "other_tokenizer": Inspected(
            healthy_with(response=output(recorded(encode, "x", [*encode("other"), *stop], "said"))), with_model=True
        ),
    }


def conversations(first: int, number: int) -> list[Row]:
    """SFT rows, each with a question of its own."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Describe thing {index}."},
                {"role": "assistant", "content": f"It is {index}."},
            ]
        }
        for index in range(first, first + number)
    ]


def pairs(first: int, number: int) -> list[Row]:
    """DPO rows."""

    def side(rank: int, text: str) -> Row:
        return {"rank": rank, "completion": [{"role": "assistant", "content": text}]}

    return [
        {
            "context": [{"role": "user", "content": f"Describe thing {index}."}],
            "completions": [side(0, f"It is {index}."), side(1, "No.")],
        }
        for index in range(first, first + number)
    ]


def tasks(first: int, number: int) -> list[Row]:
    """GRPO rows, judged by the shipped calculator."""
    return [
        {
            "responses_create_params": {"input": [{"role": "user", "content": f"What is {index} + 1?"}]},
            "expected_answer": str(index + 1),
            "agent_ref": {"name": "calculator"},
            "_ng_task_index": index,
        }
        for index in range(first, first + number)
    ]


SFT, HELD_OUT = conversations(0, 120), conversations(1000, 16)
GRPO = ["grpo.num_prompts_per_step=8", "grpo.num_generations_per_prompt=4", "policy.train_global_batch_size=null"]


def doctored_cases() -> dict[str, Doctored]:
    """Code -> a configuration that raises it alone."""
    equal = pairs(0, 1)[0]
    equal["completions"][1]["completion"] = equal["completions"][0]["completion"]
    return {
        "nothing_to_train": Doctored([*SFT, {"messages": [{"role": "user", "content": "Alone."}]}], HELD_OUT),
        "data_unreadable": Doctored(SFT, HELD_OUT, raw_line="{not JSON\n"),
        "tokenizer_unusable": Doctored(SFT, HELD_OUT, settings=["policy.tokenizer.name=/no/such/folder"]),
        "environment_unusable": Doctored(
            algorithm="grpo",
            settings=[*GRPO, "data.train={dataset_name: Environment, env_name: no_such_environment}"],
        ),
        "length_over_positions": Doctored(SFT, HELD_OUT, settings=["policy.max_total_sequence_length=5000"]),
        "tasks_across_splits": Doctored(SFT, [*HELD_OUT, SFT[0]]),
        "equal_pair": Doctored([equal, *pairs(1, 119)], pairs(1000, 16), algorithm="dpo"),
        "batch_exceeds_data": Doctored(SFT, HELD_OUT, settings=["policy.train_global_batch_size=256"]),
        "batch_does_not_divide": Doctored(SFT, HELD_OUT, settings=["policy.train_global_batch_size=7"]),
        "rows_never_seen": Doctored(SFT, HELD_OUT, settings=["sft.max_num_steps=10"]),
        "memory_exceeded": Doctored(SFT, HELD_OUT, device_memory=0.0001),
    }


def clean_rollouts() -> dict[str, list[Row]]:
    """Sets with nothing to complain about."""
    arithmetic = healthy()
    for row in arithmetic:  # the operands and the answer are small numbers of the same kind
        index = row["_ng_task_index"]
        row["responses_create_params"] = {"input": f"What is {index} + 3? Give the answer as one number."}
        row["expected_answer"] = str(index + 3)
    with_tools = healthy()
    for row in with_tools:
        row["responses_create_params"] = asking(row["_ng_task_index"], tools=[TOOL])
        row["response"] = output(call(f'{{"a": {row["_ng_rollout_index"]}}}'), row["response"]["output"][-1])
    return {
        "binary GRPO": healthy(),
        "good SFT": rollouts([[1, 1, 1, 1, 0]] * 60),
        "graded DPO": rollouts([[0.3, 0.9, 0.5, 0.85]] * 60),
        "several environments": [*healthy(), *rollouts([[1, 0, 1]] * 40, 300, "games")],
        "arithmetic": arithmetic,
        "one tool": with_tools,
    }


def clean_configurations() -> dict[str, Doctored]:
    """Configurations with nothing to complain about."""
    return {
        "sft": Doctored(SFT, HELD_OUT),
        "dpo": Doctored(pairs(0, 120), pairs(1000, 16), algorithm="dpo"),
        "grpo": Doctored(tasks(0, 64), tasks(1000, 16), algorithm="grpo", settings=GRPO),
    }


def write_rows(path: Path, rows: list[Any], raw_line: str = "") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines) + raw_line, encoding="utf-8")
    return path
