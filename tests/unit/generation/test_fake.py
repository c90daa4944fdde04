from __future__ import annotations

import asyncio

import pytest

from regimen.errors import GenerationError
from regimen.generation.base import Sample, Sampling
from regimen.generation.fake import FakeGeneration

SAMPLING = Sampling(max_new_tokens=3, stop_ids=(9,))


async def test_answers_come_in_order():
    generation = FakeGeneration([[1, 9], [2, 3, 9]], logprob=-1.5)
    first, second = [await generation.sample([7], SAMPLING, 1) for _ in range(2)]
    assert first == Sample(ids=[1, 9], logprobs=[-1.5, -1.5], weight_version=0, stop_reason="stop")
    assert second.ids == [2, 3, 9]
    assert generation.requests == [([7], SAMPLING, 1)] * 2
    with pytest.raises(GenerationError, match="no more answers"):
        await generation.sample([7], SAMPLING, 1)


@pytest.mark.parametrize(
    "answer, ids, reason",
    [([1, 2, 3, 9], [1, 2, 3], "length"), ([1, 2], [1, 2], "length"), ([9], [9], "stop"), ([], [], "length")],
)
async def test_stop_and_length(answer, ids, reason):
    sample = await FakeGeneration([answer]).sample([], SAMPLING, 0)
    assert (sample.ids, sample.stop_reason) == (ids, reason)


async def test_a_function_sees_prompt_sampling_and_seed():
    generation = FakeGeneration(lambda prompt, sampling, seed: [*prompt[:1], seed, 9])
    samples = await asyncio.gather(*(generation.sample([i, 0], SAMPLING, i + 10) for i in range(3)))
    assert [sample.ids for sample in samples] == [[0, 10, 9], [1, 11, 9], [2, 12, 9]]


async def test_exceptions_are_raised_and_samples_given_as_they_are():
    ready = Sample(ids=[4], logprobs=[0.0], weight_version=5, stop_reason="length")
    generation = FakeGeneration([ready, RuntimeError("x")])
    assert await generation.sample([], SAMPLING, 0) is ready
    with pytest.raises(RuntimeError, match="x"):
        await generation.sample([], SAMPLING, 0)


async def test_update_and_close():
    generation = FakeGeneration([[9], [9]])
    await generation.update(3, [("w", 1)])
    assert (await generation.sample([], SAMPLING, 0)).weight_version == 3
    assert generation.updates == [{"w": 1}]
    await generation.close()
    with pytest.raises(GenerationError, match="closed"):
        await generation.sample([], SAMPLING, 0)
