"""Problems that show only in tokens: lengths, masks, templates, stop tokens, ids of another tokenizer.

In: `TokenRow`s (a conversation, and the model calls with the ids that were sampled, where they are known), a renderer
or None, a length or None. Out: `Finding`s. Without a renderer only recorded ids are looked at.
Refuses nothing: a row that a template cannot render is counted.
"""

from __future__ import annotations

from typing import Any

import msgspec

from regimen.diagnosis.findings import Finding, Tally, finding, num_rows
from regimen.diagnosis.templates import TemplateReport, probe_template
from regimen.diagnosis.thresholds import DEFAULT_THRESHOLDS, Thresholds
from regimen.errors import RolloutError, TokenError
from regimen.rollouts.messages import chat_tools, input_messages, output_messages
from regimen.rollouts.outcomes import Outcome
from regimen.rollouts.records import Rollout, Source
from regimen.rollouts.turns import TokenSequence, sequences_of, turns_of
from regimen.tokens.template import Renderer

Message = dict[str, Any]


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """One conversation. Messages before `first_trained` are its prompt; `recorded` are sampled ids, where known.

    `is_prompt`: there is nothing but a prompt, which a model will be asked to go on from.
    """

    source: Source
    messages: list[Message]
    tools: list[Message]
    first_trained: int
    recorded: list[TokenSequence] = []
    is_truncated: bool = False
    is_prompt: bool = False

    @property
    def answers(self) -> list[Message]:
        """The assistant's turns that train."""
        return [message for message in self.messages[self.first_trained :] if message["role"] == "assistant"]


def token_row_of(rollout: Rollout) -> TokenRow | None:
    """The conversation of a rollout; None where it has no chat form (converting counts those)."""
    try:
        prompt = input_messages(rollout.params)
        return TokenRow(
            source=rollout.source,
            messages=[*prompt, *output_messages(rollout.output)],
            tools=chat_tools(rollout.params),
            first_trained=len(prompt),
            recorded=sequences_of(turns_of(rollout.output)),
            is_truncated=rollout.outcome == Outcome.TRUNCATED,
        )
    except RolloutError:
        return None


