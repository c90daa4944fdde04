"""The instructions by name, each with its check: a function of the text and the instruction's parameters.

In: the id and the parameters of an instruction as the public benchmark IFEval writes them, a text. Out: whether the
text follows it. Two ids are added to its 25: `detectable_format:numbered_list` and `startend:start_checker`.
Refuses, with `GymError`: unknown ids, parameters that are missing, of a wrong type or of another instruction: such a
task cannot be judged, which is no fault of the text. Every check is linear in the text; keywords are texts, not
patterns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from typing import Annotated, Any, Literal, get_type_hints

import msgspec

from regimen.errors import GymError
from regimen.gym.environments.instructions.language import KNOWN, language_of
from regimen.gym.environments.instructions.text import bullets, numbered, parts, sentences, words
from regimen.registry import did_you_mean

Relation = Literal["less than", "at least", "at most", "exactly"]
Count = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
Letter = Annotated[str, msgspec.Meta(min_length=1, max_length=1)]
Phrase = Annotated[str, msgspec.Meta(min_length=1)]

CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCE = re.compile(r"\A\s*```(?:json)?[ \t]*\n(.*)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)


def compared(count: int, relation: Relation, number: int) -> bool:
    """Whether `count` stands in `relation` to `number`."""
    return {
        "less than": count < number,
        "at least": count >= number,
        "at most": count <= number,
        "exactly": count == number,
    }[relation]


def existence(text: str, keywords: list[Phrase]) -> bool:
    """All keywords occur, in any case, also inside longer words."""
    return all(keyword.lower() in text.lower() for keyword in keywords)


def frequency(text: str, keyword: Phrase, frequency: Count, relation: Relation) -> bool:
    """The keyword occurs so often, in any case, also inside longer words."""
    return compared(text.lower().count(keyword.lower()), relation, frequency)


def forbidden_words(text: str, forbidden_words: list[Phrase]) -> bool:
    """None of the words occurs as a word of its own, in any case."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: Letter, let_frequency: Count, let_relation: Relation) -> bool:
    """The letter occurs so often, in any case."""
    return compared(text.lower().count(letter.lower()), let_relation, let_frequency)


def response_language(text: str, language: str) -> bool:
    """The text is in the language; one that nothing speaks for is in none."""
    code = language.lower().replace("_", "-").split("-")[0]
    if code not in KNOWN:
        raise GymError(f"language {language!r} cannot be told", expected=f"one of {', '.join(sorted(KNOWN))}")
    return language_of(text) == code


def number_sentences(text: str, num_sentences: Count, relation: Relation) -> bool:
    """So many sentences."""
    return compared(len(sentences(text)), relation, num_sentences)


def number_paragraphs(text: str, num_paragraphs: Count) -> bool:
    """Exactly so many paragraphs between lines of `***`."""
    found = parts(text, "***")
    return found is not None and len(found) == num_paragraphs


def number_words(text: str, num_words: Count, relation: Relation) -> bool:
    """So many words."""
    return compared(len(words(text)), relation, num_words)


