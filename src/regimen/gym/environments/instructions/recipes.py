"""The instructions that generated tasks give: how each is drawn and worded, and which do not go together.

In: a random generator. Out: the parameters of an instruction and the sentence that asks for it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from regimen.gym.environments.instructions import bank

Drawn = tuple[dict[str, Any], str]


class Recipe(msgspec.Struct, frozen=True):
    """How an instruction is drawn. Two meet that share no tag, and neither has the other's id or tag in `not_with`."""

    id: str
    draw: Callable[[random.Random], Drawn]
    tags: frozenset[str] = frozenset()
    not_with: frozenset[str] = frozenset()

    def goes_with(self, other: Recipe) -> bool:
        """Whether one text can follow both."""
        mine, theirs = {*self.tags, self.id}, {*other.tags, other.id}
        return not (mine & theirs or self.not_with & theirs or other.not_with & mine)


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)


def _existence(generator: random.Random) -> Drawn:
    keywords = generator.sample(bank.KEYWORDS, generator.randint(1, 3))
    asked = "Include the keywords" if len(keywords) > 1 else "Include the keyword"
    return {"keywords": keywords}, f"{asked} {_quoted(keywords)}."


def _frequency(generator: random.Random) -> Drawn:
    keyword, count = generator.choice(bank.KEYWORDS), generator.randint(2, 4)
    given = {"keyword": keyword, "frequency": count, "relation": "at least"}
    return given, f'Use the word "{keyword}" at least {count} times.'


def _forbidden_words(generator: random.Random) -> Drawn:
    forbidden = generator.sample(bank.COMMON_WORDS, generator.randint(2, 4))
    return {"forbidden_words": forbidden}, f"Do not use the words {_quoted(forbidden)}."


def _letter_frequency(generator: random.Random) -> Drawn:
    if generator.random() < 0.5:
        letter, count, relation = generator.choice("kmgwpb"), generator.randint(6, 14), "at least"
    else:
        letter, count, relation = generator.choice("ylcmu"), generator.randint(3, 6), "less than"
    given = {"letter": letter, "let_frequency": count, "let_relation": relation}
    return given, f"The letter {letter} should appear {relation} {count} times."


def _response_language(generator: random.Random) -> Drawn:
    code = generator.choice(list(bank.LANGUAGES))
    return {"language": code}, f"Write the whole answer in {bank.LANGUAGES[code]}; no other language is allowed."


def _number_sentences(generator: random.Random) -> Drawn:
    relation = generator.choice(("at least", "less than", "exactly"))
    count = generator.randint(4, 8)
    return {"num_sentences": count, "relation": relation}, f"Write {relation} {count} sentences."


def _number_words(generator: random.Random) -> Drawn:
    relation = generator.choice(("at least", "less than", "at most"))
    count = generator.choice(range(40, 121, 5))
    return {"num_words": count, "relation": relation}, f"Use {relation} {count} words."


def _number_paragraphs(generator: random.Random) -> Drawn:
    count = generator.randint(2, 5)
    return {"num_paragraphs": count}, f"Write {count} paragraphs, and separate them with a line of ***."


def _nth_paragraph_first_word(generator: random.Random) -> Drawn:
    count = generator.randint(2, 4)
    nth, word = generator.randint(1, count), generator.choice(bank.FIRST_WORDS).lower()
    asked = (
        f'Write {count} paragraphs with an empty line between them. Paragraph {nth} must start with the word "{word}".'
    )
    return {"num_paragraphs": count, "nth_paragraph": nth, "first_word": word}, asked


def _number_placeholders(generator: random.Random) -> Drawn:
    count = generator.randint(2, 4)
    return {"num_placeholders": count}, f"Leave at least {count} placeholders in square brackets, such as [address]."


def _postscript(generator: random.Random) -> Drawn:
    marker = generator.choice(("P.S.", "P.P.S"))
    return {"postscript_marker": marker}, f"At the end add a postscript, introduced by {marker} and nothing else."


def _number_bullet_lists(generator: random.Random) -> Drawn:
    count = generator.randint(2, 5)
    return {"num_bullets": count}, f"Give exactly {count} bullet points, lines that begin with an asterisk and a space."


def _numbered_list(generator: random.Random) -> Drawn:
    count = generator.randint(2, 5)
    return {"num_items": count}, f"Give a numbered list of exactly {count} items, from 1 to {count}."


def _constrained_response(generator: random.Random) -> Drawn:  # noqa: ARG001
    choices = 'one of "My answer is yes.", "My answer is no." and "My answer is maybe."'
    return {}, f"Say whether you would show it to a friend by {choices} and give your reasons."


def _number_highlighted_sections(generator: random.Random) -> Drawn:
    count = generator.randint(2, 4)
    return {"num_highlights": count}, f"Highlight at least {count} parts with markdown, as in *highlighted part*."


def _multiple_sections(generator: random.Random) -> Drawn:
    count = generator.randint(2, 4)
    asked = f"Write {count} sections; head each with Section and its number, as in Section 1."
    return {"section_spliter": "Section", "num_sections": count}, asked


