"""Whether a text is an answer at all: prose on its subject, not keywords, padding, or the prompt again.

In: a text, the words of its subject, the prompt. Out: None, or what the text is instead. Rules for length and format
can be met by filling; this is what keeps filling from scoring. It judges no style and no truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from regimen.gym.environments.instructions.language import STOP_WORDS
from regimen.gym.environments.instructions.text import sentences, words

MIN_WORDS = 8
MIN_STOP_WORDS = 0.12  # of the words: keywords in a row have none
MAX_ONE_WORD = 0.2  # of the words that are one word, common words aside
MAX_REPEATED = 0.25  # of the sentences, and of the runs of words, that were said before
MAX_COPIED = 0.5  # of the runs of words that stand in the prompt
RUN = 5
_COMMON = {word for listed in STOP_WORDS.values() for word in listed}


def fault_of(text: str, subject: Collection[str], prompt: str, repeated: str = "") -> str | None:
    """What is wrong with `text`; `repeated` is the part of the prompt that it was told to begin with."""
    text = _without(text, repeated)
    said = [word.lower() for word in words(text)]
    if len(said) < MIN_WORDS:
        return "too short"
    if not any(word.lower() in text.lower() for word in subject):
        return "off the subject"
    if not _has_stop_words(said):
        return "no prose"
    if _repeats(said, text):
        return "repetition"
    return "the prompt again" if _copied(said, [word.lower() for word in words(prompt)]) > MAX_COPIED else None


def _without(text: str, repeated: str) -> str:
    start = text.strip().lower().startswith(repeated.strip().lower())
    return text.strip()[len(repeated.strip()) :] if repeated and start else text


def _has_stop_words(said: Sequence[str]) -> bool:
    """Whether common words of one language make up their usual part of the text."""
    most = max(sum(word in listed for word in said) for listed in STOP_WORDS.values())
    return most >= MIN_STOP_WORDS * len(said)


def _repeats(said: Sequence[str], text: str) -> bool:
    """Whether one word, the same words or the same sentences fill the text."""
    counts = Counter(word for word in said if word not in _COMMON)
    runs = _runs(said)
    if counts and max(counts.values()) > max(4, MAX_ONE_WORD * len(said)):
        return True
    if len(runs) - len(set(runs)) > MAX_REPEATED * len(runs):
        return True
    lines = [" ".join(words(sentence)).lower() for line in text.splitlines() for sentence in sentences(line)]
    return len(lines) - len(set(lines)) > MAX_REPEATED * len(lines)


def _copied(said: Sequence[str], prompt: Sequence[str]) -> float:
    """The share of runs of words that are the prompt's."""
    runs, known = _runs(said), set(_runs(prompt))
    return sum(run in known for run in runs) / max(1, len(runs))


def _runs(said: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(said[i : i + RUN]) for i in range(len(said) - RUN + 1)]
