"""What is a right answer and what is none, judged by the real library in its own processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from regimen.errors import ConfigError, GymError
from regimen.gym.environment import Task, Verdict
from regimen.gym.environments.math import Math
from regimen.gym.environments.math.spelling import is_worked_out

HALF, SET, BELOW, AREA = r"\frac{1}{2}", r"\{1, 2\}", r"(-\infty, 3]", r"9\pi"
MATRIX = r"\begin{pmatrix}1\\2\end{pmatrix}"
RIGHT = [
    # boxes: the last one, whatever is inside or around it
    ("42", r"\boxed{42}"), ("42", r"The final answer is $\boxed{42}$. I hope it is correct."), ("42", r"\boxed{42.0}"),
    ("42", r"First \boxed{41}, no wait. So it is \boxed{42}."), ("42", r"\boxed{\boxed{42}}"), ("42", r"\fbox{42}"),
    ("42", r"\boxed 42"), ("3", "\\[ \\boxed{3} \\]"), ("3", "\\boxed{3}\n\n\\boxed{3}"), ("14", r"\boxed{14.}"),
    ("5", r"Therefore $\boxed{5}$ is the answer, not 6."), ("5", "<think>Is it \\boxed{4}?</think>It is \\boxed{5}."),
    # plain answers
    ("42", "42"), ("42", "The answer is 42."), ("42", "**42**"), ("42", "So we get $x = 42$."), ("42", "Answer: 42"),
    ("42", "answer:\n\n42"), ("42", "#### 42"), ("8", "There are 8 apples left."), ("8", "So x equals 8."),
    ("43", "The answer is 42. Wait, actually it is 43."), ("3", "The total is\n\\[\n1 + 2 = 3\n\\]"), ("3", "$$3$$"),
    ("7", "There are 3 red and 4 blue, so 7 in all."), ("3", "Because 1 + 2 = 3, there are 3 of them."),
    ("4", "1. First 2 + 2.\n2. Then = 4."), ("5", "- Result: 5"), ("5", "<think>4?</think>It is 5."),
    ("5", "The answer is 5, not 6."), ("5", "It is $5$ and not $6$."),
    # numbers
    ("1234", r"\boxed{1,234}"), ("1234", "The answer is 1,234."), ("1,234", r"\boxed{1234}"),
    ("1234", r"\boxed{1\,234}"), ("1234567", r"\boxed{1 234 567}"), ("1000000", r"\boxed{1{,}000{,}000}"),
    ("-5", "\\boxed{−5}"), ("-5", "The answer is -5."), ("-5", "It is −5."), ("0.08", r"\boxed{.08}"),
    ("1000", r"\boxed{10^3}"), ("0.0000012", r"\boxed{1.2 \times 10^{-6}}"),
    ("1/8000000", "0.000000125"), ("5!", r"\boxed{120}"), ("10", r"\boxed{\binom{5}{2}}"), ("50%", r"\boxed{50\%}"),
    # fractions
    ("1/2", r"\boxed{\frac{1}{2}}"), (HALF, r"\boxed{0.5}"), ("0.5", "The answer is 1/2."), ("1/3", "0.333333"),
    (r"\frac{3}{4}", r"$\dfrac{3}{4}$"), ("7/2", r"\boxed{3 1/2}"), ("7/2", "The answer is 3 1/2."),
    ("7/2", r"\boxed{3\frac12}"), (r"-\frac{2}{3}", r"\boxed{\frac{-2}{3}}"),
    # sets, intervals, points
    (SET, r"\boxed{\{2, 1\}}"), (SET, r"\boxed{1, 2}"), (SET, r"\boxed{x = 1 \text{ or } x = 2}"),
    (SET, r"$x = \boxed{1}$ or $x = \boxed{2}$"), (SET, "The answer is 1 and 2."), (SET, "x = 1 or x = 2"),
    ("[1, 2)", r"\boxed{[1, 2)}"), (BELOW, r"\boxed{(-\infty,3]}"), (BELOW, "The answer is (-∞, 3]."),
    (BELOW, r"\boxed{\left(-\infty, 3\right]}"), (BELOW, r"\boxed{x \in (-\infty, 3]}"),
    ("x \\le 3", r"\boxed{(-\infty, 3]}"), ("(1,2)", r"\boxed{(1, 2)}"),
    # units and currencies
    ("12", r"\boxed{12\text{ cm}}"), ("12", r"\boxed{12 \, \mathrm{cm}^2}"), ("12", "The area is 12 cm²."),
    ("12", "The area is 12 square centimetres."), ("18", "Janet makes 18 dollars."), ("18", r"\boxed{\$18}"),
    ("18", "She makes 9 * 2 = $18 every day."), ("18", r"\boxed{18 dollars}"), ("18 dollars", r"\boxed{18}"),
    ("5", "The speed is 5 m/s."), ("60", r"\boxed{60^\circ}"), ("60", "60 degrees"), ("12", "12 hours"),
    # formulas
    (r"2\sqrt{2}", r"\boxed{\sqrt{8}}"), (r"2\sqrt{2}", "The answer is 2√2."), (AREA, r"\boxed{9\pi}"),
    (r"2\sqrt{2}", "The answer is 2*sqrt(2)."), (AREA, "The area is 9π."), (AREA, r"\boxed{9 pi}"),
    (r"x^2+2x+1", r"\boxed{(x+1)^2}"), ("5", r"\boxed{x=5}"), ("x=5", r"\boxed{5}"), ("-x+3", r"\boxed{3-x}"),
    (MATRIX, r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}"), ("3:2", r"\boxed{3:2}"),
    # words and dates
    ("yes", "Yes."), ("yes", r"\boxed{\text{Yes}}"), ("Monday", r"\boxed{Monday}"), ("Monday", "The answer is Monday."),
    (r"\text{even}", r"\boxed{even}"), ("C", r"\boxed{\text{C}}"), ("2024-05-01", r"\boxed{2024-05-01}"),
    # ground truths as data sets have them
    (r"\boxed{7}", r"\boxed{7}"), ("She has 3 + 4 = 7 eggs.\n#### 7", "\\boxed{7}"), ("$7$", r"\boxed{7}"),
]  # fmt: skip
WRONG = [
    ("42", ""), ("42", "41"), ("42", r"\boxed{41}"), ("42", r"\boxed{-42}"), ("42", r"\boxed{420}"), ("42", "forty"),
    # the right number stands somewhere else
    ("42", r"The number 42 is near. \boxed{41}"), ("42", r"\boxed{42} hmm, wait, \boxed{41}"), ("42", r"42 \boxed{x}"),
    ("42", r"42 \boxed{?}"), ("42", r"42 \boxed{41"), ("42", r"\boxed{42"), ("42", "<think>42</think>"),
    ("42", "<think>It is \\boxed{42}"), ("42", "The answer is 42. Wait, actually it is 43."), ("42", r"\boxed{42x}"),
    ("42", r"\boxed{42/43}"), ("42", r"\boxed{40-42}"), ("7", r"\boxed{1:7}"), ("42", r"\boxed{x \le 42}"),
    # candidates are listed
    ("42", r"\boxed{41, 42}"), ("42", r"\boxed{41} or \boxed{42}"), ("42", "41 or 42"),
    ("42", "The answer is 41 or 42."),
    ("42", "41, 42"), ("42", "41\n42"), ("42", "40\n41\n42"), ("42", "41 42"), ("42", "The answer is 41 42"),
    ("42", r"\boxed{\{41,42\}}"), ("42", r"\boxed{[42, 43]}"), ("42", r"\boxed{4 2}"), ("6", r"\boxed{1 2 3}"),
    ("6", "1 2 3"), ("42", r"\boxed{42 \text{ or } 43}"), ("42", r"\boxed{\text{42 or 43}}"), ("2", r"\boxed{\pm 2}"),
    ("42", "between 40 and 42"), ("42", "1, 2, 3, 4, 5, 6, 42"), ("42", "x = 41 or x = 42"), ("42", "41, maybe 42."),
    ("42", r"\boxed{x=42 or x=43}"), ("42", "The answer is 42. Or 43."), ("42", "It is 42.\nOr it is 43."),
    ("42", r"\boxed{42}, \boxed{43}"),
    # denied or asked
    ("42", "The answer is not 42."), ("42", "The answer isn't 42."), ("42", "Is it 42?"), ("42", "Answer: 42?"),
    ("42", r"\boxed{41 \neq 42}"), ("42", r"\boxed{42 = 43}"),
    # nearly the right set, interval, point
    (SET, r"\boxed{1}"), (SET, r"\boxed{\{1,2,3\}}"), ("[1,2)", r"\boxed{(1,2)}"), ("(1,2)", r"\boxed{(2,1)}"),
    ("(1,2)", r"\boxed{2,1}"),
    # words
    ("yes", "no"), ("yes", "yes or no"), ("yes", r"\boxed{no}"), ("listen", r"\boxed{silent}"),
    ("Monday", "Monday or Tuesday"), ("2024-05-01", r"\boxed{2018}"), ("1", r"\boxed{True}"),
    # too rough
    ("1/3", r"\boxed{0.3}"), ("3.14159", r"\boxed{3.14}"), ("0.0000001", r"\boxed{0}"),
    ("0", r"\boxed{0.0000001}"), ("0.0000012", r"\boxed{0.0000014}"), (AREA, r"\boxed{28.27}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def environment() -> Math:
    return Math(num_workers=2)


def message(text: str) -> list[dict[str, Any]]:
    return [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]


def task(gold: object, question: str = "What is it?") -> Task:
    return Task(0, {"responses_create_params": {"input": question}, "expected_answer": gold})


async def verdict(environment: Math, gold: object, text: str, question: str = "What is it?") -> Verdict:
    return await environment.verify(None, task(gold, question), message(text))


@pytest.mark.parametrize(("cases", "reward"), [(RIGHT, 1.0), (WRONG, 0.0)], ids=["right", "wrong"])
async def test_rewards(cases: list[tuple[str, str]], reward: float, environment: Math) -> None:
    found = await asyncio.gather(*(verdict(environment, gold, text) for gold, text in cases))
    assert [case for case, verdict in zip(cases, found, strict=True) if verdict.reward != reward] == []


async def test_a_formula_of_the_question_is_no_answer_to_it(environment: Math) -> None:
    for question, gold, text in (
        ("What is $23 + 47$?", "70", r"\boxed{23 + 47}"),
        ("What is 23 × 47?", "1081", r"\boxed{23 \times 47}"),
        (r"Compute $\frac{1}{2} + \frac{1}{3}$.", r"\frac{5}{6}", r"\boxed{1/2 + 1/3}"),
        (r"Simplify $\sqrt{72}$.", r"6\sqrt{2}", r"\boxed{\sqrt{72}}"),
        ("Solve $3x + 5 = 20$ for $x$.", "5", r"\boxed{3x+5=20}"),
    ):
        assert (await verdict(environment, gold, text, question)).reward == 0.0
    either = "Which is larger, $3/4$ or $2/3$?"
    assert (await verdict(environment, r"\frac{3}{4}", r"\boxed{3/4}", either)).reward == 1.0


WORKED_OUT = [
    ("70", "70"), ("70", "70.0"), ("70", "x = 70"), ("70", "23 + 47 = 70"), ("70", r"70\text{ cm}^2"), ("-5", "-5"),
    ("70", r"\frac{140}{2}"), (r"\frac{5}{6}", "5/6"), (r"9\pi", r"9 \cdot \pi"), (r"6\sqrt{2}", r"6 \times \sqrt{2}"),
    (r"\{-3, 4\}", "x = -3, x = 4"), (r"(-\infty, 3]", r"x \in (-\infty, 3]"), ("7/2", r"3\frac{1}{2}"),
    ("70", "70^\\circ"), ("70", "+70"),
]  # fmt: skip
NOT_WORKED_OUT = [
    ("70", "47 + 23"), ("70", "100 - 30"), ("70", "7(10)"), ("70", "(7)(10)"), ("70", r"7 \cdot 10"), ("64", "2^6"),
    ("120", "5!"), ("4", r"\sqrt{16}"), (r"6\sqrt{2}", r"\sqrt{72}"), (r"6\sqrt{2}", r"\sqrt{36 \cdot 2}"),
    ("10", r"\binom{5}{2}"), (r"\{-3, 4\}", r"\{-3, 2 + 2\}"),
    ("12", r"\gcd(24, 36)"), (r"\frac{5}{6}", r"\frac{1}{2} + \frac{1}{3}"),
    ("2", "8/2/2"),
]  # fmt: skip


def test_what_is_worked_out() -> None:
    assert [case for case in WORKED_OUT if not is_worked_out(case[1], case[0])] == []
    assert [case for case in NOT_WORKED_OUT if is_worked_out(case[1], case[0])] == []


async def test_rows_may_ask_for_answers_that_are_worked_out(environment: Math) -> None:
    row = {"responses_create_params": {"input": "What is $23 + 47$?"}, "expected_answer": "70"}
    for text, strict, reward in (("47 + 23", True, 0.0), ("47 + 23", False, 1.0), ("70", True, 1.0)):
        asked = Task(0, {**row, "worked_out": strict})
        assert (await environment.verify(None, asked, message(rf"\boxed{{{text}}}"))).reward == reward


async def test_a_bare_answer_may_be_a_number_of_the_question(environment: Math) -> None:
    for text in ("6", "It is 6.", "The answer is 6."):
        assert (await verdict(environment, "6", text, "What is the greatest common divisor of 6 and 12?")).reward == 1.0


async def test_the_metrics_say_what_was_compared(environment: Math) -> None:
    found = await verdict(environment, "42", r"\boxed{41}")
    assert (found.metrics["expected_answer"], found.metrics["extracted_answer"]) == ("42", "41")


async def test_an_episode_without_a_final_text_scores_0(environment: Math) -> None:
    call = {"type": "function_call", "name": "x", "arguments": "{}", "call_id": "c"}
    assert (await environment.verify(None, task("42"), [*message("42"), call])).reward == 0.0


@pytest.mark.parametrize("gold", ["", " ", None, 42, r"\frac{1}{", r"\foo", "???", "$$", "#### "])
async def test_a_ground_truth_that_cannot_be_read_is_a_failure(gold: object, environment: Math) -> None:
    for text in (r"\boxed{41}", r"\boxed{\foo}"):
        with pytest.raises(GymError, match=r"ground truth|expected_answer"):
            await verdict(environment, gold, text)


def test_rows_of_data_sets() -> None:
    environment = Math()
    assert environment.answer_fields(r"So \boxed{\frac{1}{2}}.") == {"expected_answer": r"\frac{1}{2}"}
    assert environment.answer_fields("3 + 4 = 7\n#### 7") == {"expected_answer": "7"}
    with pytest.raises(ConfigError, match=r"the answer is '\\\\frac\{1'"):
        environment.answer_fields(r"\frac{1")


def test_options() -> None:
    Math(math_verify_impl="hf_math_verify")
    with pytest.raises(ConfigError, match=r"dapo_math_verify.*not implemented.*set env.math.math_verify_impl=hf_math"):
        Math(math_verify_impl="dapo_math_verify")
    for wrong in (0, True, "8"):
        with pytest.raises(ConfigError, match="num_workers"):
            Math(num_workers=wrong)  # type: ignore[arg-type]


def test_the_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"math-verify is not installed.*regimen-rl\[train\]"):
        Math()