def nth_paragraph_first_word(text: str, num_paragraphs: Count, nth_paragraph: Count, first_word: Phrase) -> bool:
    """So many paragraphs between empty lines, and the one of that number begins with that word."""
    found = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(found) != num_paragraphs or not 1 <= nth_paragraph <= len(found):
        return False
    first = found[nth_paragraph - 1].split()[0].strip("\"'*_").rstrip(".,?!:;\"'*_")
    return first.lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: Count) -> bool:
    """At least so many `[...]`."""
    return len(re.findall(r"\[[^\[\]\n]*\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: Phrase) -> bool:
    """The marker of a postscript occurs; spaces between its letters do not matter."""
    spelled = re.sub(r"\\\.(?!$)", r"\\.\\s?", re.escape(postscript_marker.strip().lower()))
    return re.search(spelled, text.lower()) is not None


def number_bullet_lists(text: str, num_bullets: Count) -> bool:
    """Exactly so many lines that are bullets."""
    return sum(1 for _ in bullets(text)) == num_bullets


def numbered_list(text: str, num_items: Count) -> bool:
    """Exactly so many numbered lines, from 1 up."""
    return numbered(text) == list(range(1, num_items + 1))


def constrained_response(text: str) -> bool:
    """One of the three answers is given, in these words, and no other."""
    return sum(choice in text for choice in CHOICES) == 1


def number_highlighted_sections(text: str, num_highlights: Count) -> bool:
    """At least so many `*highlighted*` parts."""
    marked = re.findall(r"\*\*[^\n*]+\*\*|\*[^\n*]+\*", text)
    return sum(bool(part.strip("*").strip()) for part in marked) >= num_highlights


def multiple_sections(text: str, section_spliter: Phrase, num_sections: Count) -> bool:
    """At least so many sections headed by the word and a number, with something in each."""
    sections = re.split(rf"{re.escape(section_spliter.strip())}[ \t]?\d{{1,3}}", text)[1:]
    return sum(any(map(str.isalnum, section)) for section in sections) >= num_sections


def json_format(text: str) -> bool:
    """The whole text is one JSON object or list, fenced or not."""
    fenced = _FENCE.match(text)
    try:
        found: object = json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict | list) and found not in ({}, [])


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def title(text: str) -> bool:
    """A line holds a title, `<<like this>>`."""
    for line in text.splitlines():
        begin, end = line.find("<<"), line.rfind(">>")
        if begin != -1 and line[begin + 2 : end].strip("<> \t") and begin < end:
            return True
    return False


def two_responses(text: str) -> bool:
    """Two different answers with `******` between them."""
    found = parts(text, "******")
    return found is not None and len(found) == 2 and found[0] != found[1]


def repeat_prompt(text: str, prompt_to_repeat: Phrase) -> bool:
    """The text begins with the prompt, word for word, in any case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def start_checker(text: str, start_phrase: Phrase) -> bool:
    """The text begins with the phrase, in any case."""
    return text.strip().lstrip("\"'*").lower().startswith(start_phrase.strip().lower())


def end_checker(text: str, end_phrase: Phrase) -> bool:
    """The text ends with the phrase, in any case."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(text: str, capital_frequency: Count, capital_relation: Relation) -> bool:
    """So many words in capital letters alone."""
    found = [word for word in re.findall(r"\w+(?:['’-]\w+)*", text) if word.isupper()]
    return compared(len(found), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """English, in capital letters alone."""
    return text.isupper() and language_of(text) == "en"


def english_lowercase(text: str) -> bool:
    """English, without a capital letter."""
    return text.islower() and language_of(text) == "en"


def no_comma(text: str) -> bool:
    """No comma."""
    return "," not in text


def quotation(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    said = text.strip()
    return len(said) > 1 and said[0] == said[-1] == '"'


CHECKS: dict[str, Callable[..., bool]] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:numbered_list": numbered_list,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:start_checker": start_checker,
    "startend:end_checker": end_checker,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
    "startend:quotation": quotation,
}


class Instruction(msgspec.Struct, frozen=True):
    """An instruction that can be checked: its id and its parameters."""

    id: str
    parameters: dict[str, Any]

    def is_followed(self, text: str) -> bool:
        """Whether `text` follows it; an empty text follows none."""
        return bool(text.strip()) and CHECKS[self.id](text, **self.parameters)


def instruction(id: object, given: Mapping[str, Any] | None) -> Instruction:
    """The instruction with its parameters checked; those that are null count as not given."""
    if not isinstance(id, str) or id not in CHECKS:
        fix = did_you_mean(str(id), CHECKS) or "leave this task out"
        raise GymError(f"unknown instruction {id!r}", where="instruction_id_list", fix=fix)
    parameters = {name: value for name, value in (given or {}).items() if value is not None}
    wanted = _parameters_of(id)
    if parameters.keys() != wanted.keys():
        raise GymError(
            f"{id} has the parameters {sorted(parameters)}", where="kwargs", expected=", ".join(wanted) or "none"
        )
    try:
        return Instruction(id, {name: msgspec.convert(parameters[name], kind) for name, kind in wanted.items()})
    except msgspec.ValidationError as error:
        raise GymError(f"the parameters of {id}: {error}", where="kwargs") from error


@cache
def _parameters_of(id: str) -> dict[str, Any]:
    """The types of the parameters of an instruction, by name, as its check has them."""
    hints = get_type_hints(CHECKS[id], include_extras=True)
    return {name: hints[name] for name in signature(CHECKS[id]).parameters if name != "text"}