def _json_format(generator: random.Random) -> Drawn:
    return {}, generator.choice(("The entire answer must be JSON.", "Wrap everything in one JSON object."))


def _title(generator: random.Random) -> Drawn:  # noqa: ARG001
    return {}, "Give it a title in double angle brackets, such as <<a title>>."


def _two_responses(generator: random.Random) -> Drawn:  # noqa: ARG001
    return {}, "Write two different versions, and only them, with six asterisks between them: ******."


def _repeat_prompt(generator: random.Random) -> Drawn:  # noqa: ARG001
    # The request is not known yet: the task puts it in, below the same name.
    return {"prompt_to_repeat": ""}, "First repeat the first sentence of this message word for word, then write."


def _start_checker(generator: random.Random) -> Drawn:
    phrase = generator.choice(bank.START_PHRASES)
    return {"start_phrase": phrase}, f'Begin with the words "{phrase}".'


def _end_checker(generator: random.Random) -> Drawn:
    phrase = generator.choice(bank.END_PHRASES)
    return {"end_phrase": phrase}, f'End with exactly this sentence and nothing behind it: "{phrase}"'


def _capital_word_frequency(generator: random.Random) -> Drawn:
    relation, count = generator.choice((("at least", generator.randint(2, 6)), ("less than", generator.randint(4, 8))))
    given = {"capital_frequency": count, "capital_relation": relation}
    return given, f"Words in capital letters alone should appear {relation} {count} times."


def _english_capital(generator: random.Random) -> Drawn:  # noqa: ARG001
    return {}, "Write in English and in capital letters only."


def _english_lowercase(generator: random.Random) -> Drawn:  # noqa: ARG001
    return {}, "Write in English and in lowercase letters only; no capital letter is allowed."


def _no_comma(generator: random.Random) -> Drawn:
    return {}, generator.choice(("Do not use any commas.", "Commas are not allowed."))


def _quotation(generator: random.Random) -> Drawn:  # noqa: ARG001
    return {}, "Put the entire answer in double quotation marks."


def _recipe(id: str, draw: Callable[[random.Random], Drawn], tags: str = "", not_with: str = "") -> Recipe:
    return Recipe(id, draw, frozenset(tags.split()), frozenset(not_with.split()))


RECIPES = (
    _recipe("keywords:existence", _existence, "keywords"),
    _recipe("keywords:frequency", _frequency, "keywords"),
    _recipe("keywords:forbidden_words", _forbidden_words),
    _recipe("keywords:letter_frequency", _letter_frequency, "", "length keywords opening ending"),
    _recipe("length_constraints:number_sentences", _number_sentences, "length"),
    _recipe("length_constraints:number_words", _number_words, "length", "keywords shape"),
    _recipe("length_constraints:number_paragraphs", _number_paragraphs, "shape", "opening ending length"),
    _recipe("length_constraints:nth_paragraph_first_word", _nth_paragraph_first_word, "shape", "opening ending length"),
    _recipe("detectable_content:number_placeholders", _number_placeholders, "", "shape length"),
    _recipe("detectable_content:postscript", _postscript, "ending", "length"),
    _recipe("detectable_format:number_bullet_lists", _number_bullet_lists, "shape", "quotation start length"),
    _recipe("detectable_format:numbered_list", _numbered_list, "shape", "quotation start length"),
    _recipe(
        "detectable_format:constrained_response", _constrained_response, "", "all_case quotation start shape length"
    ),
    _recipe("detectable_format:number_highlighted_sections", _number_highlighted_sections, "stars", ""),
    _recipe("detectable_format:multiple_sections", _multiple_sections, "shape", "all_case quotation start length"),
    _recipe("detectable_format:json_format", _json_format, "shape", "opening ending length stars comma placeholders"),
    _recipe("detectable_format:title", _title, "opening", "length"),
    _recipe("combination:two_responses", _two_responses, "shape stars", "opening ending length"),
    _recipe("combination:repeat_prompt", _repeat_prompt, "opening", "length"),
    _recipe("startend:start_checker", _start_checker, "opening start"),
    _recipe("startend:end_checker", _end_checker, "ending", "length"),
    _recipe("change_case:capital_word_frequency", _capital_word_frequency, "case", "opening ending"),
    _recipe("change_case:english_capital", _english_capital, "case all_case"),
    _recipe("change_case:english_lowercase", _english_lowercase, "case all_case"),
    _recipe("punctuation:no_comma", _no_comma, "comma"),
    _recipe("startend:quotation", _quotation, "opening quotation"),
    _recipe(
        "language:response_language",
        _response_language,
        "",
        "keywords case length_words start ending keywords:forbidden_words keywords:letter_frequency shape "
        "detectable_format:constrained_response detectable_content:number_placeholders combination:repeat_prompt "
        "length_constraints:number_words",
    ),
)


def wording_key(id: str, parameters: dict[str, Any]) -> str:
    """What an instruction asks, whatever its wording."""
    return f"{id} {json.dumps(parameters, sort_keys=True)}"
