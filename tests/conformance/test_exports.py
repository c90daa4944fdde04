"""Exported folders, loaded as the other trainers load them.

For NeMo RL its loaders are stated again here, independently of the exporter: inheritance, interpolation, the key
access of each data set, the task names, the split rule, and what columnar loading does to rows. For TRL its own
trainers are built and take one step; without TRL those tests are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fixtures.tiny_model import save_tiny_model

from regimen.errors import ConfigError
from regimen.pipelines.export import export
from regimen.registry import PARTS

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT / "tests" / "fixtures" / "export" / "nemo_rl_schema.tsv"
CALLS = {"calculator": {"expression": "2 + 2"}, "atlas": {"country": "Kenya", "year": 1990}}


def tool(name: str) -> dict[str, Any]:
    properties = {key: {"type": "string"} for key in CALLS[name]}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": f"The {name}.", "parameters": parameters}}


def conversation(name: str, answer: str) -> list[dict[str, Any]]:
    """A call of the tool `name`, spelled as our converter does it, its result and the answer."""
    call = {"id": f"c-{name}", "type": "function", "function": {"name": name, "arguments": json.dumps(CALLS[name])}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": f"c-{name}", "content": "known"},
        {"role": "assistant", "content": answer},
    ]


def question(index: int) -> dict[str, Any]:
    return {"role": "user", "content": f"question {index}"}


def sft_row(index: int) -> dict[str, Any]:
    name = ("calculator", "atlas")[index % 2]
    return {"messages": [question(index), *conversation(name, f"answer {index}")], "tools": [tool(name)]}


def guide_row(index: int) -> dict[str, Any]:
    """As the guides' scripts write it: flat tool calls, tool messages without ids, flat tools."""
    name = ("calculator", "atlas")[index % 2]
    messages = [
        question(index),
        {"role": "assistant", "tool_calls": [{"name": name, "arguments": CALLS[name]}]},
        {"role": "tool", "content": "known"},
        {"role": "assistant", "content": f"answer {index}"},
    ]
    return {"messages": messages, "tools": [tool(name)["function"]]}


def ranked_row(index: int) -> dict[str, Any]:
    completions = [
        {"rank": 0, "completion": conversation("calculator", "good")},
        {"rank": 1, "completion": conversation("atlas", "bad")},
    ]
    return {"context": [question(index)], "completions": completions, "tools": [tool("calculator"), tool("atlas")]}


def task_row(index: int) -> dict[str, Any]:
    params = {"input": [question(index)], "metadata": {"n": index} if index % 2 else None}
    agent = {"type": "responses_api_agents", "name": "calculator_agent"}
    return {"responses_create_params": params, "expected_answer": str(index), "agent_ref": agent}


ROWS = {
    "openai": ("sft", {"dataset_name": "openai_format"}, sft_row),
    "guide": ("sft", {"dataset_name": "openai_format"}, guide_row),
    "plain": (
        "sft",
        {"dataset_name": "openai_format"},
        lambda i: {"messages": [question(i), {"role": "assistant", "content": f"a{i}"}]},
    ),
    "simple": ("sft", {"dataset_name": "ResponseDataset"}, lambda i: {"input": f"q{i}", "output": f"a{i}"}),
    "binary": (
        "dpo",
        {"dataset_name": "BinaryPreferenceDataset"},
        lambda i: {"prompt": f"q{i}", "chosen": "good", "rejected": "bad", "reward_gap": 0.5},
    ),
    "binary messages": (
        "dpo",
        {"dataset_name": "BinaryPreferenceDataset"},
        lambda i: {"prompt": [question(i)] if i else "q", "chosen": "good", "rejected": "bad"},
    ),
    "preference": ("dpo", {"dataset_name": "PreferenceDataset"}, ranked_row),
    "response": (
        "grpo",
        {"dataset_name": "ResponseDataset"},
        lambda i: {"input": f"{i} + 1?", "output": i + 1, "task_name": "sums"},
    ),
    "gym": ("grpo", {"dataset_name": "NemoGymDataset"}, task_row),
}


def write_rows(path: Path, make: Any, count: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(make(index)) + "\n" for index in range(count)), encoding="utf-8")
    return str(path)


