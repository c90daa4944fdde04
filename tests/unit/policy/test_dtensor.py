"""Two processes with different rows and unequal token counts against one process: losses, gradients, weights, state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import many_processes as many
import numpy as np
import pytest
from torch.distributed.checkpoint import FileSystemReader
from training_processes import run_two

from regimen.policy.dtensor import _padded, divide
from regimen.policy.ranks import connected
from regimen.tokens.forest import TrainingSequence, build_forest

SCRIPT = Path(many.__file__)
TIMEOUT = 300


def results_of_two(part: str, folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found; each has one thread and `TIMEOUT` seconds."""
    codes, said = run_two(str(SCRIPT), part, str(folder), timeout=TIMEOUT)
    assert codes == [0, 0], "\n".join(said)
    return [json.loads((folder / f"{part}_{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the training state that one process left after two steps."""
    folder = tmp_path_factory.mktemp("many")
    with connected():
        policy = many.sharded_policy("llama")
        many.figures(policy, "sft", 2)
        policy.save_shards(folder / "of_one")
        (folder / "of_one.json").write_text(json.dumps(policy.state()))
        adapted = many.sharded_policy("llama", lora=many.LORA)
        many.figures(adapted, "sft", 2)
        adapted.save_shards(folder / "adapters_of_one")
        (folder / "adapters_of_one.json").write_text(json.dumps(adapted.state()))
    return folder


@pytest.fixture(scope="module")
def quick(folder: Path) -> list[dict[str, Any]]:
    return results_of_two("quick", folder)


@pytest.fixture(scope="module")
def slow(folder: Path) -> list[dict[str, Any]]:
    return results_of_two("slow", folder)


def assert_same(found: dict[str, Any], expected: dict[str, Any], first: int = 0) -> None:
    """Every figure of training; `first`: the step at which `found` begins."""
    for name in ("loss", "grad_norm"):
        assert found[name] == pytest.approx(expected[name][first:], rel=1e-5, abs=1e-5), name
    assert found["computed_tokens"] == expected["computed_tokens"][first:]
    for one, other in zip(found["metrics"], expected["metrics"][first:], strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    for name in ("evaluated", "alone"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name
    for one, other in zip(found["logprobs"], expected["logprobs"], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)
    assert found["weights"] == pytest.approx(expected["weights"], abs=1e-3)


def test_the_shares_are_unequal() -> None:
    forests = many.forests_of("sft")
    sizes = [forest.num_tokens for forest in forests]
    shares = divide(sizes, 2)
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    assert len({sum(sizes[index] for index in share) for share in shares}) == 2
    assert len(many.forests_of("sft", 1000)) == 1  # the other process has nothing to compute


@pytest.mark.parametrize("case", many.QUICK, ids=many.name_of)
def test_two_processes_train_as_one(case: tuple[str, str, str], quick: list[dict[str, Any]]) -> None:
    expected = many.figures(many.local_policy(case[0]), case[1])
    for found in quick:
        assert_same(found[many.name_of(case)], expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", many.SLOW, ids=many.name_of)
def test_two_processes_train_other_models_as_one(case: tuple[str, str, str], slow: list[dict[str, Any]]) -> None:
    expected = many.figures(many.local_policy(case[0]), case[1])
    for found in slow:
        assert_same(found[many.name_of(case)], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["activation_checkpointing", "cpu_offload"])
def test_saving_memory_changes_no_number(name: str, slow: list[dict[str, Any]]) -> None:
    assert_same(slow[0][name], many.figures(many.local_policy("llama"), "sft"))


@pytest.mark.slow
def test_bfloat16_computes_near_float32_masters(slow: list[dict[str, Any]]) -> None:
    expected = many.figures(many.local_policy("llama"), "sft")["loss"]
    assert slow[0]["bfloat16"]["loss"] == pytest.approx(expected, rel=0.01)
    assert slow[0]["bfloat16"]["loss"] != expected


def test_two_processes_go_on_from_what_one_left(quick: list[dict[str, Any]]) -> None:
    expected = many.figures(many.local_policy("llama"), "sft")
    for found in quick:
        assert_same(found["resumed"], expected, first=2)


def test_one_process_goes_on_from_what_two_left(quick: list[dict[str, Any]], folder: Path) -> None:
    expected = many.figures(many.local_policy("llama"), "sft")
    with connected():
        policy = many.sharded_policy("llama")
        policy.load_shards(folder / "of_two")
        policy.load_state(json.loads((folder / "of_two.json").read_text()))
        assert_same(many.figures(policy, "sft", 1), expected, first=2)


def test_the_gathered_model_is_an_ordinary_folder(quick: list[dict[str, Any]], folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    sums = {name: tensor.double().sum().item() for name, tensor in model.named_parameters()}
    assert sums == pytest.approx(quick[0]["saved"]["weights"], abs=1e-6)
    config = json.loads((folder / "model" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "float32")


@pytest.mark.parametrize("case", many.ADAPTED, ids=many.name_of)
def test_two_processes_train_adapters_as_one(case: tuple[str, str, str], quick: list[dict[str, Any]]) -> None:
    model, algorithm, _ = case
    expected = many.figures(many.local_policy(model, lora=many.LORA), algorithm)
    base = many.local_policy(model).logprobs(many.forests_of(algorithm))
    for found in quick:
        assert_same(found[f"adapted-{many.name_of(case)}"], expected)
        for reference in found[f"reference-{many.name_of(case)}"]:
            for one, other in zip(reference, base, strict=True):
                np.testing.assert_allclose(one, other, atol=1e-5)


def test_two_processes_go_on_with_the_adapters_that_one_left(quick: list[dict[str, Any]], folder: Path) -> None:
    expected = many.figures(many.local_policy("llama", lora=many.LORA), "sft")
    for found in quick:
        assert_same(found["adapted-resumed"], expected, first=2)
    kept = FileSystemReader(folder / "adapters_of_one").read_metadata().state_dict_metadata
    assert sum(name.startswith("model.") for name in kept) == 2 * 2 * 7  # A and B of seven products in two layers
    assert all("lora_" in name for name in kept if name.startswith("model."))


def test_gathered_adapters_are_a_folder_of_peft(quick: list[dict[str, Any]], folder: Path) -> None:
    from peft import PeftModel

    model, algorithm, division = many.ADAPTED[-1]
    merged = PeftModel.from_pretrained(many.tiny_model(model), folder / "adapters").merge_and_unload()
    weights = dict(merged.named_parameters())
    expected = quick[0][f"adapted-{model}-{algorithm}-{division}"]["weights"]
    assert {name: weights[name].double().sum().item() for name in expected} == pytest.approx(expected, abs=1e-3)


def test_what_cannot_be_divided_is_refused_by_name(quick: list[dict[str, Any]]) -> None:
    assert "tensor parallel is not implemented for this model: it holds mlp.gate" in quick[0]["experts"]
    assert "tensor parallel is not implemented for this model: tokens are mixed outside attention" in quick[0]["mixers"]
    assert quick[0]["processes"].startswith("ConfigError: policy.dtensor_cfg.tensor_parallel_size: is 3, but there are")


def test_values_are_gathered_in_the_order_of_ranks(quick: list[dict[str, Any]]) -> None:
    assert [found["gathered"] for found in quick] == [[0, 1], [0, 1]]


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    from regimen.errors import RunError

    with connected(), pytest.raises(RunError, match="the training state cannot be read"):
        many.sharded_policy("llama").load_shards(tmp_path / "nothing")


def test_sizes_are_divided_evenly() -> None:
    # 9 | 7; then 5 to the second (12), 4 to the first (13), 3 to the second (15)
    assert divide([3, 9, 5, 7, 4], 2) == [[1, 4], [3, 2, 0]]
    assert divide([3], 3) == [[0], [], []]


def test_padding_is_seen_by_nothing() -> None:
    forest = build_forest([TrainingSequence([5, 6, 7], [(1, 3)])])
    padded = _padded(forest, 4)
    assert padded.num_tokens == 4
    assert padded.visible()[:3, :3].tolist() == forest.visible().tolist()
    assert padded.visible()[3].tolist() == [False, False, False, True]
    assert not padded.visible()[:3, 3].any()
    assert _padded(forest, 3).num_tokens == 3
