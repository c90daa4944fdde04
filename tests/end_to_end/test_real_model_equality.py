"""The real small model in float32: training on a forest is training on padded rows, and sampler and policy agree."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TOOLS = [{"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder() -> Path:
    from regimen.pipelines.small_model import small_model

    return small_model()


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Any:
    from regimen.tokens.template import Renderer

    return Renderer.load(folder)


def episodes(renderer: Any) -> list[Any]:
    """Four episodes of one task, in pairs: they share the prompt, two share a call and its result, two are equal."""
    from regimen.tokens.forest import TrainingSequence

    arguments = {"name": "calculator", "arguments": '{"expression": "47 * 23"}'}
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": arguments}]}
    asked = [{"role": "user", "content": "What is 47 × 23?"}]
    used = [*asked, call, {"role": "tool", "tool_call_id": "c", "content": "1081"}]
    answers = [
        (used, "The answer is 1081."),
        (used, "The answer is 1,081, I think."),
        (asked, "It is 1000."),
        (asked, "It is 1000."),
    ]
    random = np.random.default_rng(0)
    made = []
    for row, (messages, answer) in enumerate(answers):
        [sequence] = renderer.conversation([*messages, {"role": "assistant", "content": answer}], TOOLS)
        reference = random.uniform(-3, -1, sequence.num_trained).astype(np.float32)
        made.append(
            TrainingSequence(
                sequence.ids,
                sequence.spans,
                pair=row // 2,
                is_chosen=row % 2 == 0,
                advantage=np.full(sequence.num_trained, random.normal(), np.float32),
                sampled_logprob=reference,
                previous_logprob=reference + np.float32(0.1),
                reference_logprob=reference,
            )
        )
    return made


def losses() -> dict[str, Any]:
    from regimen.algorithms.losses import (
        PolicyGradientOptions,
        PreferenceOptions,
        dpo_loss,
        policy_gradient_loss,
        sft_loss,
    )

    return {
        "sft": sft_loss,
        "dpo": lambda logprob, batch: dpo_loss(logprob, batch, PreferenceOptions()),
        "grpo": lambda logprob, batch: policy_gradient_loss(logprob, batch, PolicyGradientOptions()),
    }


def plain_logprobs(model: Any, sequences: list[Any]) -> Any:
    import torch

    width = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[row, : len(sequence.ids)] = 1
    rows = np.repeat(np.arange(len(sequences)), [s.num_trained for s in sequences])
    targets = np.concatenate([s.trained_positions() for s in sequences])
    logits = model(input_ids=ids, attention_mask=mask).logits[rows, targets - 1]
    return logits.log_softmax(-1).gather(1, ids[rows, targets][:, None]).squeeze(1)


@pytest.mark.parametrize("name", ["sft", "dpo", "grpo"])
def test_forest_equals_padded(folder: Path, renderer: Any, name: str) -> None:
    import torch

    from regimen.models import load_model
    from regimen.policy.decoder import supervision
    from regimen.policy.local import LocalPolicy, LocalPolicyOptions
    from regimen.tokens.forest import build_forest
    from regimen.tokens.packing import micro_batches

    sequences, loss = episodes(renderer), losses()[name]
    model = load_model(folder, torch.float32)
    model.set_attn_implementation("eager")
    output = loss(plain_logprobs(model, sequences), supervision(build_forest(sequences), torch.device("cpu")))
    output.loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    forests = micro_batches(sequences, 100_000)
    assert forests[0].num_tokens < 0.6 * sum(len(s.ids) for s in sequences)
    total, _ = LocalPolicy(model, LocalPolicyOptions(precision="float32"))._accumulate(forests, loss, backward=True)
    assert total == pytest.approx(output.loss.item(), rel=TOLERANCE)
    pairs = list(zip(model.parameters(), expected, strict=True))
    error = sum(float((p.grad - wanted).square().sum()) for p, wanted in pairs) ** 0.5
    assert error < TOLERANCE * sum(float(wanted.square().sum()) for _, wanted in pairs) ** 0.5


def test_sampler_and_policy_agree(folder: Path, renderer: Any) -> None:
    from regimen.generation.base import Sampling
    from regimen.generation.transformers import TransformersGeneration
    from regimen.policy.local import LocalPolicy, LocalPolicyOptions
    from regimen.tokens.forest import TrainingSequence, build_forest

    generation = TransformersGeneration.load(folder, precision="float32")
    sampling = Sampling(temperature=0.7, max_new_tokens=24, stop_ids=renderer.stop_ids)
    questions = ["What is 47 × 23?", "What is 47 × 23?", "Compute 12 + 88.", "What is 3 - 51?"]
    prompts = [renderer.prompt_ids([{"role": "user", "content": text}], TOOLS) for text in questions]

    async def play() -> list[Any]:
        jobs = [generation.sample(prompt, sampling, seed) for seed, prompt in enumerate(prompts)]
        return list(await asyncio.gather(*jobs))

    samples = asyncio.run(play())
    asyncio.run(generation.close())
    sequences = [
        TrainingSequence([*prompt, *sample.ids], [(len(prompt), len(prompt) + len(sample.ids))])
        for prompt, sample in zip(prompts, samples, strict=True)
    ]
    policy = LocalPolicy.load(folder, LocalPolicyOptions(precision="float32", temperature=0.7, train=False))
    [found] = policy.logprobs([build_forest(sequences)])
    sampled = np.concatenate([sample.logprobs for sample in samples])
    np.testing.assert_allclose(found, sampled, atol=1e-4)