def source(tmp_path: Path, kind: str, **changes: Any) -> dict[str, Any]:
    """A configuration on 20 training rows and 8 for validation."""
    algorithm, entry, make = ROWS[kind]
    paths = {
        name: write_rows(tmp_path / "rows" / f"{name}.jsonl", make, count)
        for name, count in (("train", 20), ("validation", 8))
    }
    data = {name: {**entry, "data_path": path} for name, path in paths.items()}
    tree: dict[str, Any] = {"defaults": algorithm, "data": data, "policy": {"train_global_batch_size": 8}}
    if algorithm == "grpo":
        tree["grpo"] = {"num_prompts_per_step": 4, "num_generations_per_prompt": 2}
    if kind == "gym":
        tree["env"] = {"nemo_gym": {"config_paths": ["model.yaml", "calculator.yaml"]}}
    return {**tree, **changes}


# NeMo RL, stated again.


def load_nemo_rl(path: Path) -> dict[str, Any]:
    """`defaults:` relative to the file, later wins; then interpolation."""
    return resolved(inherited(path))


def inherited(path: Path) -> dict[str, Any]:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    parents = tree.pop("defaults", [])
    below: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        below = laid_over(below, inherited(path.parent / parent))
    return laid_over(below, tree)


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = laid_over(result[key], value) if both else value
    return result


RESOLVERS = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b, "max": max}


def resolved(tree: dict[str, Any]) -> dict[str, Any]:
    def value_of(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: value_of(value) for key, value in node.items()}
        if isinstance(node, list):
            return [value_of(item) for item in node]
        while isinstance(node, str) and (found := re.search(r"(?<!\\)\$\{([^${}]*)\}", node)):
            value = expression(found.group(1))
            node = value if found.group(0) == node else node[: found.start()] + str(value) + node[found.end() :]
        return node.replace("\\${", "${") if isinstance(node, str) else node

    def expression(text: str) -> Any:
        if ":" in text:
            name, arguments = text.split(":", 1)
            return RESOLVERS[name](*(yaml.safe_load(argument) for argument in arguments.split(",")))
        node: Any = tree
        for part in text.split("."):
            node = node[part]
        return value_of(node)

    return value_of(tree)


def columns(rows: list[Any]) -> list[Any]:
    """What columnar loading gives back: every object with the keys of all that stand in its place."""
    if all(row is None for row in rows):
        return rows
    there = [row for row in rows if row is not None]
    kinds = {type(row) for row in there}
    assert len(kinds) == 1, f"a column of {kinds}"
    if kinds == {dict}:
        keys = list(dict.fromkeys(key for row in there for key in row))
        by_key = {key: columns([None if row is None else row.get(key) for row in rows]) for key in keys}
        return [None if row is None else {key: by_key[key][at] for key in keys} for at, row in enumerate(rows)]
    if kinds == {list}:
        flat = iter(columns([item for row in there for item in row]))
        return [None if row is None else [next(flat) for _ in row] for row in rows]
    if kinds == {str}:
        assert not all(re.match(r"\d{4}-\d\d-\d\d", row) for row in there), "a column of dates"
    return rows


def read_columns(entry: dict[str, Any]) -> list[dict[str, Any]]:
    assert entry["split"] == "train", "a local file has the split train only"
    return columns([json.loads(line) for line in Path(entry["data_path"]).read_text().splitlines()])


def task_name(path: str) -> str:
    name = "-".join(path.split("/")[-2:]).split(".")[0]
    name = name[1:] if name[0] == "-" else name
    assert name
    return name


def load_data(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The data set of an entry, as the trainer's processor sees its rows."""
    return LOADERS[entry["dataset_name"]](entry, task_name(entry["data_path"]))


def load_response(entry: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = read_columns(entry)
    assert "task_name" not in rows[0]
    if "messages" in rows[0]:
        return [{**row, "task_name": name} for row in rows]
    pairs = [(row[entry.get("input_key", "input")], row[entry.get("output_key", "output")]) for row in rows]
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "task_name": name}
        for q, a in pairs
    ]


def load_openai(entry: dict[str, Any], name: str) -> list[dict[str, Any]]:
    if entry.get("use_preserving_dataset", False):
        with Path(entry["data_path"]).open() as file:
            rows = [json.loads(line) for line in file]
    else:
        rows = read_columns(entry)
    chat_key, tool_key = entry.get("chat_key", "messages"), entry.get("tool_key", "tools")
    result = []
    for row in rows:
        assert row[chat_key][-1]["role"] == "assistant"
        tools = {"tools": row[tool_key]} if tool_key in row else {}
        result.append({"messages": row[chat_key], "task_name": name, **tools})
    return result


