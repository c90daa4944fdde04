"""What every in-process generation backend must do, on a tiny random model in float32."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from regimen.errors import GenerationError, PolicyError
from regimen.generation.base import Generation, Sample, Sampling
from regimen.generation.rows import RowsGeneration
from regimen.registry import resolve

# Names of the registry, and what "transformers" gives to models whose past is more than keys and values. The scripted
# fake has no model to agree with.
BACKENDS = ["transformers", pytest.param("rows", marks=pytest.mark.slow)]
STOPS = (7, 8, 9, 10, 11, 12)  # enough of 258 ids for some samples to stop early
SAMPLING = Sampling(max_new_tokens=24, stop_ids=STOPS)
PREFIX = list(range(20, 60))
PROMPTS = [[*PREFIX, 100 + index, *range(70, 70 + index % 4)] for index in range(7)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return RowsGeneration if request.param == "rows" else resolve("generation", request.param)


@pytest.fixture
async def generation(backend: Any, tiny_folder: Path) -> AsyncIterator[Any]:
    made = backend.load(tiny_folder, precision="float32", max_batch_size=64)
    yield made
    await made.close()


@pytest.fixture(scope="module")
def plain(tiny: ModuleType) -> Any:
    model = tiny.tiny_model()
    model.set_attn_implementation("eager")
    return model.eval()


def full_logprobs(model: Any, prompt: list[int], sample: Sample, temperature: float = 1.0) -> torch.Tensor:
    """One forward pass over prompt and answer: `[n, V]`."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *sample.ids]])).logits[0]
    return (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)


def assert_true_logprobs(model: Any, prompt: list[int], sample: Sample, temperature: float = 1.0) -> None:
    expected = full_logprobs(model, prompt, sample, temperature)[range(len(sample.ids)), sample.ids]
    np.testing.assert_allclose(sample.logprobs, expected.numpy(), atol=1e-4)


async def many(
    generation: Generation, prompts: list[list[int]], sampling: Sampling = SAMPLING, first_seed: int = 0
) -> list[Sample]:
    jobs = [generation.sample(prompt, sampling, first_seed + index) for index, prompt in enumerate(prompts)]
    return list(await asyncio.wait_for(asyncio.gather(*jobs), 60))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_those_of_full_forward_passes(
    generation: Generation, plain: Any, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, max_new_tokens=24, stop_ids=STOPS)
    samples = await many(generation, PROMPTS, sampling)
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        assert_true_logprobs(plain, prompt, sample, temperature)


