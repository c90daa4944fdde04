"""The memory that `regimen plan` predicts beside the peak of the real `regimen train`, each in a process of its own.

    python benchmarks/plan.py [--only dpo_pairs dpo_async] [--model MODEL] [--output plan.json]

The configuration under `CALIBRATION` was looked at while the formula was written, those under `HELD_OUT` were not. Two
steps each, so that the second has the optimiser's moments. Prints a table; `--output` adds each result as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from regimen.gym.environment import Environment, Split, Task, Verdict

SOURCE = Path(__file__).resolve().parents[1] / "src"
PROGRAM = """
import sys
from regimen.cli.main import main
from regimen.pipelines.machine import peak_bytes
code = main(sys.argv[1:])
print(peak_bytes())
sys.exit(code)
"""
GRPO = {"num_prompts_per_step": 2, "num_generations_per_prompt": 4}
CALIBRATION: dict[str, dict[str, Any]] = {
    "sft_packed": {"policy": {"train_global_batch_size": 4, "train_micro_batch_tokens": 1024}},
}
HELD_OUT: dict[str, dict[str, Any]] = {
    "dpo_pairs": {"policy": {"train_global_batch_size": 2, "train_micro_batch_tokens": 512}},
    "grpo_reference": {
        "policy": {"train_micro_batch_tokens": 400, "generation": {"max_new_tokens": 64, "max_batch_size": 32}},
        "grpo": GRPO,
        "loss_fn": {"reference_policy_kl_penalty": 0.01},
    },
    "sft_checkpointing": {
        "policy": {
            "train_global_batch_size": 6,
            "train_micro_batch_tokens": 768,
            "activation_checkpointing": True,
        },
    },
    "dpo_async": {
        "policy": {"train_global_batch_size": 3, "train_micro_batch_tokens": 900},
        "checkpointing": {"is_async": True},
    },
    "grpo_updates": {
        "policy": {
            "train_global_batch_size": 4,
            "train_micro_batch_tokens": 600,
            "generation": {"max_new_tokens": 96, "max_batch_size": 8},
        },
        "grpo": GRPO,
        "loss_fn": {"reference_policy_kl_penalty": 0},
    },
}


class Letters(Environment):
    """A reward that differs from answer to answer: the share of small letters."""

    name = "letters"

    def tasks(self, split: Split, num_tasks: int | None = None) -> list[Task]:
        """Each asks for another number of letters."""
        first = {"train": 0, "validation": 100, "test": 200}[split]
        params = [{"input": f"Write {first + index} letters."} for index in range(num_tasks or 8)]
        return [Task(index, {"responses_create_params": params[index]}) for index in range(len(params))]

    async def verify(self, session: Any, task: Task, output: list[dict[str, Any]]) -> Verdict:  # noqa: ARG002
        """The share of the last message's characters."""
        text = output[-1]["content"][0]["text"] if output else ""
        return Verdict(sum(character.islower() for character in text) / max(1, len(text)))


def rows(algorithm: str, number: int) -> list[dict[str, Any]]:
    """Sums of 8 to 40 numbers, with an answer that repeats them; for DPO a wrong one beside it."""
    randomness = random.Random(number)
    made: list[dict[str, Any]] = []
    for _ in range(number):
        numbers = [randomness.randrange(1000) for _ in range(randomness.randrange(8, 40))]
        text = " + ".join(map(str, numbers))
        question, answer = f"Add {', '.join(map(str, numbers))}.", f"{text} = {sum(numbers)}"
        if algorithm == "sft":
            made.append({"input": question, "output": answer})
        else:
            made.append({"prompt": question, "chosen": answer, "rejected": f"{text} = {sum(numbers) + 1}, I think."})
    return made


def configuration(name: str, changes: dict[str, Any], model: str, home: Path) -> Path:
    """Write the configuration of a run, and its rows; returns its file."""
    algorithm = name.split("_")[0]
    tree: dict[str, Any] = {
        "defaults": algorithm,
        "data": {"train": {"dataset_name": "Environment", "env_name": f"{Path(__file__).resolve()}:Letters"}},
        algorithm: {"max_num_steps": 2, "val_period": 0, "val_at_start": False, **changes.get(algorithm, {})},
        "logger": {"tensorboard_enabled": False},
        "loss_fn": changes.get("loss_fn", {}),
    }
    tree["policy"] = {
        "model_name": model,
        "max_total_sequence_length": 1024,
        "precision": "float32",
        **changes["policy"],
    }
    folder = {"checkpoint_dir": str(home / name), "metric_name": None}
    tree["checkpointing"] = {**folder, **changes.get("checkpointing", {})}
    if algorithm != "grpo":
        del tree["loss_fn"]
        data = home / f"{name}.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows(algorithm, 12)), encoding="utf-8")
        kind = "ResponseDataset" if algorithm == "sft" else "BinaryPreferenceDataset"
        tree["data"] = {"train": {"dataset_name": kind, "data_path": str(data)}}
    if algorithm == "dpo":
        tree["dpo"]["cache_reference_logprobs"] = False
    file = home / f"{name}.json"
    file.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return file


def output_of(words: list[str]) -> list[str]:
    """What a command prints; the peak of its memory is the last line."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()


def compare(name: str, changes: dict[str, Any], model: str, home: Path) -> dict[str, Any]:
    """One configuration: predicted and measured."""
    file = configuration(name, changes, model, home)
    planned = json.loads(output_of(["plan", str(file), "--no-probe", "--json"])[0])
    measured = int(output_of(["train", str(file)])[-1])
    return {
        "name": name,
        "held_out": name in HELD_OUT,
        "tokens": planned["largest_micro_batch"],
        "predicted": planned["needed"],
        "measured": measured,
        "error": planned["needed"] / measured - 1,
        "memory": planned["memory"],
    }


def main() -> None:
    """Compare what was asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = {**CALIBRATION, **HELD_OUT}
    parser.add_argument("--only", nargs="+", choices=list(every), default=list(every))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    print(f"{'configuration':20} {'held out':8} {'tokens':>6} {'predicted':>9} {'measured':>9} {'error':>6}  (GB)")
    for name in arguments.only:
        with tempfile.TemporaryDirectory() as home:
            found = compare(name, every[name], arguments.model, Path(home))
        sizes = f"{found['predicted'] / 1e9:9.2f} {found['measured'] / 1e9:9.2f}"
        held_out = "yes" if found["held_out"] else "no"
        print(f"{name:20} {held_out:8} {found['tokens']:6} {sizes} {found['error']:+6.1%}", flush=True)
        if arguments.output is not None:
            with arguments.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
