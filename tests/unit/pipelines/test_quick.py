"""The quick way of the second pass writes and counts what the general way does, whatever the rows and options."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regimen.convert.options import ConvertOptions
from regimen.errors import ConvertError
from regimen.pipelines import pieces
from regimen.pipelines.convert import convert
from regimen.pipelines.quick import quick_way

CALL = {"type": "function_call", "name": "add", "call_id": "c1", "id": "f"}
BACK = {"type": "function_call_output", "call_id": "c1", "output": "7"}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
IDS = {"prompt_token_ids": [1], "generation_token_ids": [2, 3], "generation_log_probs": [-0.5, -0.25]}
TOOLS = [{"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}]

TEXTS = st.sampled_from(["7", "7 – sieben", "8", "", "\u2028\U0001f600"])
SAID = TEXTS.map(
    lambda text: {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
)
USUAL = st.one_of(
    SAID,
    SAID,
    st.just(THOUGHT),
    st.sampled_from(["{}", '{"a": 3}', "{", "[1]"]).map(lambda arguments: {**CALL, "arguments": arguments}),
    st.just(BACK),
)
ODD = st.one_of(
    SAID.map(lambda item: {**item, **IDS}),
    st.just({"role": "user", "content": "and?"}),
    st.just({"type": "web_search_call"}),
    st.just({"type": "reasoning", "encrypted_content": "x", "summary": []}),
)
OUTPUTS = st.one_of(
    st.lists(USUAL, max_size=5),
    st.tuples(st.lists(USUAL, max_size=5), SAID).map(lambda two: [*two[0], two[1]]),
    st.lists(st.one_of(USUAL, ODD), max_size=4),
)
PROMPTS = st.sampled_from(
    [
        {"input": [{"role": "user", "content": "3 + 4?"}]},
        {"input": [{"role": "developer", "content": "Add."}, {"role": "user", "content": "3 + 4?"}], "tools": TOOLS},
        {"input": "3 + 4?", "instructions": "Add.", "tools": [], "temperature": 0.7},
        {"input": [], "metadata": {"ground_truth": "7"}},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://a/b"}]}]},
        {"input": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]},
        {"input": [{"type": "web_search_call"}]},
    ]
)
ROWS = st.fixed_dictionaries(
    {
        "responses_create_params": st.none(),
        "response": OUTPUTS.map(lambda output: {"output": output}),
        "reward": st.sampled_from([1.0, 1.0, 1, 0.0, 0.5]),
        "_ng_rollout_index": st.integers(0, 2),
    },
    optional={
        "failure_kind": st.sampled_from([None, None, None, "timeout"]),
        "regimen": st.sampled_from([None, {}, {"tokenizer": "t", "template": "u"}, {"template": 3}]),
        "expected_answer": st.sampled_from(["7", "7", "8", 7]),
        "accuracy": st.sampled_from([0.5, "high"]),
        "note": st.sampled_from(["easy", float("nan"), 2**70]),
    },
)


def _task(one):
    """Rows of a task: alike in what they ask and say of the task, but where they are not."""
    prompt, other, rows, answer, is_even = one
    for number, row in enumerate(rows):
        row["responses_create_params"] = prompt if number or is_even else other
        if is_even:
            row |= answer
    return rows


TASKS = st.tuples(
    PROMPTS,
    PROMPTS,
    st.lists(ROWS, min_size=1, max_size=4),
    st.sampled_from([{}, {"expected_answer": "7"}, {"expected_answer": "7", "note": "easy"}]),
    st.sampled_from([True, True, True, False]),
).map(_task)
OPTIONS = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {},
        optional={
            "reward_threshold": st.sampled_from([0.5, 1.0]),
            "min_turns": st.sampled_from([1, 2]),
            "max_per_task": st.sampled_from([1, 3]),
            "require_tool_use": st.booleans(),
            "reasoning": st.sampled_from(["drop", "inline", "reasoning_content"]),
            "spelling": st.sampled_from(["openai", "nemo_rl"]),
            "validation_fraction": st.sampled_from([0.0, 0.5]),
        },
    ),
)


def _lines(tasks, compact_every=5):
    """All rows, in an order that mixes the tasks; some are written without spaces."""
    rows = [
        {**row, "_ng_task_index": task, "agent_ref": {"name": "adder"}}
        for repeat in range(4)
        for task, rows in enumerate(tasks)
        for row in rows[repeat : repeat + 1]
    ]
    spaces = [(", ", ": "), (",", ":")]
    return "".join(
        json.dumps(row, separators=spaces[number % compact_every == 0]) + "\n" for number, row in enumerate(rows, 1)
    )


def _converted(path, to, out, options):
    """The files of the conversion and what its manifest says, or why there are none."""
    try:
        manifest = convert(path, to, out, ConvertOptions(max_bad=1.0, **options))
    except ConvertError as error:
        return str(error).replace(out.name, "OUT"), None
    contents = {file.name: file.read_bytes() for file in out.iterdir() if file.name != "manifest.json"}
    return contents, msgspec.to_builtins(msgspec.structs.replace(manifest, created=""))


@pytest.mark.parametrize("to", ["sft", "grpo"])
@settings(max_examples=150, deadline=None)
@given(tasks=st.lists(TASKS, min_size=1, max_size=4), asked=OPTIONS)
def test_both_ways_write_the_same_folder(tmp_path_factory, to, tasks, asked):
    folder = tmp_path_factory.mktemp("both")
    path = folder / "rollouts.jsonl"
    path.write_text(_lines(tasks))
    sft_alone = ("min_turns", "max_per_task", "require_tool_use", "reasoning", "spelling")
    options = {name: value for name, value in asked.items() if to == "sft" or name not in sft_alone}
    quick = _converted(path, to, folder / "quick", options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "quick_way", lambda stage: None)
        assert _converted(path, to, folder / "general", options) == quick


@pytest.mark.parametrize("to", ["sft", "grpo"])
def test_usual_tasks_go_the_quick_way(tmp_path, monkeypatch, to):
    said = {"type": "message", "role": "assistant", "content": "7"}
    prompt = {"input": [{"role": "user", "content": "3 + 4?"}], "tools": TOOLS}
    rows = [
        {
            "responses_create_params": prompt,
            "response": {"output": [THOUGHT, {**CALL, "arguments": "{}"}, BACK, {**said, "content": str(repeat)}]},
            "reward": float(repeat > 0),
            "expected_answer": "7",
            "_ng_rollout_index": repeat,
        }
        for repeat in range(3)
    ]
    path = tmp_path / "rollouts.jsonl"
    path.write_text(_lines([[dict(row) for row in rows] for _ in range(3)], compact_every=100))
    taken = []

    def watched(stage):
        way = quick_way(stage)
        assert way is not None

        def watch(packed, records):
            taken.append(way(packed, records))
            return taken[-1]

        return watch

    monkeypatch.setattr(pieces, "quick_way", watched)
    manifest = convert(path, to, tmp_path / "out", ConvertOptions(validation_fraction=0.0))
    assert [None if task is None else task.num_rows for task in taken] == [2 if to == "sft" else 3] * 3
    assert manifest.ledger.num_rows == 9
