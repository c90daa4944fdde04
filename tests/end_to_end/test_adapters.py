"""Runs that train adapters: what they leave, how they go on, and the merged model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from safetensors.torch import load_file

from regimen.adapters import holds_adapters
from regimen.cli.main import main
from regimen.errors import ConfigError, UsageError
from regimen.models import load_model
from regimen.pipelines.models import check_length, check_models
from regimen.pipelines.run import INFO_FILE, STATE_FILE, checkpoints
from regimen.policy.checkpoint import load_state
from regimen.tokens.template import Renderer

LORA = {"enabled": True, "dim": 4, "alpha": 8}
# A and B of q, k, v, o, gate, up, down: rank times inputs and outputs, in two layers
NUM_TRAINED = 2 * 4 * (64 + 48 + 48 + 64 + 80 + 80 + 80)

pytestmark = pytest.mark.usefixtures("one_thread")


def configuration(algorithm: str, model: Path, home: Path, name: str = "run", **section: Any) -> dict[str, Any]:
    section.setdefault("max_num_steps", 2)
    tree = tiny_runs.configuration(algorithm, model, home, home / name, **section)
    tree["policy"] |= {"precision": "float32", "dtensor_cfg": {"lora_cfg": LORA}}
    tree["policy"]["optimizer"] = {"kwargs": {"lr": 1e-2}}
    return tree


def logits(model: Any) -> torch.Tensor:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45).reshape(2, 20)).logits


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_a_run_leaves_adapters_alone_and_goes_on_from_them(algorithm: str, tiny_folder: Path, tmp_path: Path) -> None:
    whole = tiny_runs.run(configuration(algorithm, tiny_folder, tmp_path, "whole"))
    tiny_runs.run(configuration(algorithm, tiny_folder, tmp_path, "parts", max_num_steps=1))
    parts = tiny_runs.run(configuration(algorithm, tiny_folder, tmp_path, "parts"), resume=True)
    assert parts.losses == whole.losses[1:]
    last = checkpoints(parts.folder)[-1]
    weights = [name for name in last.glob("*.safetensors") if name.name != STATE_FILE]
    assert [path.name for path in weights] == ["adapter_model.safetensors"]
    assert not (last / "config.json").exists()
    trained = load_state(last / STATE_FILE)["policy"]["model"]
    assert sum(tensor.numel() for tensor in trained.values()) == NUM_TRAINED
    one, other = (load_file(run / "model" / "adapter_model.safetensors") for run in (whole.folder, parts.folder))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(tensor.abs().max() > 0 for name, tensor in one.items() if "lora_B" in name)
    assert not {STATE_FILE, INFO_FILE} & {path.name for path in (whole.folder / "model").iterdir()}
    assert tiny_runs.figures(whole.folder)[-1]["step"] == 2


def test_the_reference_of_dpo_is_the_policy_without_its_adapters(tiny_folder: Path, tmp_path: Path) -> None:
    result = tiny_runs.run(configuration("dpo", tiny_folder, tmp_path))
    assert result.losses[0] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are equal
    assert abs(result.losses[1] - math.log(2)) > 1e-3


def test_grpo_plays_with_the_merged_weights(tiny_folder: Path, tmp_path: Path) -> None:
    tree = configuration("grpo", tiny_folder, tmp_path, max_num_steps=3, max_num_epochs=3)
    tree["loss_fn"] = {"reference_policy_kl_penalty": 0.1}
    folder = tiny_runs.run(tree).folder
    errors = tiny_runs.column(folder, "train/gen_logprob_error_max")
    assert len(errors) == 3
    assert max(errors) < 1e-3  # sampled by the merged weights, trained beside them
    kl = tiny_runs.column(folder, "train/kl_penalty")
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > 1e-5  # the reference stays where the run began


def test_the_merged_folder_computes_what_the_adapters_do(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    run = tiny_runs.run(configuration("sft", tiny_folder, tmp_path)).folder
    adapted = PeftModel.from_pretrained(load_model(tiny_folder, torch.float32), run / "model").base_model.model
    expected = logits(adapted)
    assert (expected - logits(load_model(tiny_folder, torch.float32))).abs().max() > 0.01
    for source, name in ((run, "of_run"), (checkpoints(run)[-1], "of_step"), (run / "model", "of_model")):
        assert main(["merge", str(source), "--output", str(tmp_path / name)]) == 0
        assert capsys.readouterr().out == f"merged model: {tmp_path / name}\n"
        assert not holds_adapters(tmp_path / name)
        torch.testing.assert_close(logits(load_model(tmp_path / name, torch.float32)), expected, rtol=1e-4, atol=1e-4)
    renderers = [Renderer.load(folder) for folder in (tmp_path / "of_run", tiny_folder)]
    assert renderers[0].fingerprint == renderers[1].fingerprint
    assert renderers[0].template_fingerprint == renderers[1].template_fingerprint
    # What evaluate, collect and serve do with the name of a model.
    check_models([str(run / "model")])
    torch.testing.assert_close(logits(load_model(run / "model", torch.float32)), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="4096 positions"):
        check_length(str(run / "model"), 5000, "max_sequence_length")


def test_merge_and_training_say_what_they_cannot_take(tiny_folder: Path, tmp_path: Path) -> None:
    adapters = tiny_runs.run(configuration("sft", tiny_folder, tmp_path, max_num_steps=1)).folder / "model"
    with pytest.raises(ConfigError, match=r"policy.model_name: .* holds LoRA adapters, not a model.*regimen merge"):
        tiny_runs.run(configuration("sft", adapters, tmp_path, "second"))
    tree = configuration("sft", tiny_folder, tmp_path)
    tree["policy"]["dtensor_cfg"]["lora_cfg"] = {**LORA, "dim": 8}
    with pytest.raises(
        UsageError, match=r"changed since the run was begun: policy.dtensor_cfg.lora_cfg.dim \(4 -> 8\)"
    ):
        tiny_runs.run(tree, resume=True, allow_changed=True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{model}", "--output", "{new}"], "holds a whole model: nothing is to be merged"),
        (["{new}", "--output", "{new}"], "there is no such folder"),
        (["{empty}", "--output", "{new}"], "holds no adapter_config.json"),
        (["{adapters}", "--output", "{model}"], "the folder holds a model"),
        (["{adapters}", "--output", "{other}"], "holds something else than a model"),
        (["{adapters}", "--output", "{new}"], "has no base_model_name_or_path"),
        (["{moved}", "--output", "{new}"], "which holds no model now"),
        (["{adapters}", "--output", "{new}", "--base", "{model}"], "no adapters can be loaded"),
    ],
)
def test_merge_refuses_in_one_line(
    words: list[str], said: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {
        "model": tiny_folder,
        **{name: tmp_path / name for name in ("new", "empty", "adapters", "other", "moved")},
    }
    for name in ("empty", "adapters", "other", "moved"):
        places[name].mkdir()
    (places["adapters"] / "adapter_config.json").write_text("{}")
    (places["moved"] / "adapter_config.json").write_text('{"base_model_name_or_path": "/nowhere/model"}')
    (places["other"] / "notes.txt").write_text("mine")
    assert main(["merge", *(word.format(**places) for word in words)]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not places["new"].exists()
    assert [path.name for path in places["other"].iterdir()] == ["notes.txt"]
