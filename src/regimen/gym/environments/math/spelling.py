"""One spelling for answers, so that math-verify reads what a person means.

In: an answer as someone wrote it, in LaTeX, plain text or words. Out: LaTeX; or the words of an answer that is none.
Thousands separators, mixed numbers, units, currencies, Unicode signs and typography are what libraries read wrongly:
`1\\,234` as a product, `3 1/2` as 3/2, `18 dollars` as a product of seven variables.
"""

from __future__ import annotations

import re

MAX_LENGTH = 1000  # of an answer; what is longer is no answer
MAX_DEPTH = 20

SIGNS = {
    "−": "-", "–": "-", "‑": "-", "×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ", "÷": "/", "∕": "/",
    "π": r" \pi ", "∞": r" \infty ", "≤": r" \le ", "≥": r" \ge ", "≠": r" \ne ", "∪": r" \cup ", "∩": r" \cap ",
    "∅": r" \emptyset ", "°": r"^\circ ", "²": "^2", "³": "^3", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
    "**": "", "`": "",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, SIGNS)))
_MATH_MODE = re.compile(r"\\[()\[\]]|(?<!\\)\$")
_SPACE = re.compile(r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<![\d.,])[0-9]{1,3}(?:(?:\{,\}|,|\\[,!;]| )[0-9]{3})+(?![\d])(?!,\d)")
_MIXED = re.compile(r"(?<![\d.\w}])([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)(?![\d.])")
_ADJACENT = re.compile(r"(?<=[0-9])\s+(?=[0-9])")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|([0-9]+|[A-Za-z]))|(?<![\\A-Za-z])sqrt\s*(?:\(([^()]*)\)|\{([^{}]*)\})")
_NAMES = re.compile(r"(?<![\\A-Za-z])(pi|infinity|inf|sin|cos|tan|ln|log|union)(?![A-Za-z])")
_CURRENCY = re.compile(r"\\\$|[$€£¥]")
_WHOLE_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s*\{([^{}]*)\}\.?")
_PLAIN_NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:/[0-9]+|\\frac\{[0-9]+\}\{[0-9]+\})?"
_UNIT = re.compile(
    rf"({_PLAIN_NUMBER}|[-+]?\\frac\{{[0-9]+\}}\{{[0-9]+\}})\s*(?!\s*(?:and|or|to)\b)"
    r"(?:(?=[A-Za-z]{3})|(?=(?:cm|mm|km|kg|mg|ml|mL|ft|in|oz|lb|hr|mi|yd|m|s|g|h|L)\b))"
    r"[A-Za-z][A-Za-z/·. ]*(?:\^\{?[23]\}?)?(?:/[A-Za-z]+(?:\^\{?[23]\}?)?)?"
)
_WORD = re.compile(r"[A-Za-z][A-Za-z' -]*")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SMALL_WORDS = frozenset({"yes", "no", "odd", "even", "true", "false", "none"})
_MATH_WORDS = frozenset({"pi", "infinity", "inf"})
_OPERATION = re.compile(r"(?<=.)\+|[*^!]|(?<=[\w)])-|(?<=[\w)])\(|\)(?=\w)")
_RADICAND = re.compile(r"\\sqrt(\[?[0-9]+|.)")
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_VALUES = frozenset({"pi", "infty", "displaystyle"})
_WORDS_IN_TEXT = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?")
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")


def spelled(answer: str) -> str:
    """`answer` as LaTeX that math-verify reads as a person would."""
    text = _without_wrapping(answer)
    text = _THOUSANDS.sub(lambda match: re.sub(r"[^0-9]", "", match.group()), text)
    text = _CURRENCY.sub("", _MATH_MODE.sub("", text)) if "\\$" not in text else _CURRENCY.sub("", text)
    text = _SPACE.sub(" ", text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{next(group for group in match.groups() if group)}}}", text)
    text = _SIGN.sub(lambda match: SIGNS[match.group()], text)
    text = _NAMES.sub(lambda match: rf" \{_command(match.group(1))} ", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text).strip()
    unit = _UNIT.fullmatch(text)
    text = unit.group(1) if unit else text
    return _ADJACENT.sub(", ", text)


