"""Each check on texts that follow the instruction and texts that do not, counted by hand."""

from __future__ import annotations

import time
from typing import Any

import pytest

from regimen.errors import GymError
from regimen.gym.environments.instructions.checks import CHECKS, instruction
from regimen.gym.environments.instructions.language import language_of
from regimen.gym.environments.instructions.text import sentences

# id, parameters, texts that follow, texts that do not
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["sea", "Salt"]}, ["Salt of the SEA", "seaside and salty"], ["the sea", "x"]),
    ("keywords:existence", {"keywords": ["a.b"]}, ["a.b"], ["axb"]),
    (
        "keywords:frequency",
        {"keyword": "tea", "frequency": 2, "relation": "at least"},
        ["Tea and tea", "tea tea tea"],
        ["tea", "coffee"],
    ),
    ("keywords:frequency", {"keyword": "tea", "frequency": 2, "relation": "less than"}, ["tea", "x"], ["tea, TEA"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "c++"]}, ["concatenate", "c"], ["A Cat.", "I like c++!"]),
    (
        "keywords:letter_frequency",
        {"letter": "o", "let_frequency": 3, "let_relation": "at least"},
        ["Oo, no", "o o o"],
        ["Oo", "zero"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Z", "let_frequency": 1, "let_relation": "less than"},
        ["abc"],
        ["zoo"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist nicht das, was ich mit dir machen wollte."],
        ["This is not what I wanted to do with you.", "Dies", "12 34"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One. Two!", "One? Two... Three"],
        ["Dr. Who met Mr. J. Smith at 3.5 p.m. today.", "One"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["It costs 1.50 euros, e.g. here."],
        ["One. Two."],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, ["a b c", "don't go"], ["a b"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at most"}, ["a b c"], ["a b c d"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "exactly"}, ["a, b - c"], ["a b", "a b c d"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na *** b\n***"],
        ["a\n\nb", "a\n***\n***\nb", "a *** b *** c"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Later"},
        ["a\n\nlater, b", "a\n\n\n\n**Later** b"],
        ["later a\n\nb", "a\n\nlater b\n\nc", "a\nlater b", "a\n\nLaterally b"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] and [address]", "[a][b][c]"],
        ["[name]", "[name and address", "[a\nb] [c]"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. More", "bye p. s. more"],
        ["PS more", "p.p.s more"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["Bye.\nP. P. S. More"], ["P.S. more"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "Here:\n - a\n - b", "**bold**\n* a\n* b"],
        ["* a", "* a\n* b\n* c", "1. a\n2. b"],
    ),
    (
        "detectable_format:numbered_list",
        {"num_items": 2},
        ["1. a\n2. b", "So:\n1) a\n 2) b"],
        ["1. a", "1. a\n3. b", "1. a\n2. b\n3. c", "2. a\n1. b", "1.a\n2.b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well. My answer is maybe."],
        ["my answer is yes.", "Yes.", "My answer is yes. My answer is no. My answer is maybe."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and *b c*"],
        ["*a*", "** and ** x *", "*a\nb* *c*"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section 1: a Section 2: b Section 3: c"],
        ["Section 1\na", "section 1\na\nsection 2\nb", "Section 1 Section 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', '```json\n{"a": [1, 2]}\n```', "[1]", '```\n{"a": 1}```'],
        ['Here: {"a": 1}', "{a: 1}", "1", '"text"', "{}", "[]", '{"a": NaN}', '{"a":' * 5000 + "1" + "}" * 5000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<A title>>\ntext", "text <<t>>"],
        ["<title>", "<<>>", "<< >>", ">>a<<", "<<a\nb>>"],
    ),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******\na\n******\nb\n******"],
        ["a ****** a", "a\n***\nb", "a ****** b ****** c", "******"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a poem."},
        ["write a poem. Roses", " Write a poem."],
        ["Roses. Write a poem.", "Write a poem"],
    ),
    (
        "startend:start_checker",
        {"start_phrase": "In my view"},
        ["in my view it is", '"In my view'],
        ["Well, in my view"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any questions?"},
        ["x. any questions?", 'Any questions?"\n'],
        ["Any questions? x"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and ESA", "I AM"],
        ["Nasa and ESA", "A cat"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS WHAT WE HAVE FOR YOU."],
        ["This is what we have for you.", "DAS IST NICHT DAS WAS WIR HABEN"],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["this is what we have for you."],
        ["This is what we have for you.", "das ist nicht das was wir haben"],
    ),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
    ("startend:quotation", {}, ['"a"', ' "a b" '], ["a", '"', '"a" b', "'a'"]),
]


@pytest.mark.parametrize(
    "id, parameters, right, wrong", CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_check(id: str, parameters: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    one = instruction(id, parameters)
    assert [text for text in right if not one.is_followed(text)] == []
    assert [text for text in ["", " \n", *wrong] if one.is_followed(text)] == []


def test_every_check_is_tried() -> None:
    assert {id for id, *_ in CASES} == CHECKS.keys()


@pytest.mark.parametrize(
    "id, given, text",
    [
        ("keywords:existance", {}, "unknown instruction 'keywords:existance'.*did you mean 'keywords:existence'"),
        (7, {}, "unknown instruction 7"),
        ("keywords:existence", {}, r"keywords:existence has the parameters \[\]; expected keywords"),
        ("keywords:existence", None, "has the parameters"),
        ("keywords:existence", {"keywords": "sea"}, "the parameters of keywords:existence"),
        ("keywords:existence", {"keywords": ["sea"], "letter": "a"}, r"\['keywords', 'letter'\]"),
        ("length_constraints:number_words", {"num_words": -1, "relation": "at least"}, "num|>= 0"),
        ("length_constraints:number_words", {"num_words": 1, "relation": "around"}, "around"),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "length"),
        ("punctuation:no_comma", {"relation": "at least"}, "expected none"),
    ],
)
def test_tasks_that_cannot_be_judged_are_refused(id: Any, given: Any, text: str) -> None:
    with pytest.raises(GymError, match=text):
        instruction(id, given)


def test_parameters_that_are_null_are_not_given() -> None:
    one = instruction("length_constraints:number_words", {"num_words": 2, "relation": "at least", "letter": None})
    assert one.parameters == {"num_words": 2, "relation": "at least"}


def test_a_language_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(GymError, match="language 'tlh' cannot be told"):
        instruction("language:response_language", {"language": "tlh"}).is_followed("nuqneH")


SPOKEN = {
    "en": "The house that we live in was built a long time ago by my father.",
    "de": "Das Haus, in dem wir wohnen, wurde vor langer Zeit von meinem Vater gebaut.",
    "fr": "La maison dans laquelle nous vivons a été construite par mon père il y a longtemps.",
    "es": "La casa en la que vivimos fue construida por mi padre hace mucho tiempo.",
    "it": "La casa in cui viviamo è stata costruita da mio padre molto tempo fa.",
    "pt": "A casa em que nós vivemos foi construída pelo meu pai há muito tempo.",
    "nl": "Het huis waar we in wonen werd lang geleden door mijn vader gebouwd.",
    "pl": "Dom, w którym mieszkamy, został zbudowany dawno temu przez mojego ojca i jest bardzo ładny.",
    "sv": "Huset som vi bor i byggdes för länge sedan av min far och det är mycket gammalt.",
    "vi": "Ngôi nhà mà chúng tôi đang ở đã được xây từ rất lâu và cha tôi là người làm.",
    "ru": "Дом, в котором мы живём, был построен моим отцом много лет назад, и это было не так легко.",
    "uk": "Будинок, у якому ми живемо, був побудований моїм батьком багато років тому.",
    "bg": "Къщата, в която живеем, е построена от баща ми преди много време и той ще се върне.",
    "el": "Το σπίτι στο οποίο μένουμε χτίστηκε πριν από πολύ καιρό.",
    "ar": "البيت الذي نسكن فيه بناه أبي منذ زمن طويل.",
    "fa": "خانه ای که در آن زندگی می کنیم را پدرم ساخته است.",
    "ur": "وہ گھر جس میں ہم رہتے ہیں میرے والد نے بہت پہلے بنایا تھا۔",
    "he": "הבית שבו אנחנו גרים נבנה לפני זמן רב.",
    "hi": "जिस घर में हम रहते हैं वह मेरे पिता ने बहुत पहले बनाया था।",
    "ja": "私たちが住んでいる家は、父が昔建てたものです。",
    "zh": "我们住的房子是我父亲很久以前建造的。",
    "ko": "우리가 사는 집은 오래전에 아버지가 지으셨습니다.",
    "th": "บ้านที่เราอยู่สร้างโดยพ่อของฉันเมื่อนานมาแล้ว",
    "ta": "நாங்கள் வசிக்கும் வீடு என் தந்தையால் கட்டப்பட்டது.",
}


@pytest.mark.parametrize("code", SPOKEN)
def test_language_of_a_sentence(code: str) -> None:
    assert language_of(SPOKEN[code]) == code


@pytest.mark.parametrize(
    "text", ["", "1234 5678", "x = y + z;", "Amsterdam", "\x00\ud800", "lorem ipsum dolor sit amet"]
)
def test_no_language_is_guessed(text: str) -> None:
    assert language_of(text) is None


@pytest.mark.parametrize(
    "text, count",
    [
        ("One. Two! Three?", 3),
        ("Dr. Lee lives in St. Ives, i.e. in the U.K. by the sea.", 1),
        ("1. First one.\n2. Second one.", 2),
        ('He said "Stop." Then he left.', 2),
        ("Wait... what?!", 2),
        ("It is 3.14 and no more", 1),
        ("これは一つ。これは二つ。", 2),
        ("So do I. You too.", 2),
        ("... !!", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(sentences(text)) == count


def test_no_check_is_slow_on_hostile_texts() -> None:
    size = 20_000
    texts = [
        mark * size for mark in ("*", "[", "<", "-", "\n", " ", '"', ".", "a.", "* ", "<<", "```", "[a", "p.", "1. ")
    ]
    texts += [
        "```json\n" + "```" * size,
        "." * size + "x",
        "\n".join(" " * 100 for _ in range(1000)),
        "Section 1" * size,
    ]
    start = time.process_time()
    for id, parameters, *_ in CASES:
        one = instruction(id, parameters)
        for text in texts:
            one.is_followed(text)
    assert time.process_time() - start < 30  # a check that is not linear takes hours