async def test_stop_and_length(generation: Generation) -> None:
    samples = await many(generation, PROMPTS * 3)
    assert {sample.stop_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        assert len(sample.ids) == len(sample.logprobs)
        assert not set(sample.ids[:-1]) & set(STOPS)
        if sample.stop_reason == "stop":
            assert sample.ids[-1] in STOPS
        else:
            assert len(sample.ids) == SAMPLING.max_new_tokens
            assert sample.ids[-1] not in STOPS
    one = await generation.sample(PROMPTS[0], Sampling(max_new_tokens=1), 0)
    assert (len(one.ids), one.stop_reason) == (1, "length")


async def test_a_sample_is_a_function_of_prompt_and_seed_whatever_its_neighbours(generation: Generation) -> None:
    together = await many(generation, PROMPTS)
    for index in (3, 0, 6):
        alone = await generation.sample(PROMPTS[index], SAMPLING, index)
        assert alone.ids == together[index].ids
        np.testing.assert_allclose(alone.logprobs, together[index].logprobs, atol=1e-4)
    strangers = [[index + 2, index + 3] for index in range(9)]
    mixed = await many(generation, [*PROMPTS, *strangers])
    assert [sample.ids for sample in mixed[:7]] == [sample.ids for sample in together]


async def test_other_seeds_give_other_samples(generation: Generation) -> None:
    samples = await many(generation, [PROMPTS[0]] * 8)
    assert len({tuple(sample.ids) for sample in samples}) == 8


async def test_equal_prompts_and_seeds_are_equal(generation: Generation, plain: Any) -> None:
    jobs = [generation.sample(prompt, SAMPLING, 5) for prompt in [PROMPTS[0], PROMPTS[3], PROMPTS[0], PROMPTS[0]]]
    first, _, third, fourth = await asyncio.gather(*jobs)
    assert first.ids == third.ids == fourth.ids
    assert_true_logprobs(plain, PROMPTS[0], fourth)


@pytest.mark.parametrize("size", [1, 3])
async def test_more_requests_than_rows(backend: Any, tiny_folder: Path, plain: Any, size: int) -> None:
    small, large = (backend.load(tiny_folder, precision="float32", max_batch_size=n) for n in (size, 64))
    prompts = [*PROMPTS, *PROMPTS[:3], [30, 31], list(range(2, 100))]
    found, expected = await many(small, prompts), await many(large, prompts)
    assert [sample.ids for sample in found] == [sample.ids for sample in expected]
    for prompt, sample in zip(prompts, found, strict=True):
        assert_true_logprobs(plain, prompt, sample)
    await small.close()
    await large.close()


async def test_turns_continue_what_was_sampled(generation: Generation, plain: Any) -> None:
    """Three turns of each episode: the next prompt is everything before and what the tool said."""

    async def episode(index: int) -> None:
        prompt = PROMPTS[index % 7]
        for turn in range(3):
            sample = await generation.sample(prompt, SAMPLING, 100 * index + turn)
            assert_true_logprobs(plain, prompt, sample)
            prompt = [*prompt, *sample.ids, *range(200, 203 + index)]

    await asyncio.wait_for(asyncio.gather(*(episode(index) for index in range(10))), 60)


async def test_the_same_seed_after_other_turns(generation: Generation) -> None:
    """What an engine keeps between calls must not show."""
    first = await generation.sample(PROMPTS[0], SAMPLING, 1)
    longer = [*PROMPTS[0], *first.ids, 40, 41]
    once = await generation.sample(longer, SAMPLING, 2)
    await many(generation, PROMPTS, first_seed=50)
    again = await generation.sample(longer, SAMPLING, 2)
    assert again.ids == once.ids
    np.testing.assert_allclose(again.logprobs, once.logprobs, atol=1e-4)


async def test_short_and_long_turns_side_by_side(generation: Generation, plain: Any) -> None:
    """A long continued history beside fresh prompts, two of them equal: rows must not run into each other."""
    history = await generation.sample(list(range(2, 202)), Sampling(max_new_tokens=4, stop_ids=tuple(range(258))), 0)
    prompts = [[250] * 150, [250] * 150, [*range(2, 202), *history.ids, 5, 6], [251] * 3]
    for prompt, sample in zip(prompts, await many(generation, prompts, Sampling(max_new_tokens=4)), strict=True):
        assert_true_logprobs(plain, prompt, sample)


async def test_cancelling_one_leaves_the_others(generation: Generation, plain: Any) -> None:
    expected = await many(generation, PROMPTS)
    tasks = [asyncio.create_task(generation.sample(p, SAMPLING, i)) for i, p in enumerate(PROMPTS)]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    tasks[4].cancel()
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    for index, (sample, wanted) in enumerate(zip(found, expected, strict=True)):
        if index in (0, 4):
            assert isinstance(sample, asyncio.CancelledError)
        else:
            assert isinstance(sample, Sample)
            assert sample.ids == wanted.ids
    assert (await generation.sample(PROMPTS[0], SAMPLING, 0)).ids == expected[0].ids


async def test_requests_that_arrive_while_others_run(generation: Generation) -> None:
    """None may be lost, whenever it comes."""
    expected = await many(generation, PROMPTS)

    async def late(index: int) -> Sample:
        await asyncio.sleep(0.0007 * index)
        return await generation.sample(PROMPTS[index % 7], SAMPLING, index % 7)

    found = await asyncio.wait_for(asyncio.gather(*(late(index) for index in range(60))), 60)
    assert [sample.ids for sample in found] == [expected[index % 7].ids for index in range(60)]


async def test_greedy_takes_the_most_likely(generation: Generation, plain: Any) -> None:
    greedy = Sampling(temperature=0.0, max_new_tokens=12)
    first, second = await generation.sample(PROMPTS[0], greedy, 1), await generation.sample(PROMPTS[0], greedy, 2)
    assert first.ids == second.ids
    logprobs = full_logprobs(plain, PROMPTS[0], first)
    assert logprobs.argmax(-1).tolist() == first.ids
    assert_true_logprobs(plain, PROMPTS[0], first)  # of temperature 1


@pytest.mark.parametrize("top_k, top_p", [(3, 1.0), (None, 0.3), (5, 0.5)])
async def test_cuts_restrict_the_support_and_not_the_logprobs(
    generation: Generation, plain: Any, top_k: int | None, top_p: float
) -> None:
    sampling = Sampling(max_new_tokens=12, top_k=top_k, top_p=top_p)
    for prompt, sample in zip(PROMPTS, await many(generation, PROMPTS, sampling), strict=True):
        assert_true_logprobs(plain, prompt, sample)  # of the full distribution
        for row, token in zip(full_logprobs(plain, prompt, sample), sample.ids, strict=True):
            ordered, index = row.sort(descending=True)
            rank = index.tolist().index(token)
            assert rank < (top_k or 258)
            assert ordered[:rank].exp().sum() < top_p + 1e-4


async def test_samples_follow_the_distribution(generation: Generation, plain: Any) -> None:
    """800 first tokens against the model's own probabilities, within five standard errors."""
    samples = await many(generation, [PROMPTS[0]] * 800, Sampling(max_new_tokens=1))
    probabilities = full_logprobs(plain, PROMPTS[0], samples[0])[0].exp()
    likely = probabilities.argsort(descending=True)[:5]
    counts = torch.bincount(torch.tensor([sample.ids[0] for sample in samples]), minlength=258) / 800
    error = (probabilities * (1 - probabilities) / 800).sqrt()
    assert ((counts - probabilities).abs()[likely] < 5 * error[likely]).all()


async def test_new_weights_change_version_and_samples(generation: Generation, tiny: ModuleType) -> None:
    before = await many(generation, PROMPTS)
    other = tiny.tiny_model(seed=1)
    await generation.update(3, other.named_parameters())
    after = await many(generation, PROMPTS)
    assert {sample.weight_version for sample in before} == {0}
    assert {sample.weight_version for sample in after} == {3}
    assert [sample.ids for sample in after] != [sample.ids for sample in before]
    for prompt, sample in zip(PROMPTS, after, strict=True):
        assert_true_logprobs(other, prompt, sample)
    longer = [*PROMPTS[0], *before[0].ids, 99]  # kept keys of the old weights must not be used
    assert_true_logprobs(other, longer, await generation.sample(longer, SAMPLING, 0))
    with pytest.raises(GenerationError, match="unknown weight"):
        await generation.update(4, [("nonsense", torch.zeros(1))])


async def test_weights_cannot_change_under_way(generation: Generation, tiny: ModuleType) -> None:
    task = asyncio.create_task(generation.sample(PROMPTS[0], SAMPLING, 0))
    await asyncio.sleep(0)
    with pytest.raises(GenerationError, match="under way"):
        await generation.update(1, tiny.tiny_model().named_parameters())
    assert (await task).weight_version == 0


async def test_released_memory_changes_no_sample(generation: Generation, plain: Any) -> None:
    before = await many(generation, PROMPTS)
    await generation.release()
    await generation.release()  # nothing left is fine too
    after = await many(generation, PROMPTS)
    assert [sample.ids for sample in after] == [sample.ids for sample in before]
    for prompt, sample in zip(PROMPTS, after, strict=True):
        assert_true_logprobs(plain, prompt, sample)


async def test_memory_in_use_cannot_be_released(generation: Generation) -> None:
    task = asyncio.create_task(generation.sample(PROMPTS[0], SAMPLING, 0))
    await asyncio.sleep(0)
    with pytest.raises(GenerationError, match="under way"):
        await generation.release()
    assert (await task).ids


async def test_what_cannot_fit_is_refused(generation: Generation) -> None:
    for prompt in ([], [5] * 4073):
        with pytest.raises(GenerationError, match=f"prompt of {len(prompt)} tokens"):
            await generation.sample(prompt, SAMPLING, 0)
    assert (await generation.sample([5], SAMPLING, 0)).ids  # and the engine lives


async def test_a_closed_generation_refuses(backend: Any, tiny_folder: Path) -> None:
    generation = backend.load(tiny_folder, precision="float32")
    await generation.sample([5], Sampling(max_new_tokens=1), 0)
    await generation.close()
    with pytest.raises(GenerationError):
        await asyncio.wait_for(generation.sample([5], Sampling(max_new_tokens=1), 0), 10)


def test_each_call_may_have_its_own_event_loop(backend: Any, tiny_folder: Path) -> None:
    generation = backend.load(tiny_folder, precision="float32")
    first, second = (asyncio.run(generation.sample(PROMPTS[0], SAMPLING, 1)) for _ in range(2))
    assert first.ids == second.ids
    asyncio.run(generation.close())


async def test_an_engine_that_fails_says_so_to_everyone_and_recovers(
    generation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(generation.model, "forward", out_of_memory)
        patch.setattr(generation.model.model, "forward", out_of_memory)
        jobs = [generation.sample(prompt, SAMPLING, 0) for prompt in PROMPTS]
        failures = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 10)
    assert all(isinstance(failure, GenerationError) and "out of memory" in str(failure) for failure in failures)
    assert (await generation.sample(PROMPTS[0], SAMPLING, 0)).ids


@pytest.mark.parametrize(
    "kind",
    ["mamba2", *[pytest.param(k, marks=pytest.mark.slow) for k in ("nemotron_h", "qwen3_next", "lfm2")], "gemma3"],
)
async def test_models_with_another_past_say_so_and_sample_what_they_would(
    kind: str, tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """State spaces, convolutions and sliding windows: prompts of unequal lengths, some ending early."""
    windows = {"sliding_window": 5, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}
    model = tiny.tiny_model(kind, **(windows if kind == "gemma3" else {})).eval()
    model.save_pretrained(tmp_path)
    generation = resolve("generation", "transformers").load(tmp_path, precision="float32", max_batch_size=3)
    assert isinstance(generation, RowsGeneration)
    assert "note: only prompts of one length are answered together" in capsys.readouterr().err
    found = await many(generation, PROMPTS)
    assert {sample.stop_reason for sample in found} == {"stop", "length"}
    for prompt, sample in zip(PROMPTS, found, strict=True):
        assert_true_logprobs(model, prompt, sample)
    assert (await generation.sample(PROMPTS[3], SAMPLING, 3)).ids == found[3].ids
    await generation.close()


async def test_a_sliding_window_is_refused(tiny: ModuleType) -> None:
    from regimen.generation.transformers import TransformersGeneration

    with pytest.raises((GenerationError, PolicyError), match="sliding window"):
        await TransformersGeneration(tiny.tiny_model("mistral", sliding_window=5)).sample([5, 6], SAMPLING, 0)


async def test_tokens_are_told_as_they_are_sampled(generation: Generation) -> None:
    told: list[tuple[int, float]] = []

    def listen(token: int, logprob: float) -> None:
        told.append((token, logprob))

    sampling = Sampling(max_new_tokens=12)
    job = asyncio.create_task(generation.sample(PROMPTS[0], sampling, 5, listen))
    while not told:
        await asyncio.sleep(0)
    assert not job.done()  # the first of twelve tokens is told before the last is made
    sample = await job
    assert told == list(zip(sample.ids, sample.logprobs, strict=True))
    assert (await generation.sample(PROMPTS[0], sampling, 5)).ids == sample.ids


async def test_a_caller_that_is_cancelled_ends_its_sample(generation: Generation) -> None:
    told: list[int] = []
    job = asyncio.create_task(
        generation.sample(PROMPTS[0], Sampling(max_new_tokens=3000), 1, lambda token, _: told.append(token))
    )
    while len(told) < 2:
        await asyncio.sleep(0)
    job.cancel()
    await asyncio.gather(job, return_exceptions=True)
    await generation.sample(PROMPTS[1], Sampling(max_new_tokens=4), 2)
    told_then = len(told)
    await generation.update(1, [])  # raises while samples are under way
    assert len(told) == told_then < 20
