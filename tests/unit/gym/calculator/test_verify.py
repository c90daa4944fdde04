from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from regimen.gym.environments.calculator.verify import extract_answer, verdict_of

PRODUCT = "What is 47 × 23?"
APPLES = "Anna has 24 apples and gives 12 to Ben. How many are left?"
DIFFERENCE = "What is 17 - 41?"
ROW_OF = {PRODUCT: "1081", APPLES: "12", DIFFERENCE: "-24"}

# What a model may answer, and what a person would say to it.
ANSWERS: list[tuple[str, str, float]] = [
    # plainly right
    (PRODUCT, "1081", 1),
    (PRODUCT, "The answer is 1,081.", 1),
    (PRODUCT, "The answer is 1081.0", 1),
    (PRODUCT, "47 × 23 = 1081", 1),
    (PRODUCT, "47*23=1081", 1),
    (PRODUCT, "(47 x 23) = 1081.", 1),
    (PRODUCT, "47 times 23 is 1081.", 1),
    (PRODUCT, "The product of 47 and 23 is 1081.", 1),
    (PRODUCT, "1081 is the product of 47 and 23.", 1),
    (PRODUCT, "What is 47 × 23? It is 1081.", 1),
    # notations
    (PRODUCT, "**1081**", 1),
    (PRODUCT, r"The result is \boxed{1081}.", 1),
    (PRODUCT, r"$$47 \times 23 = 1{,}081$$", 1),
    (PRODUCT, "$1,081", 1),
    (PRODUCT, "1081%", 1),
    (PRODUCT, "1\u202f081", 1),
    (PRODUCT, "- 1081", 1),  # a list item
    (PRODUCT, "`1081`", 1),
    # steps, corrections, checks
    (PRODUCT, "47 * 20 = 940 and 47 * 3 = 141, so 47 * 23 = 1081.", 1),
    (PRODUCT, "Step 1: 47 * 20 = 940\nStep 2: 47 * 3 = 141\n\n1081", 1),
    (PRODUCT, "The answer is 1080. Wait, no: it is 1081.", 1),
    (PRODUCT, "1080 is wrong. It is 1081.", 1),
    (PRODUCT, "The answer is 1081, not 1080.", 1),
    (PRODUCT, "It is not 1080 but 1081.", 1),
    (PRODUCT, "The answer is 1081. You can check: 1081 / 23 = 47.", 1),
    (PRODUCT, "The calculator gave 1081, so the answer is 1081.", 1),
    (PRODUCT, "The answer is 1081. Sorry, it is 1082.", 0),
    # no answer
    (PRODUCT, "", 0),
    (PRODUCT, PRODUCT, 0),
    (PRODUCT, "47 × 23", 0),
    (PRODUCT, "I cannot compute that.", 0),
    (PRODUCT, "The answer is not 1081.", 0),
    (PRODUCT, "Is it 1081?", 0),
    # a choice is no answer
    (PRODUCT, "It is 1081 or 1082.", 0),
    (PRODUCT, "It is either 1080, or it is 1081.", 0),
    (PRODUCT, "1080. Or 1081.", 0),
    (PRODUCT, "1079, 1080, 1081, 1082", 0),
    (PRODUCT, "1080\n1081", 0),
    (PRODUCT, "It is between 1080 and 1082, maybe 1081 or 1082.", 0),
    # the wrong number
    (PRODUCT, "The answer is 1080.", 0),
    (PRODUCT, "1081.5", 0),
    (PRODUCT, "-1081", 0),
    (PRODUCT, "10811", 0),
    (PRODUCT, "1,08,1", 0),
    (PRODUCT, "1.081", 0),
    (PRODUCT, "answer1081xyz", 0),
    (PRODUCT, "The answer is 47.", 0),
    (PRODUCT, "2162 / 2", 0),
    (PRODUCT, "1" * 5000, 0),
    (PRODUCT, "(" * 5000 + "1081", 1),
    (PRODUCT, "1 " * 5000, 0),
    # tool calls that were not made
    (PRODUCT, '<tool_call>{"name": "calculator", "arguments": {"expression": "1081"}', 0),
    (PRODUCT, '{"name": "calculator", "arguments": {"expression": "1081"}}', 0),
    (PRODUCT, '{"expression": "1081"}', 0),
    (PRODUCT, "calculator(1081)", 0),
    (PRODUCT, "I used calculator(47 * 23) and got 1081.", 1),
    # signs
    (DIFFERENCE, "-24", 1),
    (DIFFERENCE, "\u221224", 1),
    (DIFFERENCE, "The answer is - 24.", 1),
    (DIFFERENCE, "17 - 41 = -24", 1),
    (DIFFERENCE, "24", 0),
    (DIFFERENCE, "17 - 41 = 24", 0),
    # the expected number stands in the question
    (APPLES, APPLES, 0),
    (APPLES, "Anna has 24 apples and gives 12 to Ben.", 0),
    (APPLES, "There are 12 apples left.", 1),
    (APPLES, "24 - 12 = 12", 1),
    (APPLES, "Anna has 24 apples and gives 12 to Ben. 24 - 12 = 12, so 12 are left.", 1),
    (APPLES, "24 are left.", 0),
]


