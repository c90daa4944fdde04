"""Where a text states its answer: boxes, "the answer is ...", the last sentence. For verifiers.

In: the output items of an episode, its task row. Out: the final text, the content of the last box, the words behind the
last "answer is", the statements of a text. Every step is linear in the text, or works on its bounded end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from regimen.rollouts.messages import content_text, input_messages, item_type

MAX_LENGTH = 4000  # characters; of a longer text without a box, the end is read

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s*(\d+|[A-Za-z](?![A-Za-z]))")
_BETWEEN_BOXES = re.compile(
    r"[\s$]*(?:[,;&]|\\text\s*\{\s*)?[\s$]*(?:and|or)?[\s$]*\}?[\s$]*(?:[A-Za-z](?:_\d)?\s*=\s*)?[\s$]*"
)
MAX_BETWEEN = 60
MAX_LISTED = 20
_ANCHOR = re.compile(r"(?:\banswers?\b[^.\n:=?]{0,40}?(?:\bis\b|\bare\b|\bwas\b|:|=)|####)[\s:]*", re.IGNORECASE)
_BROKEN_ANCHOR = re.compile(r"(\banswers?\b[^\n]{0,40}[:*])[\s*]*\n\s*", re.IGNORECASE)
# No sentence ends behind the letter of an option at the beginning of a line.
_SENTENCE = re.compile(r"(?<=[.!?;])(?<!\n[A-Z]\.)\s+|\n+|(?<=,)\s+(?=(?:so|thus|therefore|hence)\b)", re.IGNORECASE)
_DISPLAY = re.compile(r"\\\[(.{0,400}?)\\\]|\$\$(.{0,400}?)\$\$", re.DOTALL)
_MARKUP = re.compile(r"\*\*|__|`")
_LIST_MARK = re.compile(r"(?m)^[ \t]*(?:[-*•]|#{1,3}(?!#)|[0-9]{1,2}\.(?=[ \t]+\S*[A-Za-z]))[ \t]+")
_DENIED = re.compile(r",?\s*(?:\band\s+|\bbut\s+)?\bnot\s+\$?(?:[-−]?[0-9][0-9.,/]*|\(?[A-Z]\)?)(?![\w])\$?")
_DENIAL = re.compile(r"\b(?:not|never|neither|nor|wrong|incorrect|cannot)\b|n't\b|n’t\b", re.IGNORECASE)


def final_text(output: Sequence[dict[str, Any]]) -> str | None:
    """The text of the assistant messages that end the output; None where it ends with a tool call or output."""
    texts: list[str] = []
    for item in reversed(output):
        if item_type(item) == "message" and item.get("role") == "assistant":
            texts.append(content_text(item.get("content")))
        elif item_type(item) != "reasoning":
            break
    return "\n".join(reversed(texts)) if texts else None


def question_of(row: dict[str, Any]) -> str:
    """The last user message of the task."""
    messages = input_messages(row["responses_create_params"])
    return next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")


def without_thinking(text: str) -> str:
    """What follows the last `</think>`; thoughts that never end state nothing."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def boxed(text: str) -> list[str]:
    """The contents of the last box of `text`, and of those that are listed with it (`\\boxed{1} or \\boxed{2}`).

    Boxes that are empty or never closed do not count. [] where there is none.
    """
    boxes = _boxes(text)
    listed: list[str] = []
    after: int | None = None
    for start, end, content in reversed(boxes[-MAX_LISTED:]):
        if after is not None:
            between = text[end:after]
            if len(between) > MAX_BETWEEN or not _BETWEEN_BOXES.fullmatch(between):
                break
        if content not in listed:
            listed.append(content)
        after = start
    return listed[::-1]


def names_box(text: str) -> bool:
    """Whether a box is spoken of, be it empty or never closed."""
    return "\\boxed" in text or "\\fbox" in text


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every closed box that holds something, and no other box, in order."""
    found = [(match.start(), match.end(), match.group(1)) for match in _BARE_BOX.finditer(text)]
    opened: list[tuple[int, int, bool]] = []
    for token in _BOX_TOKEN.finditer(text):
        if len(token.group()) > 2:
            opened.append((token.start(), token.end(), True))
        elif token.group() == "{":
            opened.append((token.start(), token.end(), False))
        elif token.group() == "}" and opened:
            start, begin, is_box = opened.pop()
            content = text[begin : token.start()].strip() if is_box else ""
            if content and not re.search(r"\\(?:boxed|fbox)\s*\{", content[:200]):
                found.append((start, token.end(), content))
    return sorted(found)


def statements(text: str) -> list[str]:
    """The sentences and lines of the end of `text`, without emphasis, list marks, questions and what is denied."""
    text = "\n" + _MARKUP.sub("", text[-MAX_LENGTH:])
    text = _DISPLAY.sub(lambda match: " $" + " ".join((match.group(1) or match.group(2) or "").split()) + "$ ", text)
    text = _LIST_MARK.sub("", _BROKEN_ANCHOR.sub(r"\1 ", text))
    parts: list[str] = []
    for sentence in _SENTENCE.split(text):
        part = _DENIED.sub("", sentence).strip()
        if not part:
            continue
        if parts and re.match(r"(?:or|and)\b", part, re.IGNORECASE):  # it goes on with the statement before
            part = f"{parts.pop().rstrip('.;,')} {part}"
        parts.append(part)
    return [part for part in parts if not part.endswith("?") and not _DENIAL.search(part)]


def behind_answer(statement: str) -> str | None:
    """What a statement says behind its last "answer is", "answer:" or "####"; None where it says none."""
    anchors = list(_ANCHOR.finditer(statement))
    return statement[anchors[-1].end() :].strip() or None if anchors else None


def squeezed(text: str) -> str:
    """`text` in lower case without anything but letters and digits, to tell repetitions."""
    return re.sub(r"\W+", " ", text).strip().lower()
