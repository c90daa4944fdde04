"""Chat templates: messages to token ids, with exact masks, and never a turn rendered twice.

In: chat messages (OpenAI spelling) and tools. Out: prompt ids, continuation ids, or `TokenSequence`s of a conversation.
Every segment (prompt, sampled turn, appended messages) is tokenised apart, as it was when the model sampled; so a
conversation read from text gives the ids that playing it would have given.
Refuses: a template that drops the tools it is given, or that cannot render a turn as a continuation of its prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from regimen.errors import PolicyError, TokenError
from regimen.rollouts.turns import TokenSequence
from regimen.tokens.parsing import parse_assistant_text

TOOLS_TEMPLATE = "tools"


def shipped_template(name: str = TOOLS_TEMPLATE) -> str:
    """The text of a chat template that comes with Regimen."""
    return resources.files("regimen.tokens").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")


class Renderer:
    """A tokenizer and a chat template. `stop_ids` end an assistant turn; fingerprints say what made the ids."""

    def __init__(
        self,
        tokenizer: Any,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        stop_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template_text(chat_template) or tokenizer.chat_template
        if not self.template:
            raise TokenError(
                "the tokenizer has no chat template",
                fix=f"set policy.tokenizer.chat_template to {TOOLS_TEMPLATE!r}, a file or a template",
            )
        self.kwargs = chat_template_kwargs or {}
        self.fingerprint = _digest(tokenizer.backend_tokenizer.to_str())
        self.template_fingerprint = _digest(self.template + json.dumps(self.kwargs, sort_keys=True))
        eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*eos, *stop_ids, *self._turn_end()]))
        self._stop_texts = [self.decode([stop]) for stop in self.stop_ids]
        self._tools_checked: set[str] = set()

    @classmethod
    def load(
        cls,
        model_folder: str | Path,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        *,
        trust_remote_code: bool = False,
    ) -> Renderer:
        """The renderer of a model folder or hub name. Raises `PolicyError` where it holds no tokenizer."""
        from transformers import AutoTokenizer  # imported when used: it takes a second

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(model_folder), trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise PolicyError(
                f"no tokenizer can be loaded ({str(error).splitlines()[0]})",
                where=str(model_folder),
                expected="a Hugging Face model folder or a hub name",
            ) from error
        return cls(tokenizer, chat_template, chat_template_kwargs, _generation_stops(Path(model_folder)))

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the chat template into a model folder."""
        own = self.tokenizer.chat_template
        self.tokenizer.chat_template = self.template
        try:
            self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.chat_template = own

    def render(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], *, prompt: bool) -> str:
        """The template's text; `prompt` adds the header of the assistant's turn. Raises `TokenError`."""
        try:
            return self.tokenizer.apply_chat_template(
                [_with_parsed_arguments(message) for message in messages],
                tools=list(tools) or None,
                chat_template=self.template,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.kwargs,
            )
        except Exception as error:  # a template is a program of somebody else's: anything may come out
            raise TokenError(f"the chat template failed: {error}", fix="set policy.tokenizer.chat_template") from error

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens only where the text spells them."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int], skip_special: bool = False) -> str:
        """Text of `ids`."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def prompt_ids(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[int]:
        """Ids of a conversation up to and including the header of the assistant's turn."""
        self._check_tools(messages, tools)
        return self.encode(self.render(messages, tools, prompt=True))

    def continuation_ids(
        self, assistant: dict[str, Any], appended: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
    ) -> list[int]:
        """Ids that follow the sampled ids of `assistant`: the rest of its turn, `appended`, the next header.

        The next prompt is the previous prompt + the sampled ids (stop token included) + these; history is not rendered
        again. Raises `TokenError` when the template rewrites the assistant's turn once something follows it.
        """
        history = [{"role": "user", "content": "-"}, assistant]
        before = self.render(history, tools, prompt=False)
        after = self.render([*history, *appended], tools, prompt=True)
        closed = self._through_stop(before)
        if closed is None or not after.startswith(closed):
            raise TokenError(
                "the chat template rewrites an assistant turn once messages follow it",
                fix="set policy.tokenizer.chat_template or chat_template_kwargs so that history is kept",
            )
        return self.encode(after[len(closed) :])

    def parse_assistant(self, ids: Sequence[int]) -> dict[str, Any]:
        """The chat message in sampled `ids`: content, reasoning, tool calls; `malformed_calls` counted."""
        kept = list(ids)
        while kept and kept[-1] in self.stop_ids:
            kept.pop()
        return parse_assistant_text(self.decode(kept))

    def conversation(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], *, first_trained: int = 0
    ) -> list[TokenSequence]:
        """Token sequences of a written conversation: assistant turns (with their stop token) are the spans.

        Usually one sequence. A template that rewrites earlier turns gives a new sequence where it does, so that every
        turn trains behind the prompt it would really be sampled from. Assistant messages before index `first_trained`
        are examples in the prompt: they are context.
        """
        self._check_tools(messages, tools)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first_trained]
        finished: list[TokenSequence] = []
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        seen = ""
        for index in turns:
            prompt, answer = self._turn(messages, tools, index)
            if ids and not prompt.startswith(seen):
                finished.append(TokenSequence(ids, spans, []))
                ids, spans, seen = [], [], ""
            ids = ids + self.encode(prompt[len(seen) :])
            start = len(ids)
            ids = ids + self.encode(answer)
            spans = [*spans, (start, len(ids))]
            seen = prompt + answer
        return [*finished, TokenSequence(ids, spans, [])] if ids else finished

    def _turn(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], index: int) -> tuple[str, str]:
        prompt = self.render(messages[:index], tools, prompt=True)
        closed = self._through_stop(self.render(messages[: index + 1], tools, prompt=False))
        if closed is None or not closed.startswith(prompt):
            raise TokenError(
                "the chat template does not render an assistant turn as a continuation of its prompt",
                where=f"message {index}",
                fix="set policy.tokenizer.chat_template or chat_template_kwargs",
            )
        return prompt, closed[len(prompt) :]

    def _through_stop(self, text: str) -> str | None:
        """`text` cut behind its last stop token, or None without one."""
        cuts = [text.rfind(stop) + len(stop) for stop in self._stop_texts if stop and stop in text]
        return text[: max(cuts)] if cuts else None

    def _turn_end(self) -> list[int]:
        """The special token that the template puts behind an assistant's words."""
        word = "answer"
        text = self.render([{"role": "user", "content": "-"}, {"role": "assistant", "content": word}], [], prompt=False)
        tail = self.encode(text[text.rfind(word) + len(word) :])
        special = set(self.tokenizer.all_special_ids)
        return [token for token in tail if token in special][:1]

    def _check_tools(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> None:
        key = json.dumps(list(tools), sort_keys=True, default=str)
        if not tools or key in self._tools_checked:
            return
        if self.render(messages, tools, prompt=True) == self.render(messages, [], prompt=True):
            raise TokenError(
                "the chat template drops the tools it is given",
                fix=f"set policy.tokenizer.chat_template={TOOLS_TEMPLATE}, or a template that knows tools",
            )
        self._tools_checked.add(key)


def template_text(value: str | None) -> str | None:
    """The text of a template given as such, as a file, or by the name of a shipped one; None: the tokenizer's own."""
    if value is None or value == "default":
        return None
    if "{" in value:
        return value
    if value == TOOLS_TEMPLATE:
        return shipped_template()
    path = Path(value)
    if not path.is_file():
        raise TokenError(
            "no such chat template",
            where=value,
            expected=f"'default', {TOOLS_TEMPLATE!r}, the path of a Jinja file, or a template",
        )
    return path.read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _generation_stops(folder: Path) -> list[int]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return []
    value = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    return [] if value is None else [int(stop) for stop in (value if isinstance(value, list) else [value])]


def _with_parsed_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Templates take `arguments` as an object; text that is no JSON object stays text."""
    if not message.get("tool_calls"):
        return message
    calls: list[dict[str, Any]] = []
    for call in message["tool_calls"]:
        function = dict(call.get("function", call))
        if isinstance(function.get("arguments"), str):
            try:
                parsed = json.loads(function["arguments"])
            except json.JSONDecodeError:
                parsed = None
            if isinstance(parsed, dict):
                function["arguments"] = parsed
        calls.append({**call, "function": function} if "function" in call else function)
    return {**message, "tool_calls": calls}
