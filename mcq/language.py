"""Which of the two languages a text is written in, by its letters; no model, no dictionary."""

import re
import unicodedata
from typing import Literal, get_args

Language = Literal["vi", "en"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

_LATIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_VOWELS = "aăâeêioôơuưy"
_TONES = ("", "\u0300", "\u0301", "\u0303", "\u0309", "\u0323")
_VIETNAMESE_ONLY = frozenset(
    cased
    for vowel in _VOWELS
    for tone in _TONES
    for cased in (
        unicodedata.normalize("NFC", vowel + tone),
        unicodedata.normalize("NFC", vowel + tone).upper(),
    )
    if cased not in _LATIN
) | frozenset("đĐ")

LETTERS_OF: dict[Language, frozenset[str]] = {
    "vi": frozenset(_LATIN) | _VIETNAMESE_ONLY,
    "en": frozenset(_LATIN),
}
"""The letters a language is written with, both cases, NFC."""

SCIENCE_LETTERS = frozenset("ΩμµπαβγδεηθλρστφωΔΣΦΨΩ")
"""Greek letters of formulas and units, at home in both languages."""

_AT_HOME: dict[Language, frozenset[str]] = {
    "vi": LETTERS_OF["vi"] | SCIENCE_LETTERS,
    "en": LETTERS_OF["en"] | SCIENCE_LETTERS | LETTERS_OF["vi"],  # names keep their marks
}

_VIETNAMESE_SHARE = 0.03
"""Vietnamese prose marks about a quarter of its letters, English with foreign names under 3 %."""

_ENGLISH_WORDS = frozenset("the of and to in is that for are was with as by on it which".split())


def detect_language(text: str) -> Language:
    """`vi` if the text is marked like Vietnamese, else `en`.

    Vietnamese typed without any diacritics would pass for English, so a text without the commonest
    English words is taken for Vietnamese.
    """
    composed = unicodedata.normalize("NFC", text)
    letters = sum(map(str.isalpha, composed))
    marked = sum(map(_VIETNAMESE_ONLY.__contains__, composed))
    if letters and marked / letters > _VIETNAMESE_SHARE:
        return "vi"
    words = re.findall(r"[a-z]+", text.lower())
    english = sum(word in _ENGLISH_WORDS for word in words)
    return "en" if words and english / len(words) > 0.04 else "vi"


def foreign_letters(text: str, language: Language, context: str = "") -> str:
    """The letters of other scripts in `text`, each once, that the context does not use itself."""
    unusual = set(text) - _AT_HOME[language]
    foreign = {c for c in unusual if c.isalpha() and c not in context}
    return "".join(dict.fromkeys(c for c in text if c in foreign)) if foreign else ""
