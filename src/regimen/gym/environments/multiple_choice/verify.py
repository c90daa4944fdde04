"""Which letter a text chooses: in its last box, behind "the answer is", or in its last statement.

In: the final text, the question, the options where they are known. Out: a capital letter, or None where there is none,
or more than one. A text with a box is judged by its box alone; a list of letters chooses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from regimen.gym.answers import behind_answer, boxed, names_box, squeezed, statements, without_thinking

_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textit|mbox)\s*\{([^{}]*)\}")
_MARKUP = re.compile(r"\\[()\[\]]|[$*`]")
# A letter that stands for an option: alone, in parentheses, or before the option's text.
_LETTER = re.compile(r"(?<![\w'’])\(?([A-Z])\)?(?![\w'’])")
_ALONE = re.compile(r"\(?([A-Za-z])[).:]?")
_LEADING = re.compile(r"\(?([A-Z])(?:\)|[.:](?=\s)|\)?$)")
_NAMED = re.compile(r"\b(?i:options?|choices?|letters?|answers?)\s+\(?([A-Z])\)?(?![\w'’])")
_PARENTHESISED = re.compile(r"\(([A-Z])\)")


def extract_choice(text: str, question: str = "", options: Mapping[str, str] | None = None) -> str | None:
    """The letter that `text` chooses."""
    options = options or {}
    text = without_thinking(text)
    boxes = boxed(text)
    if boxes:
        letters = {_chosen(content, options) for content in boxes}
        return letters.pop() if len(letters) == 1 else None
    if names_box(text):
        return None
    said = [part for part in statements(text) if _LEADING.match(part) or squeezed(part) not in squeezed(question)]
    for part in reversed(said):
        behind = behind_answer(part)
        if behind is not None:
            return _chosen(behind, options)
    return _last_stated(said, options)


def letter_of(answer: str) -> str | None:
    """The letter in the right answer of a row: `C`, `(C)`, `C.`, in a box or behind "Answer:"."""
    boxes = boxed(answer)
    content = boxes[-1] if len(boxes) == 1 else behind_answer(answer.strip()) or answer
    return _chosen(content, {})


def _chosen(content: str, options: Mapping[str, str]) -> str | None:
    """The one letter in `content`; None for several, for none, and for one that is no option."""
    plain = _plain(content)
    letters = _letters(plain, options)
    if len(letters) > 1:
        return None
    alone = _ALONE.fullmatch(plain)
    if alone:
        return _known(alone.group(1).upper(), options)
    leading = _LEADING.match(plain)
    if leading:
        return _known(leading.group(1), options)
    named = [letter for letter, option in options.items() if squeezed(option) == squeezed(plain) != ""]
    if named:
        return named[0] if len(named) == 1 else None
    if len(letters) == 1 and not _is_word(plain):
        return _known(letters.pop(), options)
    return None


def _last_stated(said: list[str], options: Mapping[str, str]) -> str | None:
    """The letter of the last statement that names one; letters on lines of their own are one list."""
    bare: list[str] = []
    for part in reversed(said):
        plain = _plain(part)
        alone = _ALONE.fullmatch(plain)
        if alone:
            bare.append(alone.group(1).upper())
            continue
        if bare:
            break
        leading = _LEADING.match(plain)
        found = set(_NAMED.findall(plain)) | set(_PARENTHESISED.findall(plain))
        found |= {leading.group(1)} if leading else set()
        if found:
            several = len(found | _letters(plain, options)) > 1
            follows = _follows_another(said, part) if leading else False
            return None if several or follows else _known(found.pop().upper(), options)
    return _known(bare[0], options) if len(set(bare)) == 1 else None


def _follows_another(said: list[str], part: str) -> bool:
    """Whether an option before this one stands in the same list, as where all are listed."""
    before = said[: said.index(part)]
    return bool(before) and _LEADING.match(_plain(before[-1])) is not None


def _letters(plain: str, options: Mapping[str, str]) -> set[str]:
    """Letters in `plain` that stand for options; the articles and pronouns `A` and `I` before a word do not."""
    text = plain
    for option in options.values():
        text = text.replace(option, " ") if len(option) > 1 else text
    text = re.sub(r"(?<![\w(])[AI](?=\s+[a-z])(?!\s+(?:or|and)\b)", " ", text)
    return set(_LETTER.findall(text))


def _is_word(plain: str) -> bool:
    """Whether the only letter is the article that begins a sentence."""
    return re.match(r"[AI]\s+[a-z]", plain) is not None


def _known(letter: str, options: Mapping[str, str]) -> str | None:
    return letter if not options or letter in options else None


def _plain(text: str) -> str:
    for _ in range(3):
        text = _TEXT.sub(r"\1", text)
    return _MARKUP.sub("", text).strip().strip(".,;").strip()
