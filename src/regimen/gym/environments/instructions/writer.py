"""The perfect player: a text on a subject that follows instructions, made of the sentences of the bank.

In: a subject and instructions. Out: the shortest text that follows them all, or None where none is found. It is the
proof that the instructions of a generated task do not contradict each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from regimen.gym.environments.instructions import bank
from regimen.gym.environments.instructions.checks import CHOICES, Instruction, forbidden_words

MIN_SENTENCES = 3
Wanted = Mapping[str, dict[str, Any]]


def written(subject: str, instructions: Sequence[Instruction]) -> str | None:
    """A text about `subject` that follows all `instructions`."""
    wanted: Wanted = {one.id: one.parameters for one in instructions}
    needed = _needed(subject, wanted)
    spare = [sentence for sentence in _sentences(subject, wanted) if sentence not in needed]
    for count in range(max(0, MIN_SENTENCES - len(needed)), len(spare) + 1):
        text = _text(subject, [*spare[:1], *needed, *spare[1:count]] if count else needed, wanted)
        if all(one.is_followed(text) for one in instructions):
            return text
    return None


def _sentences(subject: str, wanted: Wanted) -> list[str]:
    """Sentences about the subject, the first of which names it, in the language and without what is forbidden."""
    language = wanted.get("language:response_language", {}).get("language", "en")
    sentences = [sentence.format(s=subject) for sentence in bank.FOREIGN.get(language, bank.SENTENCES)]
    forbidden = wanted.get("keywords:forbidden_words", {}).get("forbidden_words", [])
    kept = [sentence for sentence in sentences if forbidden_words(sentence, forbidden)]
    letters = wanted.get("keywords:letter_frequency")
    if letters:
        most = letters["let_relation"] == "at least"
        kept.sort(key=lambda sentence: (-1 if most else 1) * sentence.lower().count(letters["letter"]))
    return sorted(kept, key=lambda sentence: subject not in sentence) if letters else kept


def _needed(subject: str, wanted: Wanted) -> list[str]:
    """The sentences that instructions ask for by their content."""
    needed: list[str] = []
    if "detectable_format:constrained_response" in wanted:
        needed.append(CHOICES[0])
    for keyword, shape in zip(wanted.get("keywords:existence", {}).get("keywords", []), bank.KEYWORD_SENTENCES):  # noqa: B905
        needed.append(shape.format(k=keyword))
    often = wanted.get("keywords:frequency")
    if often:
        needed += [shape.format(k=often["keyword"]) for shape in bank.KEYWORD_SENTENCES[: often["frequency"]]]
    if "detectable_content:number_placeholders" in wanted:
        needed.append(bank.PLACEHOLDERS)
    return needed if not needed else [f"I like to write about the {subject}.", *needed]


def _text(subject: str, sentences: list[str], wanted: Wanted) -> str:
    text = _shaped(subject, _marked(sentences, wanted), wanted)
    start = wanted.get("startend:start_checker")
    if start:
        text = f"{start['start_phrase']} {text[:1].lower()}{text[1:]}"
    if "detectable_format:title" in wanted:
        text = f"<<About {subject}>>\n\n{text}"
    repeat = wanted.get("combination:repeat_prompt")
    if repeat:
        text = f"{repeat['prompt_to_repeat']}\n\n{text}"
    postscript, end = wanted.get("detectable_content:postscript"), wanted.get("startend:end_checker")
    if postscript:
        text = f"{text}\n\n{postscript['postscript_marker']} {bank.POSTSCRIPT}"
    if end:
        text = f"{text}\n\n{end['end_phrase']}"
    if "startend:quotation" in wanted:
        text = f'"{text}"'
    if "change_case:english_capital" in wanted:
        return text.upper()
    return text.lower() if "change_case:english_lowercase" in wanted else text


def _marked(sentences: list[str], wanted: Wanted) -> list[str]:
    """Words in capital letters, and highlighted ones: the last of a sentence."""
    capital = wanted.get("change_case:capital_word_frequency", {})
    if capital.get("capital_relation") == "at least":
        count = capital["capital_frequency"]
        sentences = [_last_word(s, str.upper) if index < count else s for index, s in enumerate(sentences)]
    count = wanted.get("detectable_format:number_highlighted_sections", {}).get("num_highlights", 0)
    return [_last_word(s, _starred) if index < count else s for index, s in enumerate(sentences)]


def _starred(word: str) -> str:
    return f"*{word}*"


def _last_word(sentence: str, change: Callable[[str], str]) -> str:
    return re.sub(r"\w+(?=\W*$)", lambda match: change(match.group()), sentence, count=1)


def _shaped(subject: str, sentences: list[str], wanted: Wanted) -> str:
    """The sentences in the form that is asked for."""
    if "detectable_format:number_bullet_lists" in wanted:
        num = wanted["detectable_format:number_bullet_lists"]["num_bullets"]
        return "\n".join(f"* {part}" for part in _split(sentences, num))
    if "detectable_format:numbered_list" in wanted:
        num = wanted["detectable_format:numbered_list"]["num_items"]
        return "\n".join(f"{index}. {part}" for index, part in enumerate(_split(sentences, num), start=1))
    if "length_constraints:number_paragraphs" in wanted:
        return "\n***\n".join(_split(sentences, wanted["length_constraints:number_paragraphs"]["num_paragraphs"]))
    nth = wanted.get("length_constraints:nth_paragraph_first_word")
    if nth:
        paragraphs: list[str] = _split(sentences, nth["num_paragraphs"])
        index: int = nth["nth_paragraph"] - 1
        if index < len(paragraphs):
            chosen = paragraphs[index]
            paragraphs[index] = f"{nth['first_word'].capitalize()} {chosen[0].lower()}{chosen[1:]}"
        return "\n\n".join(paragraphs)
    sections = wanted.get("detectable_format:multiple_sections")
    if sections:
        found = _split(sentences, sections["num_sections"])
        head = sections["section_spliter"]
        return "\n\n".join(f"{head} {index}\n{part}" for index, part in enumerate(found, start=1))
    if "detectable_format:json_format" in wanted:
        return json.dumps({"subject": subject, "text": " ".join(sentences)}, indent=2)
    if "combination:two_responses" in wanted:
        return "\n******\n".join(_split(sentences, 2))
    return " ".join(sentences)


def _split(sentences: list[str], num: int) -> list[str]:
    """`num` parts, the last with what is left."""
    return [*sentences[: num - 1], *([" ".join(sentences[num - 1 :])] if len(sentences) >= num else [])]