def load_binary(entry: dict[str, Any], name: str) -> list[dict[str, Any]]:
    result = []
    for row in read_columns(entry):
        prompt = row[entry.get("prompt_key", "prompt")]
        sides = [row[entry.get(key, key.removesuffix("_key"))] for key in ("chosen_key", "rejected_key")]
        completions = [
            {"rank": rank, "completion": [{"role": "assistant", "content": side}]} for rank, side in enumerate(sides)
        ]
        context = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        result.append({"context": context, "completions": completions, "task_name": name})
    return result


def load_preference(entry: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = read_columns(entry)
    for row in rows:
        assert len(row["completions"]) == 2
        assert row["completions"][0]["rank"] != row["completions"][1]["rank"]
    return [{**row, "task_name": name} for row in rows]


def load_gym(entry: dict[str, Any], name: str) -> list[dict[str, Any]]:
    with Path(entry["data_path"]).open() as file:
        return [{"extra_env_info": json.loads(line), "task_name": name} for line in file]


LOADERS = {
    "ResponseDataset": load_response,
    "openai_format": load_openai,
    "BinaryPreferenceDataset": load_binary,
    "PreferenceDataset": load_preference,
    "NemoGymDataset": load_gym,
}


def dotted(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found[prefix + key] = value
        if isinstance(value, dict):
            found |= dotted(value, f"{prefix}{key}.")
    return found


def declared(algorithm: str) -> dict[str, str]:
    lines = (line.split("\t") for line in SCHEMA.read_text(encoding="utf-8").splitlines())
    return {key: kind for key, algorithms, kind in lines if algorithm in algorithms.split(",")}


# Read by openai_format, in whose declared keys it is missing.
UNDECLARED = re.compile(r"data\.\w+\.use_preserving_dataset")


def undeclared(config: dict[str, Any], algorithm: str) -> list[str]:
    """Written keys that NeMo RL neither declares nor writes in its examples, nor takes freely below a dictionary."""
    known = declared(algorithm)
    parents = {".".join(key.split(".")[:end]) for key in known for end in range(1, key.count(".") + 1)}
    free = [f"{key}." for key, kind in known.items() if "dict[str, Any]" in kind]
    return [
        key
        for key in dotted(config)
        if key not in known and key not in parents and not key.startswith(tuple(free)) and not UNDECLARED.fullmatch(key)
    ]


@pytest.fixture(params=ROWS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def exported(tmp_path: Path, kind: str) -> dict[str, Any]:
    """config.yaml of an export, loaded as NeMo RL does."""
    export("nemo-rl", source(tmp_path, kind), tmp_path / "out")
    return load_nemo_rl(tmp_path / "out" / "config.yaml")


def test_every_written_key_is_one_of_nemo_rl(exported: dict[str, Any], kind: str) -> None:
    assert undeclared(exported, ROWS[kind][0]) == []


def test_the_check_of_keys_finds_a_wrong_one() -> None:
    wrong = {"policy": {"train_micro_batch_tokens": 1, "model_name": "x"}, "data": {"train": {"chat_key": "messages"}}}
    assert undeclared(wrong, "sft") == ["policy.train_micro_batch_tokens", "data.train.chat_key"]


def test_what_is_read_without_a_default_is_written(exported: dict[str, Any], kind: str) -> None:
    algorithm = ROWS[kind][0]
    keys = dotted(exported)
    wanted = ["checkpointing.keep_top_k", "checkpointing.save_optimizer", "checkpointing.checkpoint_must_save_by"]
    wanted += ["data.num_workers", "data.train.split", "policy.megatron_cfg.enabled"]
    wanted += ["data.add_bos", "data.add_eos", "data.add_generation_prompt"] if algorithm == "sft" else []
    wanted += ["policy.draft.enabled", "data.use_multiple_dataloader"] if algorithm == "grpo" else []
    assert [key for key in wanted if key not in keys] == []
    required = [key for key, value in keys.items() if isinstance(value, str) and "${" in value]
    assert required == []
    assert keys["policy.tokenizer.chat_template"] == "default"
    assert keys["policy.tokenizer.name"] == keys["policy.model_name"]


def test_task_names_differ(exported: dict[str, Any]) -> None:
    names = {task_name(exported["data"][name]["data_path"]) for name in ("train", "validation")}
    assert names == {"gym_train-rows", "gym_validation-rows"}


def test_batches_divide_and_are_filled(exported: dict[str, Any], kind: str) -> None:
    algorithm = ROWS[kind][0]
    rows, policy = len(load_data(exported["data"]["train"])), exported["policy"]
    assert rows == 20
    batch = policy["train_global_batch_size"]
    if algorithm == "grpo":
        section = exported["grpo"]
        assert section["num_prompts_per_step"] * section["num_generations_per_prompt"] % batch == 0
        assert section["num_prompts_per_step"] <= rows
    else:
        assert batch <= rows
        assert exported[algorithm]["val_global_batch_size"] <= 8
    assert batch % policy["train_micro_batch_size"] == 0


def spelled(row: dict[str, Any]) -> dict[str, Any]:
    """An SFT row of ours or of the guides in OpenAI's spelling with arguments as objects, by hand."""
    name = "calculator" if "calculator" in json.dumps(row["tools"]) else "atlas"
    messages = json.loads(json.dumps(row["messages"]))
    call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": CALLS[name]}}
    if "id" in messages[1]["tool_calls"][0]:
        call["id"] = f"c-{name}"
    messages[1] = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"messages": messages, "tools": [tool(name)], "task_name": "gym_train-rows"}


@pytest.mark.parametrize("kind", ["openai", "guide"], indirect=True)
def test_conversations_with_tools_arrive_as_they_are(exported: dict[str, Any], kind: str) -> None:
    assert exported["data"]["train"]["use_preserving_dataset"] is True
    expected = [spelled(ROWS[kind][2](index)) for index in range(20)]
    assert load_data(exported["data"]["train"]) == expected


@pytest.mark.parametrize("kind", ["plain", "simple"], indirect=True)
def test_plain_conversations_need_no_preserving(exported: dict[str, Any]) -> None:
    entry = exported["data"]["train"]
    assert "use_preserving_dataset" not in entry
    words = [[message["content"] for message in row["messages"]] for row in load_data(entry)]
    assert words[3] in (["question 3", "a3"], ["q3", "a3"])


@pytest.mark.parametrize("kind", ["binary", "binary messages", "preference"], indirect=True)
def test_pairs_arrive_with_the_better_one_first(exported: dict[str, Any]) -> None:
    for row in load_data(exported["data"]["train"]):
        better, worse = row["completions"]
        assert (better["rank"], worse["rank"]) == (0, 1)
        assert (better["completion"][-1]["content"], worse["completion"][-1]["content"]) == ("good", "bad")
        assert isinstance(row["context"], list)


@pytest.mark.parametrize("kind", ["preference"], indirect=True)
def test_arguments_of_pairs_survive_columns(exported: dict[str, Any]) -> None:
    for row in load_data(exported["data"]["train"]):
        found = [side["completion"][0]["tool_calls"][0]["function"] for side in row["completions"]]
        assert {call["name"]: json.loads(call["arguments"]) for call in found} == CALLS


@pytest.mark.parametrize("kind", ["response"], indirect=True)
def test_the_math_processor_sees_problem_and_answer(exported: dict[str, Any]) -> None:
    entry = exported["data"]["train"]
    assert (entry["processor"], entry["env_name"]) == ("math_hf_data_processor", "math")
    assert exported["env"]["math"]["math_verify_impl"] == "hf_math_verify"
    for index, row in enumerate(load_data(entry)):
        problem, answer = row["messages"][0]["content"], row["messages"][1]["content"]
        assert (problem, answer) == (f"{index} + 1?", str(index + 1))


@pytest.mark.parametrize("kind", ["gym"], indirect=True)
def test_gym_tasks_arrive_whole(exported: dict[str, Any]) -> None:
    rows = load_data(exported["data"]["train"])
    assert [row["extra_env_info"] for row in rows] == [task_row(index) for index in range(20)]
    config_paths = ["model.yaml", "calculator.yaml"]
    assert exported["env"] == {"should_use_nemo_gym": True, "nemo_gym": {"config_paths": config_paths}}


def test_a_mixture_of_gym_tasks_arrives_in_turn(tmp_path: Path) -> None:
    """Each agent's tasks keep their order, of each four tasks three are of the first one, and every key is known."""

    def of(agent: str) -> Any:
        return lambda index: {**task_row(index), "agent_ref": {"type": "responses_api_agents", "name": agent}}

    tree = source(tmp_path, "gym")
    tree["data"]["train"] = [
        {
            "dataset_name": "NemoGymDataset",
            "data_path": write_rows(tmp_path / "rows" / f"{agent}.jsonl", of(agent), 12),
            "weight": weight,
        }
        for agent, weight in (("sums_agent", 3), ("words_agent", 1))
    ]
    export("nemo-rl", tree, tmp_path / "out")
    config = load_nemo_rl(tmp_path / "out" / "config.yaml")
    assert undeclared(config, "grpo") == []
    rows = [row["extra_env_info"] for row in load_data(config["data"]["train"])]
    by_agent = {
        agent: [row for row in rows if row["agent_ref"]["name"] == agent] for agent in ("sums_agent", "words_agent")
    }
    assert by_agent == {
        agent: [of(agent)(index) for index in range(n)] for agent, n in (("sums_agent", 12), ("words_agent", 4))
    }
    for start in range(0, 16, 4):
        assert sum(row["agent_ref"]["name"] == "sums_agent" for row in rows[start : start + 4]) == 3
    assert len(rows) % config["grpo"]["num_prompts_per_step"] == 0


def test_a_checkout_is_inherited_and_says_the_same(tmp_path: Path, kind: str) -> None:
    """The example of a checkout holds the example's values and its demonstration; all that matters is set over it."""
    algorithm = ROWS[kind][0]
    base = {"sft": "sft", "dpo": "dpo", "grpo": "grpo_math_1B"}[algorithm]
    configs = tmp_path / "checkout" / "examples" / "configs"
    configs.mkdir(parents=True)
    values = yaml.safe_load((ROOT / "src/regimen/convert/export/nemo_rl_values.yaml").read_text(encoding="utf-8"))
    example = laid_over(values["common"], values[algorithm])
    example["policy"] |= {"model_name": "demonstration"}
    example["policy"]["tokenizer"]["chat_template"] = "demonstration"
    example["data"] |= {"train": {"dataset_name": "squad", "split": "validation", "split_validation_size": 0.05}}
    example["data"]["validation"] = {"dataset_name": "squad", "split": "validation"}
    (configs / f"{base}.yaml").write_text(yaml.safe_dump(example), encoding="utf-8")
    export("nemo-rl", source(tmp_path, kind), tmp_path / "alone")
    export("nemo-rl", source(tmp_path, kind), tmp_path / "inheriting", checkout=tmp_path / "checkout")
    alone, inheriting = (dotted(load_nemo_rl(tmp_path / name / "config.yaml")) for name in ("alone", "inheriting"))
    assert {key: value for key, value in inheriting.items() if key in alone and not isinstance(value, dict)} == {
        key: value if not isinstance(value, str) else value.replace("/alone/", "/inheriting/")
        for key, value in alone.items()
        if not isinstance(value, dict)
    }
    assert inheriting.get("data.train.split_validation_size", 0.05) in (0, 0.05)
    if algorithm == "grpo":
        assert inheriting["data.train.split_validation_size"] == 0


def test_every_target_has_its_round_trip() -> None:
    assert set(PARTS["export"]) == {"nemo-rl", "trl"}


# TRL itself.

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
SMALL = {"precision": "float32", "max_total_sequence_length": 1024, "train_global_batch_size": 2}


def trl_source(tmp_path: Path, kind: str) -> dict[str, Any]:
    model = save_tiny_model(tmp_path / "model")
    tree = source(tmp_path, kind)
    tree["policy"] = {**SMALL, "model_name": str(model), "tokenizer": {"chat_template": "tools"}}
    if ROWS[kind][0] == "grpo":
        tree["policy"]["generation"] = {"max_new_tokens": 8}
        tree["grpo"] |= {"num_prompts_per_step": 1, "max_num_steps": 1}
    else:
        tree[ROWS[kind][0]] = {"max_num_steps": 1}
    tree["checkpointing"] = {"enabled": False, "checkpoint_dir": str(tmp_path / "trained")}
    tree.pop("env", None)
    return tree


def run_script(folder: Path, script: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai", "simple", "binary", "preference", "response", "environment"])
def test_trl_takes_a_step(tmp_path: Path, name: str) -> None:
    tree = trl_source(tmp_path, "gym" if name == "environment" else name)
    if name == "environment":
        entry = {"dataset_name": "Environment", "env_name": "calculator", "num_tasks": 4}
        tree["data"] = {"train": entry, "validation": entry}
    export("trl", tree, tmp_path / "out")
    script = "import train; trainer = train.make_trainer(); print('STEPS', trainer.train().global_step)"
    assert "STEPS 1" in run_script(tmp_path / "out", script)


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai", "binary", "response"])
def test_trl_trains_the_same_adapters(tmp_path: Path, name: str) -> None:
    tree = trl_source(tmp_path, name)
    layers = {"target_modules": ["q_proj", "*.mlp.*"], "exclude_modules": ["*.1.*"]}
    tree["policy"]["dtensor_cfg"] = {"lora_cfg": {"enabled": True, "dim": 4, "alpha": 8, **layers}}
    export("trl", tree, tmp_path / "out")
    script = (
        "import train; trainer = train.make_trainer(); print('STEPS', trainer.train().global_step); "
        "print('LAYERS', *sorted({n[n.index('layers.') : n.index('.lora_')] for n, p in "
        "trainer.model.named_parameters() if p.requires_grad}))"
    )
    said = run_script(tmp_path / "out", script)
    assert "STEPS 1" in said
    found = [f"layers.0.{part}" for part in ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj")]
    assert f"LAYERS {' '.join(found)}\n" in said


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"dimm": 64}, r"lora_cfg\.dimm: unknown key; to fix: did you mean 'dim'"),
        ({"dim": "many"}, r"lora_cfg\.dim: "),
        ({"match_all_linear": True, "target_modules": ["q_proj"]}, "beside target_modules"),
        ({"match_all_linear": False}, "without target_modules"),
        (True, "is True; expected a mapping"),
    ],
)
def test_adapters_that_would_be_others_are_not_exported_to_trl(tmp_path: Path, lora: Any, says: str) -> None:
    tree = trl_source(tmp_path, "openai")
    tree["policy"]["dtensor_cfg"] = {"lora_cfg": {"enabled": True, **lora} if isinstance(lora, dict) else lora}
    with pytest.raises(ConfigError, match=says):
        export("trl", tree, tmp_path / "out")


