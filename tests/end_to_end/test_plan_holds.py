"""The predicted peak of memory against that of the real run: `regimen plan` and `regimen train`, each a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_runs
import yaml

SOURCE = Path(__file__).parents[2] / "src"
# Large enough that weights and activations outweigh the libraries, small enough for a minute.
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
PROGRAM = """
import sys
from regimen.cli.main import main
from regimen.pipelines.machine import peak_bytes
code = main(sys.argv[1:])
print(peak_bytes())
sys.exit(code)
"""


@pytest.fixture(scope="module")
def model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_tiny_model(tmp_path_factory.mktemp("model") / "model", **SHAPE)


def output_of(words: list[str]) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [
        ("sft", {"train_micro_batch_tokens": 1600, "train_global_batch_size": 8}),
        ("dpo", {"train_micro_batch_tokens": 700, "precision": "bfloat16", "activation_checkpointing": True}),
    ],
)
def test_the_prediction_is_within_a_fifth_of_the_peak(
    model: Path, tmp_path: Path, algorithm: str, policy: dict[str, Any]
) -> None:
    tree = tiny_runs.configuration(algorithm, model, tmp_path, tmp_path / "run", max_num_steps=2, max_num_epochs=2)
    tree["policy"] |= {"precision": "float32", **policy}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    planned = json.loads(output_of(["plan", str(file), "--no-probe", "--json"])[0])
    measured = int(output_of(["train", str(file)])[-1])
    predicted, libraries = planned["needed"], planned["memory"]["libraries"]
    assert abs(predicted - measured) < 0.2 * measured
    assert predicted > 1.5 * libraries  # else it would hold whatever the arithmetic