class TokenDiagnosis:
    """Takes rows with `add`, gives `Finding`s with `finish`."""

    def __init__(
        self, renderer: Renderer | None, max_length: int | None, thresholds: Thresholds = DEFAULT_THRESHOLDS
    ) -> None:
        self.renderer, self.max_length, self.thresholds = renderer, max_length, thresholds
        self.template: TemplateReport | None = None if renderer is None else probe_template(renderer)
        self.tally = Tally()
        self.longest = 0
        self._calls = self._other_calls = 0
        self._lost_answers = self._lost_calls = self._long_prompts = 0

    def add(self, row: TokenRow) -> bool:
        """Check one row; whether it could be trained on (or, a prompt, be asked)."""
        if self.template is not None and self._template_problems(row, self.template):
            return False  # it cannot be rendered rightly: its length and mask would be those of something else
        sequences = row.recorded
        fits = self._check_recorded(row) if sequences else True
        if not sequences and self.renderer is not None:
            rendered = self._rendered(row, self.renderer)
            if rendered is None:
                return False
            sequences = rendered
        if self.renderer is not None and not row.is_prompt and not any(s.num_trained for s in sequences):
            self._note("nothing_to_train", row)
            fits = False
        bos = None if self.renderer is None else self.renderer.tokenizer.bos_token_id
        if bos is not None and any(sequence.ids[:2] == [bos, bos] for sequence in sequences):
            self._note("double_bos", row)
        return self._check_length(row, sequences) and fits

    def _note(self, code: str, row: TokenRow) -> None:
        self.tally.note(code, row.source)

    def _template_problems(self, row: TokenRow, template: TemplateReport) -> bool:
        """Note what the template does to this row; whether that keeps it from being rendered."""
        has_calls = any(message.get("tool_calls") for message in row.messages)
        drops = {
            "template_drops_tools": template.drops_tools and bool(row.tools),
            "template_drops_tool_calls": template.drops_tool_calls and has_calls,
        }
        for code, applies in drops.items():
            if applies:
                self._note(code, row)
        if template.lacks_stop and row.answers and not row.recorded:
            self._note("missing_stop", row)
            return True
        return any(drops.values()) and not row.recorded

    def _rendered(self, row: TokenRow, renderer: Renderer) -> list[TokenSequence] | None:
        try:
            if row.is_prompt:
                return [TokenSequence(renderer.prompt_ids(row.messages, row.tools), [], [])]
            sequences = renderer.conversation(row.messages, row.tools, first_trained=row.first_trained)
        except TokenError:
            self._note("template_failed", row)
            return None
        if len(sequences) > 1:
            self._note("template_rewrites_history", row)
        return sequences

    def _check_recorded(self, row: TokenRow) -> bool:
        """Look at sampled ids; whether they are of this tokenizer."""
        if self.renderer is None:
            return True
        tokenizer, stops = self.renderer.tokenizer, self.renderer.stop_ids
        spans = [sequence.ids[start:stop] for sequence in row.recorded for start, stop in sequence.spans]
        if max((max(sequence.ids, default=0) for sequence in row.recorded), default=0) >= len(tokenizer):
            self._note("other_tokenizer", row)
            return False
        texts = [self.renderer.decode(ids) for ids in spans]
        said = [message.get("content") or "" for message in row.answers]
        spelled = "".join(texts)
        if any(isinstance(text, str) and text.strip() not in spelled for text in said):
            self._note("other_tokenizer", row)
            return False
        differing = sum(self.renderer.encode(text) != ids for text, ids in zip(texts, spans, strict=True))
        self._calls += len(spans)
        self._other_calls += differing
        if differing:
            self._note("retokenised_ids_differ", row)
        ended = spans[:-1] if row.is_truncated else spans
        if any(not ids or ids[-1] not in stops for ids in ended):
            self._note("missing_stop", row)
        return True

    def _check_length(self, row: TokenRow, sequences: list[TokenSequence]) -> bool:
        """Whether the row fits the length; a prompt must leave room for an answer."""
        longest = max((len(sequence.ids) for sequence in sequences), default=0)
        self.longest = max(self.longest, longest)
        if self.max_length is None or longest + row.is_prompt <= self.max_length:
            return True
        self._note("over_length", row)
        self._long_prompts += row.is_prompt
        ends = [stop for sequence in sequences for _, stop in sequence.spans]
        turns = row.answers
        if row.is_prompt or len(ends) != len(turns):  # of recorded calls without words the kind is not known
            return False
        cut = [turn for turn, stop in zip(turns, ends, strict=True) if stop > self.max_length]
        self._lost_calls += any(turn.get("tool_calls") for turn in cut)
        self._lost_answers += bool(cut) and cut[-1] is turns[-1] and not turns[-1].get("tool_calls")
        return False

    def finish(self) -> list[Finding]:
        """All findings, in the order of the codes."""
        found: list[Finding] = []
        for code, message in _MESSAGES.items():
            found += self.tally.finding(code, message)
        return [*found, *self._over_length(), *self._retokenised()]

    def _over_length(self) -> list[Finding]:
        count = self.tally.counts["over_length"]
        if not count:
            return []
        lost = f"the final answer of {self._lost_answers} and a tool call of {self._lost_calls}"
        meaning = f"training leaves them out; cutting them would lose {lost}"
        if self._long_prompts:
            meaning = "these prompts leave no room for an answer"
        message = f"{num_rows(count)} beyond {self.max_length} tokens (the longest has {self.longest}): {meaning}"
        fix = f"raise policy.max_total_sequence_length to {self.longest}, or leave those rows out"
        return [finding("over_length", count, message, fix=fix, example=self.tally.examples["over_length"])]

    def _retokenised(self) -> list[Finding]:
        count = self.tally.counts["retokenised_ids_differ"]
        if not count:
            return []
        share = self._other_calls / self._calls
        many = share > self.thresholds.retokenised_high
        meaning = "too many for chance: another tokenizer or template is likely" if many else "normal in small numbers"
        message = (
            f"{num_rows(count)} whose text gives other ids than were sampled, in {self._other_calls} of {self._calls} "
            f"model calls ({share:.1%}; {meaning}): a sampler may spell a text in more ways than the tokenizer does"
        )
        severity = "warning" if many else None
        example = self.tally.examples["retokenised_ids_differ"]
        return [finding("retokenised_ids_differ", count, message, severity=severity, example=example)]


_MESSAGES = {
    "template_drops_tools": "{n} offer tools that the chat template does not write: the model never sees them",
    "template_drops_tool_calls": "{n} with tool calls or tool answers that the chat template does not write",
    "template_rewrites_history": "{n} whose earlier turns the chat template writes otherwise once a message follows",
    "template_failed": "{n} that the chat template cannot write as a prompt and its continuation",
    "other_tokenizer": "{n} whose sampled ids do not spell their text with this tokenizer",
    "nothing_to_train": "{n} with no token to train on",
    "double_bos": "{n} that begin with the first token twice",
    "missing_stop": "{n} with a turn that ends without a stop token",
}
