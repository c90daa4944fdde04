"""Every code is raised by its fixture and by nothing else, clean sets raise none, and every code is documented."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from regimen.config.load import load_train_config
from regimen.diagnosis.codes import CODES, ORDER
from regimen.pipelines.doctor import doctor
from regimen.pipelines.inspect import inspect_rollouts

ROOT = Path(__file__).parents[3]
_spec = importlib.util.spec_from_file_location("diagnosis_fixtures", Path(__file__).with_name("fixtures.py"))
assert _spec is not None
assert _spec.loader is not None
fixtures = importlib.util.module_from_spec(_spec)
sys.modules["diagnosis_fixtures"] = fixtures  # dataclasses look their module up
_spec.loader.exec_module(fixtures)

INSPECTED = fixtures.inspected_cases(lambda text: [0] * len(text))  # for their names alone
DOCTORED = fixtures.doctored_cases()
DATASETS = {"sft": "openai_format", "dpo": "PreferenceDataset", "grpo": "NemoGymDataset"}


@pytest.fixture(scope="module")
def model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder without weights: tokenizer, template and config.json."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 258, **tiny.SHAPE}))
    return folder


@pytest.fixture(scope="module")
def inspected(tiny: ModuleType) -> Any:
    tokenizer = tiny.tiny_tokenizer()
    return fixtures.inspected_cases(lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])


def inspect_case(case: Any, model: Path, folder: Path) -> Any:
    path = fixtures.write_rows(folder / "rollouts.jsonl", case.rows)
    return inspect_rollouts(
        path,
        model=str(model) if case.with_model else None,
        chat_template=case.template,
        max_length=case.max_length,
    )


def doctor_case(case: Any, model: Path, folder: Path) -> Any:
    settings = [
        f"policy.model_name={model}",
        "policy.tokenizer.chat_template=default",
        "policy.max_total_sequence_length=256",
        *([] if case.algorithm == "grpo" else ["policy.train_global_batch_size=8"]),
    ]
    for split in ("train", "validation"):
        rows = getattr(case, split)
        if rows:
            raw = case.raw_line if split == "train" else ""
            path = fixtures.write_rows(folder / f"{split}.jsonl", rows, raw)
            settings += [f"data.{split}.dataset_name={DATASETS[case.algorithm]}", f"data.{split}.data_path={path}"]
    if not case.validation:
        settings += [f"{case.algorithm}.val_period=0", f"{case.algorithm}.val_at_start=false"]
    config = load_train_config(case.algorithm, [*settings, *case.settings])
    return doctor(config, device_memory=case.device_memory)


@pytest.mark.parametrize("code", INSPECTED)
def test_rollouts_raise_their_code_alone(code: str, inspected: Any, model: Path, tmp_path: Path) -> None:
    inspection = inspect_case(inspected[code], model, tmp_path)
    assert {found.code for found in inspection.findings} == {code}
    (found,) = inspection.findings
    assert found.count > 0
    assert found.message
    assert found.fix


@pytest.mark.parametrize("code", DOCTORED)
def test_configurations_raise_their_code_alone(code: str, model: Path, tmp_path: Path) -> None:
    checkup = doctor_case(DOCTORED[code], model, tmp_path)
    assert {found.code for found in checkup.findings} == {code}
    assert checkup.ok is all(found.severity != "error" for found in checkup.findings)


def test_every_code_has_a_fixture() -> None:
    assert {*INSPECTED, *DOCTORED} == set(CODES)


@pytest.mark.parametrize("name", fixtures.clean_rollouts())
def test_clean_rollouts_raise_nothing(name: str, model: Path, tmp_path: Path) -> None:
    path = fixtures.write_rows(tmp_path / "rollouts.jsonl", fixtures.clean_rollouts()[name])
    assert inspect_rollouts(path).findings == []
    assert inspect_rollouts(path, model=str(model), max_length=1000).findings == []


@pytest.mark.parametrize("name", fixtures.clean_configurations())
def test_clean_configurations_raise_nothing(name: str, model: Path, tmp_path: Path) -> None:
    checkup = doctor_case(fixtures.clean_configurations()[name], model, tmp_path)
    assert checkup.findings == []
    assert checkup.ok


def test_row_problems_name_their_row(inspected: Any, model: Path, tmp_path: Path) -> None:
    first = ["empty_answers", "malformed_arguments", "tools_missing", "no_ground_truth", "tokens_do_not_continue",
             "template_drops_tools", "missing_stop", "over_length", "other_tokenizer", "logprobs_not_finite",
             "leaked_answer", "reward_out_of_range"]  # fmt: skip
    last = {"bad_rows": 401, "failure_as_zero": 401, "duplicate_rows": 401, "task_with_several_prompts": 2,
            "tool_schemas_differ": 2, "arguments_keys_differ": 2}  # fmt: skip
    for code, line in {**dict.fromkeys(first, 1), **last}.items():
        (found,) = inspect_case(inspected[code], model, tmp_path).findings
        assert (code, found.example.line) == (code, line)


def test_every_code_has_its_section_and_severity_in_the_documentation() -> None:
    text = (ROOT / "docs" / "diagnosis.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `(\w+)`: (\w+)", text, re.MULTILINE)
    assert dict(sections) == {code: known.severity for code, known in CODES.items()}
    assert len(sections) == len(CODES)
    assert {known.severity for known in CODES.values()} == set(ORDER)
