"""Which language a text is in, told by its script, its letters and its most common words.

In: a text. Out: a code of ISO 639-1, or None where nothing speaks for one language. This is no trained model: it tells
the languages of `STOP_WORDS` and of `SCRIPTS` apart in a sentence or more, and is silent on single words, names,
code and languages that it does not know; a text half in one language and half in another has the one with more words.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

from regimen.gym.environments.instructions.text import words

MAX_LENGTH = 20_000  # characters that are read
MIN_SHARE = 0.12  # of the words that must be common words of the language
MIN_HITS = 3

# Languages that have their script for themselves, by the first word of Unicode's name of a letter.
SCRIPTS = {
    "HANGUL": "ko", "HIRAGANA": "ja", "KATAKANA": "ja", "CJK": "zh", "THAI": "th", "GREEK": "el", "HEBREW": "he",
    "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn", "GUJARATI": "gu", "GURMUKHI": "pa",
    "MALAYALAM": "ml", "GEORGIAN": "ka", "ARMENIAN": "hy",
}  # fmt: skip
# Letters and words that tell apart the languages of a shared script; the first language is the usual one.
SHARED_SCRIPTS = {
    "CYRILLIC": {"ru": "ыэё", "uk": "іїєґ", "bg": ""},
    "ARABIC": {"ar": "ةىأإ", "fa": "پچژگک", "ur": "ٹڈڑےں"},
    "DEVANAGARI": {"hi": "", "mr": "ळ", "ne": ""},
}

_STOP_WORDS = {
    "en": "the of and to in is was that it for on with as are be this by at from or an have not which you they has "
    "were their but his her she he we can will there when who what about more if would",
    "de": "der die das und ist in den von zu mit sich des auf für nicht ein eine im dem auch es an werden aus er hat "
    "dass sie nach wird bei einer um am sind noch wie einem über so zum war haben nur oder aber man",
    "fr": "le la les de des et est un une du en que qui dans pour pas par sur plus ce il au avec son ne se sont elle "
    "nous vous mais ou cette ses aux être on leur c l d qu était très aussi",
    "es": "el la los las de y es un una del en que por para con no se su al lo como más pero sus le ha este sí "
    "porque esta entre cuando muy sin sobre también hasta hay donde quien desde todo nos",
    "it": "il la i gli le di e è un una del della in che per con non si su al come più ma sono dei nel alla ha lo "
    "da anche questo questa ci delle dal dalla molto quando essere loro chi",
    "pt": "o a os as de e é um uma do da em que por para com não se seu sua ao como mais mas no na dos das foi ele "
    "ela são tem à isso também já muito quando nos pelo pela você onde",
    "nl": "de het een van en is in dat op te zijn met voor niet aan er om ook als die bij door naar maar uit wordt "
    "nog over ze hij dit heeft worden zich deze werd wat kan dan geen veel",
    "pl": "i w na z się nie do to że jest o jak ale po co tak za od przez dla czy są był jego już być który także "
    "ich tylko może przy bardzo oraz",
    "sv": "och i att det som en på är av för med den till inte om ett han var men sig så från de kan när vi man "
    "ska har eller också efter detta mycket",
    "fi": "ja on ei että se hän oli ovat mutta kun niin myös joka sen mitä tai jos kuin vain ole tämä sitä hyvin "
    "sekä kanssa voi",
    "vi": "và của là có không được trong cho một những các người này với đã khi để đến từ như về ở cũng nhiều rất",
    "sw": "ya na wa kwa ni katika la za kuwa cha hii si kama huo lakini pia watu sana yake wake hiyo ambayo",
    "tr": "ve bir bu da de için ile çok olarak en daha ne gibi kadar olan ama var sonra o değil mi her ya",
    "ru": "и в не на что с он как это по но из за то все она так его от для же у был мы они быть есть",
    "uk": "і в не на що з він як це по але за то все вона так його від для ж у був ми вони бути є та до",
    "bg": "и в не на че с той като това по но от за се е да са тя си го ще ги при има много",
    "ar": "في من على إلى أن هذا التي الذي ما لا عن مع كان هو هي و ذلك هذه بعد كل",
    "fa": "و در به از که این را با است برای آن یک خود تا کرد بر هم می شد ما",
    "ur": "کے میں کی ہے اور سے کا کو اس نے پر یہ کہ ہیں بھی کر ایک تھا جو",
    "hi": "के में की है और से का को इस ने पर यह कि हैं भी कर एक था जो नहीं",
    "mr": "आहे आणि या च्या हे ते की तो होते नाही आहेत ही व मध्ये होता",
    "ne": "छ र को मा यो हो पनि छन् गर्न थियो हुन् लाई ले भएको",
}  # fmt: skip
STOP_WORDS = {code: frozenset(listed.split()) for code, listed in _STOP_WORDS.items()}
LATIN = frozenset(STOP_WORDS) - {code for shared in SHARED_SCRIPTS.values() for code in shared}
KNOWN = frozenset(STOP_WORDS) | frozenset(SCRIPTS.values())


def language_of(text: str) -> str | None:
    """The language of `text`, or None."""
    text = text[:MAX_LENGTH]
    script = _main_script(text)
    if script is None:
        return None
    if script in ("CJK", "HIRAGANA", "KATAKANA"):  # Japanese is written in all three, Chinese in one
        return "ja" if _script_counts(text).keys() & {"HIRAGANA", "KATAKANA"} else "zh"
    if script in SCRIPTS:
        return SCRIPTS[script]
    if script in SHARED_SCRIPTS:
        return _of_shared_script(text, SHARED_SCRIPTS[script])
    return _by_words(text, LATIN) if script == "LATIN" else None


def _script_counts(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for letter, count in Counter(text).items():
        if letter.isalpha():
            counts[unicodedata.name(letter, "?").split(" ")[0]] += count
    return counts


def _main_script(text: str) -> str | None:
    """The script of more than half the letters; None where no script has as many."""
    counts = _script_counts(text)
    japanese = counts["HIRAGANA"] + counts["KATAKANA"] + counts["CJK"]
    total = sum(counts.values())
    if japanese * 2 > total:
        return "CJK"
    script, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    return script if count * 2 > total else None


def _of_shared_script(text: str, languages: dict[str, str]) -> str:
    """By the letters that only one language has, else by words, else the usual language."""
    letters = Counter(text.lower())
    marks = {code: sum(letters[letter] for letter in own) for code, own in languages.items()}
    best = max(marks, key=lambda code: marks[code])
    if marks[best] and sum(mark == marks[best] for mark in marks.values()) == 1:
        return best
    return _by_words(text, frozenset(languages)) or next(iter(languages))


def _by_words(text: str, languages: frozenset[str]) -> str | None:
    """The language whose common words make up most of the text; None where there are few, or two languages tie."""
    said = [word.lower() for word in words(text)]
    hits = {code: sum(word in STOP_WORDS[code] for word in said) for code in sorted(languages)}
    best, second = sorted(hits.values(), reverse=True)[:2]
    if best < MIN_HITS or best < MIN_SHARE * len(said) or best == second:
        return None
    return max(hits, key=lambda code: hits[code])
