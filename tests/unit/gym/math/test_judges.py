"""Hostile and broken input costs bounded time, and what cannot be judged is a failure, never a reward."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import threading
import time
from typing import Any

import pytest

from regimen.errors import GymError
from regimen.gym.environment import Task
from regimen.gym.environments.math import Math
from regimen.gym.environments.math.judges import Judgement, Judges
from regimen.gym.environments.math.worker import num_digits

# A hundred thousand characters of each; all are answers that say nothing, or cannot be read.
BABBLE = [
    "{", "}", "\\[", "$", "$$", "answer ", "answer: ", "1 ", "1/", "-", "(", "=1", "1,000", "a", "\n", "* ", "or ",
    "\\boxed{", "\\boxed", "\\boxed{\\frac{", "boxed{", "<think>", "\\text{", "answer\n", "$ $", "answer is ", "√",
]  # fmt: skip
HUGE = [
    r"9^{9^{9^9}}", "9**9**9**9", "9^9^9^9", r"(10^9)!", r"10^{10^{10}}", r"10^{-10^{10}}", r"\Gamma(10^8)",
    r"e^{e^{e^{e^{e}}}}", "9" * 990, "{" * 400 + "1" + "}" * 400, "(" * 400 + "1" + ")" * 400, "1+" * 150 + "1",
]  # fmt: skip
ENDLESS = r"\binom{1000000}{500000}"


@pytest.fixture(scope="module")
def environment() -> Math:
    return Math(num_workers=2)


async def reward(environment: Math, text: str, gold: str = "2") -> float:
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}
    row = {"responses_create_params": {"input": "q"}, "expected_answer": gold}
    return (await environment.verify(None, Task(0, row), [item])).reward


async def test_babble_costs_no_time(environment: Math) -> None:
    for piece in BABBLE:
        text = piece * (100_000 // len(piece))
        started = time.process_time()
        assert await reward(environment, text) == 0.0
        assert time.process_time() - started < 2.0, piece
    assert await reward(environment, r"\boxed{1}" * 10_000) == 0.0


async def test_numbers_too_large_to_compute_are_wrong_answers(environment: Math) -> None:
    found = await asyncio.gather(*(reward(environment, rf"\boxed{{{text}}}") for text in HUGE))
    assert [text for text, value in zip(HUGE, found, strict=True) if value != 0.0] == []
    assert await reward(environment, r"\boxed{2^{100}}", str(2**100)) == 1.0
    assert await reward(environment, rf"\boxed{{{10**500}}}", "10^{500}") == 1.0


async def test_a_judgement_that_does_not_end_is_a_failure_and_the_next_one_works() -> None:
    judges = Judges(1, seconds=0.5)
    with pytest.raises(GymError, match=r"comparing .*binom.* with '2': .* more than 0\.5 seconds of processor time"):
        await judges.judge("2", ENDLESS)
    assert await judges.judge("2", "2") == Judgement(equal=True, read=True)
    assert await judges.judge("2", r"\foo") == Judgement(equal=False, read=False)


async def test_a_process_that_was_killed_is_a_failure_and_the_next_one_works() -> None:
    judges = Judges(1)
    assert (await judges.judge("1/2", "0.5")).equal
    judges._idle[0].process.kill()
    with pytest.raises(GymError, match="system ended it"):
        await judges.judge("1/2", "0.5")
    assert (await judges.judge("1/2", "0.5")).equal


def test_judging_works_in_any_thread_and_event_loop() -> None:
    judges = Judges(2)
    found: list[Judgement] = []

    async def several() -> list[Judgement]:
        return await asyncio.gather(*(judges.judge("3", answer) for answer in ("3", "4", "3.0")))

    def run() -> None:
        found.extend(asyncio.run(several()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    run()
    assert [judgement.equal for judgement in found] == [True, False, True] * 2


def test_processes_are_few_and_end_with_their_owner() -> None:
    judges = Judges(2)

    async def many(owner: Judges) -> None:
        await asyncio.gather(*(owner.judge(str(n), str(n)) for n in range(20)))

    asyncio.run(many(judges))
    processes: list[subprocess.Popen[Any]] = [worker.process for worker in judges._idle]
    assert 1 <= len(processes) <= 2
    del judges
    gc.collect()
    assert [process.wait(timeout=30) for process in processes] == [0] * len(processes)


def test_digits_are_bounded_without_computing() -> None:
    sympy = pytest.importorskip("sympy")
    lazy = {"evaluate": False}
    tower = sympy.Pow(9, sympy.Pow(9, 9, **lazy), **lazy)
    assert 369_693_099 <= num_digits(tower) < 1e12  # 9^9 log10(9) digits
    assert 157 <= num_digits(sympy.factorial(100, **lazy)) < 1000
    assert num_digits(sympy.Rational(22, 7)) < 10
    assert num_digits(sympy.sqrt(2) * sympy.pi + sympy.Symbol("x")) < 10