def test_what_peft_does_otherwise_is_told(tmp_path: Path) -> None:
    tree = trl_source(tmp_path, "openai")
    tree["policy"]["dtensor_cfg"] = {"lora_cfg": {"enabled": True, "dropout": 0.1}}
    told = export("trl", tree, tmp_path / "out").changes
    assert any("dropout_position: post, but peft" in change for change in told)
    assert any("lora_A_init: xavier, but peft" in change for change in told)
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["lora"]["lora_dropout"] == 0.1


LOADED = """
import json, train
from datasets import load_dataset
files = {name: str(train.FOLDER / path) for name, path in train.SETTINGS["data_files"].items()}
print(json.dumps(list(load_dataset("json", data_files=files, features=train.COLUMNS)["train"])))
"""


@needs_trl
@pytest.mark.slow
@pytest.mark.parametrize("name", ["openai", "guide", "preference"])
def test_trl_rows_keep_their_arguments(tmp_path: Path, name: str) -> None:
    export("trl", trl_source(tmp_path, name), tmp_path / "out")
    rows = json.loads(run_script(tmp_path / "out", LOADED).splitlines()[-1])
    assert len(rows) == 20
    for index, row in enumerate(rows):
        if name == "preference":
            found = [row[side][0]["tool_calls"][0]["function"] for side in ("chosen", "rejected")]
            assert {call["name"]: call["arguments"] for call in found} == CALLS
        else:
            del (expected := spelled(ROWS[name][2](index)))["task_name"]
            assert row == expected


TRAINED = """
import json, train
trainer = train.make_trainer()
row = trainer.train_dataset[0]
kept = [token for token in row["labels"] if token != -100]
print(json.dumps(trainer.processing_class.decode(kept)))
"""


@needs_trl
@pytest.mark.slow
def test_trl_trains_the_assistants_turns_only(tmp_path: Path) -> None:
    export("trl", trl_source(tmp_path, "openai"), tmp_path / "out")
    said = json.loads(run_script(tmp_path / "out", TRAINED).splitlines()[-1])
    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "2 + 2"}}</tool_call>'
    assert said == f"{call}<|im_end|>answer 0<|im_end|>"