def words(answer: str) -> str | None:
    """The words of an answer that is no mathematics, in lower case; None where it is."""
    text = _without_wrapping(answer)
    marked = _WHOLE_TEXT.fullmatch(text)
    said = (marked.group(1) if marked else text).strip().strip(".")
    if _DATE.fullmatch(said):
        return said
    if not _WORD.fullmatch(said) or said.lower() in _MATH_WORDS:
        return None
    is_word = len(said) > 3 or said.lower() in _SMALL_WORDS or (len(said) > 1 and (said.istitle() or bool(marked)))
    return " ".join(said.lower().split()) if is_word else None


def said(answer: str) -> str:
    """An answer as words, whatever it is, to compare with the words of another."""
    text = _without_wrapping(answer)
    marked = _WHOLE_TEXT.fullmatch(text)
    return " ".join((marked.group(1) if marked else text).strip(" .").lower().split())


def is_readable(answer: str) -> bool:
    """Whether it is short and shallow enough to be read at all, with braces that match."""
    if not answer.strip() or len(answer) > MAX_LENGTH:
        return False
    depth = deepest = braces = 0
    for token in re.findall(r"\\.|[({\[\])}]", answer, re.DOTALL):
        if token in ("(", "[", "{"):
            depth, deepest = depth + 1, max(deepest, depth + 1)
        elif token in (")", "]", "}"):
            depth -= 1
        braces += {"{": 1, "}": -1}.get(token, 0)
        if braces < 0:
            return False
    return braces == 0 and deepest <= MAX_DEPTH


def repeats(answer: str, question: str, gold: str) -> bool:
    """Whether an answer only repeats a formula of the question, like `23 + 47`, where something else is asked for."""
    said = _formula(answer)
    if not re.search(r"[+*/^=<>!(]|\\sqrt|(?<=.)-|\\[lg]e", said) or said == _formula(gold):
        return False
    return said in _formula(question)


def is_worked_out(answer: str, gold: str) -> bool:
    """Whether an answer is calculated as far as the right one, so that `47 + 23` does not stand for `70`.

    No operation, root or function more than in the right answer, and one fraction for each value.
    """
    said, right = (_calculated(text) for text in (answer, gold))
    return (
        len(_OPERATION.findall(said)) <= len(_OPERATION.findall(right))
        and said.count("/") + said.count(":") <= said.count(",") + 1
        and sorted(_RADICAND.findall(said)) == sorted(_RADICAND.findall(right))
        and set(_COMMAND.findall(said)) <= {*_COMMAND.findall(right), *_VALUES}
    )


def _calculated(text: str) -> str:
    """The formula of a value: what stands behind the last `=`, without units."""
    text = re.sub(r"\^\{?\\circ\}?", "", _WORDS_IN_TEXT.sub("", text))
    formula = _formula(text if "," in text else text.rpartition("=")[2])
    formula = re.sub(r"^[A-Za-z]\\in(?![A-Za-z])", "", formula)
    return re.sub(r"(?<=[0-9])\*(?=\\(?:pi|sqrt))", "", formula)


def _formula(text: str) -> str:
    text = _FRACTION.sub(r"\1/\2", spelled(text) if len(text) <= MAX_LENGTH else text)
    text = _SIGN.sub(lambda match: SIGNS[match.group()], _MATH_MODE.sub("", text))
    text = re.sub(r"\\times|\\cdot", "*", text).replace(r"\div", "/")
    text = re.sub(r"\\left|\\right|[\s{}]|\\[,;:!]", "", text)
    return text.replace(r"\leq", r"\le").replace(r"\geq", r"\ge").rstrip(".")


def _without_wrapping(answer: str) -> str:
    text = answer.strip().strip("*`").strip()
    while text and text[-1] in ".,;:!" and not text.endswith(("\\!", "\\,", "\\;", "\\:")) and not _is_factorial(text):
        text = text[:-1].rstrip()
    for left, right in ((r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("$", "$")):
        inner = text[len(left) : -len(right)]
        if text.startswith(left) and text.endswith(right) and inner and right not in inner:
            text = inner.strip()
    whole = _WHOLE_TEXT.fullmatch(text)
    return whole.group(1).strip() if whole and re.search(r"[0-9]", whole.group(1)) else text


def _is_factorial(text: str) -> bool:
    return text.endswith("!") and re.search(r"[0-9n)]!$", text) is not None


def _command(name: str) -> str:
    return {"infinity": "infty", "inf": "infty", "union": "cup"}.get(name, name)