def row_of(question: str) -> dict[str, Any]:
    params = {"input": [{"role": "user", "content": question}]}
    return {"responses_create_params": params, "expected_answer": ROW_OF[question], "kind": "word", "split": "test"}


def message(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": content}


def called(arguments: str, result: str) -> list[dict[str, Any]]:
    return [
        {"type": "function_call", "name": "calculator", "arguments": arguments, "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": result},
    ]


@pytest.mark.parametrize("question, answer, score", ANSWERS)
def test_an_answer_scores_as_a_person_would(question, answer, score):
    verdict = verdict_of(row_of(question), [*called('{"expression": "1"}', "1"), message(answer)])
    assert verdict.reward == score, verdict.metrics["extracted_answer"]


@pytest.mark.parametrize(
    "output",
    [
        [],
        called('{"expression": "47 * 23"}', "1081"),
        [message("The answer is 1081."), *called('{"expression": "47 * 23"}', "1081")],
        [*called('{"expression": "47 * 23"}', "1081"), {"type": "reasoning", "summary": [{"text": "1081"}]}],
        [{"type": "message", "role": "user", "content": "1081"}],
    ],
)
def test_without_a_final_message_nothing_is_answered(output):
    verdict = verdict_of(row_of(PRODUCT), output)
    assert (verdict.reward, verdict.metrics["extracted_answer"]) == (0.0, None)


def test_metrics():
    verdict = verdict_of(row_of(PRODUCT), [*called('{"expression": "47 * 23"}', "1081"), message("It is 1,081.")])
    assert verdict.metrics == {
        "expected_answer": "1081",
        "extracted_answer": "1081",
        "kind": "word",
        "split": "test",
        "tool_used": True,
        "call_well_formed": True,
        "num_calls": 1,
    }
    failed = verdict_of(row_of(PRODUCT), [*called('{"expression": "47 × 23"}', "Error: …"), message("1081")])
    assert (failed.reward, failed.metrics["tool_used"], failed.metrics["call_well_formed"]) == (1.0, False, True)
    broken = verdict_of(row_of(PRODUCT), [*called('{"expression": 47}', "Error: …"), message("1081")])
    assert broken.metrics["call_well_formed"] is False
    none = verdict_of(row_of(PRODUCT), [message("1081")])
    assert (none.metrics["tool_used"], none.metrics["call_well_formed"], none.metrics["num_calls"]) == (False, False, 0)


def test_without_a_question():
    assert extract_answer("It is 2.5.") == Fraction(5, 2)
    assert extract_answer("nothing") is None
