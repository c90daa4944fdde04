"""Whole runs of models whose past is more than keys and values: a hybrid in rows, a sliding window in forests."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import tiny_runs

WINDOWS = {"sliding_window": 5, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("nemotron_h", "grpo"),
        *[
            pytest.param(kind, algorithm, marks=pytest.mark.slow)
            for kind, algorithm in [
                *[("nemotron_h", "sft"), ("nemotron_h", "dpo"), ("mamba2", "grpo"), ("lfm2", "grpo")],
                *[("gemma3", algorithm) for algorithm in ("sft", "dpo", "grpo")],
            ]
        ],
    ],
)
def test_a_run(kind: str, algorithm: str, tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.save_tiny_model(tmp_path / "tiny", kind=kind, **(WINDOWS if kind == "gemma3" else {}))
    tree = tiny_runs.configuration(algorithm, model, tmp_path, tmp_path / "run", max_num_steps=2)
    tree["policy"]["precision"] = "float32"
    result = tiny_runs.run(tree)
    assert result.num_steps == 2
    computed, alone = (
        tiny_runs.column(tmp_path / "run", f"train/{name}") for name in ("computed_tokens", "tokens_without_sharing")
    )
    said = capsys.readouterr().err
    if kind == "gemma3":
        assert sum(computed) < sum(alone)
        assert "no prefixes are shared" not in said
    else:
        assert computed == alone
        assert "note: no prefixes are shared, each sequence is a row: tokens are mixed outside attention, by" in said
    if algorithm == "grpo":  # the sampler, with a cache of its own, and the policy agree on every token
        assert "note: only prompts of one length are answered together" in said
        assert max(tiny_runs.column(tmp_path / "run", "train/gen_logprob_error_max")) < 1e-4
