"""The index pass against msgspec decoding the same fields alone, in a plain loop over the lines, one process each.

    python benchmarks/index.py [--megabytes 200] [--file rollouts.jsonl]

Without a file, realistic multi-turn rows of about 12 KB are made, half of them with token ids, 8 repeats per task in
shuffled order. Both are timed three times in turn, in processor time, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from regimen.rollouts.index import RolloutIndex

WORDS = ("the", "order", "total", "is", "checked", "with", "one", "tool", "call", "and", "its", "result", "compared")


class Item(msgspec.Struct, gc=False):
    generation_token_ids: list[int] | None = None


class Response(msgspec.Struct, gc=False):
    output: list[Item]
    status: Any = None


class Request(msgspec.Struct, gc=False):
    input: msgspec.Raw
    instructions: msgspec.Raw = msgspec.Raw(b"")
    tools: msgspec.Raw = msgspec.Raw(b"")


class Row(msgspec.Struct, gc=False):
    responses_create_params: Request
    response: Response
    reward: Any = None
    regimen: Any = None
    mask_sample: Any = None
    failure_kind: Any = None
    failure_reason: Any = None
    agent_ref: Any = None
    failure_class: Any = msgspec.field(name="_ng_failure_class", default=None)
    failure_message: Any = msgspec.field(name="_ng_failure_message", default=None)
    environment: Any = msgspec.field(name="_ng_environment_server", default=None)
    task: Any = msgspec.field(name="_ng_task_index", default=None)
    repeat: Any = msgspec.field(name="_ng_rollout_index", default=None)


def text(chance: random.Random, num_words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(num_words))


def make_row(chance: random.Random, task: int, repeat: int) -> dict[str, Any]:
    has_tokens = repeat % 2 == 0
    ids = [chance.randrange(150_000) for _ in range(120)]
    output: list[dict[str, Any]] = []
    for turn in range(4):
        call = {"type": "function_call", "name": "price_of", "call_id": f"call_{turn}", "status": "completed"}
        call["arguments"] = json.dumps({"article": text(chance, 3), "count": chance.randrange(9)})
        if has_tokens:
            sampled = [chance.randrange(150_000) for _ in range(30)]
            call |= {"prompt_token_ids": list(ids), "generation_token_ids": sampled}
            call["generation_log_probs"] = [-chance.random() for _ in sampled]
            ids += sampled
        reasoning = {"type": "reasoning", "summary": [{"type": "summary_text", "text": text(chance, 100)}]}
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": text(chance, 60)}
        output += [reasoning, call, result]
    content = [{"type": "output_text", "text": text(chance, 60), "annotations": []}]
    output.append({"type": "message", "role": "assistant", "content": content, "status": "completed"})
    schema = {"type": "object", "properties": {"article": {"type": "string", "description": text(chance, 12)}}}
    tools = [
        {"type": "function", "name": f"tool_{n}", "description": text(chance, 20), "parameters": schema}
        for n in range(4)
    ]
    asked = [{"role": "system", "content": text(chance, 150)}, {"role": "user", "content": text(chance, 80)}]
    return {
        "responses_create_params": {"input": asked, "tools": tools, "temperature": None, "metadata": None},
        "response": {"id": "resp", "object": "response", "status": "completed", "output": output},
        "reward": float(chance.random() < 0.5),
        "accuracy": chance.random(),
        "mask_sample": False,
        "failure_kind": None,
        "agent_ref": {"name": "shop_agent"},
        "_ng_task_index": task,
        "_ng_rollout_index": repeat,
    }


def make_file(path: Path, megabytes: int) -> None:
    chance = random.Random(0)
    patterns = [make_row(chance, 0, repeat % 8) for repeat in range(400)]
    size = len(json.dumps(patterns)) // len(patterns)
    places = [(task, repeat) for task in range((megabytes << 20) // (size * 8)) for repeat in range(8)]
    chance.shuffle(places)
    with path.open("w") as file:
        for task, repeat in places:
            row = chance.choice(patterns) | {"_ng_task_index": task, "_ng_rollout_index": repeat}
            file.write(json.dumps(row, separators=(",", ":")) + "\n")


def decode_alone(path: Path) -> int:
    decode, num_rows = msgspec.json.Decoder(Row).decode, 0
    with path.open("rb") as file:
        for line in file:
            decode(line)
            num_rows += 1
    return num_rows


def build_index(path: Path) -> int:
    with RolloutIndex.build(path) as index:
        return index.num_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--file", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.file or Path(folder) / "rollouts.jsonl"
        if arguments.file is None:
            make_file(path, arguments.megabytes)
        best = {}
        for _ in range(3):
            for work in (decode_alone, build_index):
                start = time.process_time()
                num_rows = work(path)
                seconds = time.process_time() - start
                best[work] = min(seconds, best.get(work, seconds))
        megabytes = path.stat().st_size / 1e6
        for work, seconds in best.items():
            print(f"{work.__name__:13}{num_rows / seconds:10,.0f} rows/s{megabytes / seconds:9,.0f} MB/s")
        print(f"the index has {best[decode_alone] / best[build_index]:.0%} of the speed of decoding alone")


if __name__ == "__main__":
    main()
