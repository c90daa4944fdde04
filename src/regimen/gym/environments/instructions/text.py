"""What the checks count: words, sentences, the parts between marks.

In: a text. Out: its words, its sentences, its parts. Every step is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_WORD = re.compile(r"\w+")
_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_]*+(?=\s|$)|[。！？]+")
_ABBREVIATIONS = frozenset((
    "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "vs", "etc", "e.g", "i.e", "approx", "fig", "dept", "inc",
    "ltd", "co", "p.s", "p.p.s", "u.s", "u.k", "a.m", "p.m",
))  # fmt: skip
_LONGEST_ABBREVIATION = 12  # characters that are looked at before a full stop


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, as the public benchmark counts them: "don't" is two."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of `text`: up to a full stop, question or exclamation mark with a space or the end behind it.

    Abbreviations, initials and the number of a list's item end none; what follows the last mark is a sentence too.
    """
    found: list[str] = []
    begin = 0
    for end in _END.finditer(text):
        if not _is_abbreviated(text, end):
            found.append(text[begin : end.end()].strip())
            begin = end.end()
    found.append(text[begin:].strip())
    return [sentence for sentence in found if _WORD.search(sentence)]


def _is_abbreviated(text: str, end: re.Match[str]) -> bool:
    """Whether the full stop at `end` belongs to the word before it."""
    if end.group() != ".":
        return False
    before = text[max(0, end.start() - _LONGEST_ABBREVIATION) : end.start()]
    cut = re.search(r"[^\s(\[\"'*_]*$", before)
    word = cut.group() if cut else ""
    if word.isdigit():  # "1." at the beginning of a line
        return before[: -len(word)].rstrip(" \t").endswith("\n") or end.start() == len(word)
    return word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")


def parts(text: str, mark: str) -> list[str] | None:
    """The parts between the marks, blank ones at both ends left out; None where a blank one stands between two."""
    found = [part.strip() for part in text.split(mark)]
    if not found[0]:
        found = found[1:]
    if found and not found[-1]:
        found = found[:-1]
    return found if all(found) else None


def bullets(text: str) -> Iterator[str]:
    """The lines that begin with `*` (one alone) or `-`."""
    for line in text.splitlines():
        said = line.lstrip()
        if said.startswith("-") or (said.startswith("*") and said[1:2] not in ("", "*")):
            yield said


def numbered(text: str) -> list[int]:
    """The numbers of the lines that begin with one, a full stop or parenthesis, and a space."""
    return [int(number) for number in re.findall(r"(?m)^[ \t]{0,8}(\d{1,3})[.)][ \t]+\S", text)]
