"""Several optimiser steps for one batch of episodes: the pipeline against a plain loop on padded rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import residue
import torch
from torch import Tensor

from regimen.config.load import assignment, load_train_config
from regimen.pipelines.train import train
from regimen.rollouts.turns import TokenSequence, sequences_of, turns_of
from regimen.tracking.jsonl import read_metrics

STEPS, TASKS, GROUP, PART = 2, 2, 4, 4
RATE = 3e-3  # so large that ratios of the second step are clipped


def run_pipeline(model: Path, folder: Path, *, resume: bool = False, steps: int = STEPS) -> list[dict[str, Any]]:
    values = {
        "policy.model_name": str(model),
        "policy.tokenizer.chat_template": "tools",
        "policy.precision": "float32",
        "policy.scheduler": [{"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"start_factor": 0.5,
                                                                                      "total_iters": 1}}],
        "policy.max_total_sequence_length": 1024,
        "policy.train_global_batch_size": PART,
        "policy.optimizer.kwargs": {"lr": RATE, "weight_decay": 0.0, "betas": [0.9, 0.999], "eps": 1e-8},
        "policy.generation.max_new_tokens": 10,
        "data.train.env_name": f"{residue.__file__}:Residue",
        "data.train.dataset_name": "Environment",
        "data.shuffle": False,
        "grpo.num_prompts_per_step": TASKS,
        "grpo.num_generations_per_prompt": GROUP,
        "grpo.max_num_steps": steps,
        "grpo.val_period": 0,
        "loss_fn.reference_policy_kl_penalty": 0.0,
        "checkpointing.checkpoint_dir": str(folder),
        "checkpointing.save_period": 1,
        "logger.log_dir": str(folder),
    }  # fmt: skip
    train(load_train_config("grpo", [assignment(key, value) for key, value in values.items()]), resume=resume)
    return [row for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]


def logprobs(model: Any, sequences: list[TokenSequence]) -> list[Tensor]:
    """Log-probabilities of the sampled tokens of each sequence, each by a pass of its own."""
    found = []
    for sequence in sequences:
        ids = torch.tensor(sequence.ids)
        logits = model(input_ids=ids[None]).logits[0]
        every = logits[:-1].float().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        found.append(torch.cat([every[start - 1 : stop - 1] for start, stop in sequence.spans]))
    return found


def plain_steps(model: Any, folder: Path) -> list[dict[str, float]]:
    """Train on the pipeline's own episodes; figures of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    steps = []
    for step in range(STEPS):
        rows = [json.loads(line) for line in (folder / "rollouts" / f"step_{step + 1}.jsonl").read_text().splitlines()]
        rows.sort(key=lambda row: (row["_ng_task_index"], row["_ng_rollout_index"]))
        sequences = [sequences_of(turns_of(row["response"]["output"]))[0] for row in rows]
        rewards = np.array([row["reward"] for row in rows]).reshape(TASKS, GROUP)
        others = [(group[i], np.delete(group, i)) for group in rewards for i in range(GROUP)]
        spreads = [rest.std(ddof=1) + 1e-6 if np.ptp(rest) > 0 else 1.0 for _, rest in others]
        advantages = [(own - rest.mean()) / spread for (own, rest), spread in zip(others, spreads, strict=True)]
        with torch.no_grad():
            before = logprobs(model, sequences)  # once, for both optimiser steps
        losses, norms, ratios = [], [], []
        for start in range(0, len(rows), PART):
            part = range(start, start + PART)
            now = logprobs(model, [sequences[i] for i in part])
            total, size = torch.zeros(()), sum(sequences[i].num_trained for i in part)
            for i, values in zip(part, now, strict=True):
                ratio = (values - before[i]).exp()
                weight = (before[i] - torch.tensor(sequences[i].logprobs)).exp().clamp(max=2)
                clipped = ratio.clamp(0.8, 1.2)
                total = total - (weight * torch.minimum(ratio * advantages[i], clipped * advantages[i])).sum() / size
                ratios += [ratio.detach()] if advantages[i] else []  # figures are of what was computed
            optimizer.zero_grad()
            total.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
            for group in optimizer.param_groups:
                group["lr"] = RATE * (0.5 if step == 0 else 1.0)  # the schedule counts steps, not optimiser steps
            optimizer.step()
            losses.append(total.item())
        every = torch.cat(ratios)
        outside = ((every < 0.8) | (every > 1.2)).float().mean().item()
        steps.append(
            {"loss": np.mean(losses), "grad_norm": np.mean(norms), "probs_ratio": every.mean().item(), "cut": outside}
        )
    return steps


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("several") / "run"
    return folder, run_pipeline(tiny_folder, folder)


def test_several_updates_equal_a_plain_loop(pipeline: tuple[Path, list], tiny_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder, metrics = pipeline
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32, attn_implementation="eager")
    expected = plain_steps(model, folder)
    for name in ("loss", "grad_norm", "probs_ratio"):
        found = [row[f"train/{name}"] for row in metrics]
        assert found == pytest.approx([step[name] for step in expected], rel=2e-4, abs=1e-6), name
    assert [row["train/ratio_clipped_fraction"] for row in metrics] == pytest.approx([s["cut"] for s in expected])
    assert expected[0]["cut"] > 0, "the clip must bite, or the test says little"
    assert [row["train/num_updates"] for row in metrics] == [2.0, 2.0]
    assert [row["train/lr"] for row in metrics] == pytest.approx([RATE / 2, RATE])
    assert max(row["train/gen_logprob_error_max"] for row in metrics) < 1e-4  # compared before the weights move


def test_a_run_resumes_between_its_steps(
    pipeline: tuple[Path, list], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regimen.policy.local import LocalPolicy

    original, calls = LocalPolicy.train_step, list[int]()

    def dies(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:  # in the second optimiser step of the second step
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPolicy, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(tiny_folder, tmp_path / "run")
    resumed = run_pipeline(tiny_folder, tmp_path / "run", resume=True)
    assert [row["train/loss"] for row in resumed] == [row["train/loss"] for row in pipeline[1]]
    assert [row["train/grad_norm"] for row in resumed] == [row["train/grad_norm"] for row in pipeline[1]]
