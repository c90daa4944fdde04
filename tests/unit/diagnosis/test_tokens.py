"""What is said of tokens: what a cut would lose, how many ids differ, which templates are at fault."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from regimen.diagnosis.templates import TemplateReport, probe_template
from regimen.diagnosis.tokens import TokenDiagnosis, TokenRow, token_row_of
from regimen.rollouts.records import Source, rollout_from_row
from regimen.rollouts.turns import TokenSequence
from regimen.tokens.template import Renderer

SOURCE = Source("r.jsonl", 1)
QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
}


@pytest.fixture(scope="module")
def renderer(tiny: ModuleType) -> Renderer:
    return Renderer(tiny.tiny_tokenizer())


def row(*messages: dict[str, Any], recorded: Any = (), **fields: Any) -> TokenRow:
    return TokenRow(
        source=SOURCE, messages=[QUESTION, *messages], tools=[], first_trained=1, recorded=list(recorded), **fields
    )


def only(diagnosis: TokenDiagnosis) -> Any:
    (found,) = diagnosis.finish()
    return found


def test_a_cut_is_described_by_what_it_would_lose() -> None:
    diagnosis = TokenDiagnosis(None, max_length=10)
    # A call within the length and an answer beyond it; a call beyond it; a row that fits.
    assert not diagnosis.add(row(CALL, ANSWER, recorded=[TokenSequence(list(range(12)), [(2, 4), (6, 12)], [])]))
    assert not diagnosis.add(row(CALL, recorded=[TokenSequence(list(range(11)), [(2, 11)], [])]))
    assert diagnosis.add(row(ANSWER, recorded=[TokenSequence(list(range(10)), [(2, 10)], [])]))
    found = only(diagnosis)
    assert (found.code, found.count) == ("over_length", 2)
    assert "the longest has 12" in found.message
    assert "final answer of 1 and a tool call of 1" in found.message
    assert found.fix.startswith("raise policy.max_total_sequence_length to 12")


def test_a_prompt_must_leave_room_for_an_answer(renderer: Renderer) -> None:
    size = len(renderer.prompt_ids([QUESTION], []))
    prompt = TokenRow(source=SOURCE, messages=[QUESTION], tools=[], first_trained=1, is_prompt=True)
    assert TokenDiagnosis(renderer, size + 1).add(prompt)
    diagnosis = TokenDiagnosis(renderer, size)
    assert not diagnosis.add(prompt)
    assert "no room for an answer" in only(diagnosis).message


@pytest.mark.parametrize(("others", "severity", "meaning"), [(3, "warning", "too many"), (4, "note", "normal")])
def test_other_ids_are_normal_in_small_numbers(renderer: Renderer, others: int, severity: str, meaning: str) -> None:
    diagnosis = TokenDiagnosis(renderer, None)
    letters = [token for letter in "<|im_end|>" for token in renderer.encode(letter)]
    stop, prompt = renderer.encode("<|im_end|>"), renderer.prompt_ids([QUESTION], [])

    def sampled(ids: list[int]) -> TokenRow:
        return row(ANSWER, recorded=[TokenSequence([*prompt, *ids], [(len(prompt), len(prompt) + len(ids))], [])])

    diagnosis.add(sampled([*renderer.encode("a"), *letters, *stop]))
    for _ in range(others):
        diagnosis.add(sampled(renderer.encode("a<|im_end|>")))
    found = only(diagnosis)
    assert (found.code, found.count, found.severity) == ("retokenised_ids_differ", 1, severity)
    assert f"1 of {others + 1} model calls" in found.message
    assert meaning in found.message


def test_a_truncated_answer_needs_no_stop_token(renderer: Renderer) -> None:
    prompt = renderer.prompt_ids([QUESTION], [])
    ids = renderer.encode("a")
    sequence = TokenSequence([*prompt, *ids], [(len(prompt), len(prompt) + len(ids))], [])
    diagnosis = TokenDiagnosis(renderer, None)
    assert diagnosis.add(row(ANSWER, recorded=[sequence], is_truncated=True))
    assert diagnosis.finish() == []
    diagnosis.add(row(ANSWER, recorded=[sequence]))
    assert only(diagnosis).code == "missing_stop"


def test_the_shipped_template_keeps_everything(renderer: Renderer) -> None:
    assert probe_template(renderer) == TemplateReport(
        drops_tools=False, drops_tool_calls=False, rewrites_history=False, lacks_stop=False
    )


def test_a_template_that_knows_only_words(tiny: ModuleType) -> None:
    bare = "{% for m in messages %}{{ m.content.split('</think>')[-1] if not loop.last else m.content }}\n{% endfor %}"
    assert probe_template(Renderer(tiny.tiny_tokenizer(), bare)) == TemplateReport(
        drops_tools=True, drops_tool_calls=True, rewrites_history=True, lacks_stop=True
    )


def test_what_has_no_chat_form_is_left_to_the_conversion() -> None:
    image = {"type": "web_search_call", "id": "w"}
    made = {"responses_create_params": {"input": "q"}, "output": [image], "reward": 1}
    assert token_row_of(rollout_from_row(made, SOURCE)) is None
