"""Item-writing flaws: legal but poor questions, named and reported, never hidden or mended.

The names follow the item-writing-flaw rubric of Haladyna, Downing & Rodriguez (2002) as automated
by SAQUET, for what can be decided without a model. `detail` is data (the words, the lengths), the
same in every language; how a flaw is told to a teacher is the page's business.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

from mcq.language import Language, detect_language, foreign_letters
from mcq.question import LETTERS, Check, Question, comparable
from mcq.words import content_words, fold, words


@dataclass(frozen=True, slots=True)
class Item:
    """A question with what it was made from."""

    question: Question
    context: str
    language: Language

    @property
    def texts(self) -> tuple[str, ...]:
        """Stem and options."""
        return (self.question.question, *self.question.options.values())


def run_checks(question: Question, context: str, language: Language) -> tuple[Check, ...]:
    """Every check of `CHECKS`, in their order, with what was found where one fails."""
    item = Item(question, context, language)
    details = ((name, find(item)) for name, find in CHECKS.items())
    return tuple(
        _PASSED[name] if found is None else Check(name=name, passed=False, detail=found)
        for name, found in details
    )


def _key_is_longest(item: Item) -> str | None:
    key = len(words(item.question.key_text))
    others = [len(words(text)) for text in item.question.distractors]
    mean = sum(others) / 3
    if key > max(others) + 2 or (key > 1.5 * mean and key > max(others) and key - mean > 2):
        return f"{key} words against {', '.join(map(str, others))}"
    return None


def _stem_gives_key(item: Item) -> str | None:
    """The key stands in the stem, or shares words with it that no distractor shares."""
    key = comparable(item.question.key_text)
    if len(key) > 2 and re.search(rf"(?<!\w){re.escape(key)}(?!\w)", comparable(item.texts[0])):
        return item.question.key_text
    stem = set(content_words(item.question.question))
    key_words = set(content_words(item.question.key_text))
    shared = key_words & stem
    for text in item.question.distractors:
        shared -= set(content_words(text))
    telling = len(shared) >= 3 and len(shared) >= 0.6 * len(key_words)
    return item.question.key_text if telling else None


def _options_overlap(item: Item) -> str | None:
    """Two options that say nearly the same, so that both or neither are right."""
    options = item.question.options
    for i, left in enumerate(LETTERS):
        for right in LETTERS[i + 1 :]:
            a, b = words(options[left]), words(options[right])
            differing = set(a) ^ set(b)
            if not differing or len(a) + len(b) < 16:
                continue  # the same words in another order, or short: one word tells them apart
            has_figure = any(any(c.isdigit() for c in word) for word in differing)
            ratio = SequenceMatcher(None, a, b, autojunk=False).ratio()
            if ratio > 0.9 and not has_figure:
                return f"{left} {right}"
    return None


def _all_or_none(item: Item) -> str | None:
    return _first_match(_ALL_OR_NONE, item.question.options.values())


def _combined_options(item: Item) -> str | None:
    return _first_match(_COMBINED, item.question.options.values())


def _absolute_terms(item: Item) -> str | None:
    """A distractor that only an absolute word makes wrong is easily thrown out."""
    pattern = _ABSOLUTE[item.language]
    if pattern.search(item.question.key_text):
        return None
    guilty = [text for text in item.question.distractors if pattern.search(text)]
    return guilty[0] if len(guilty) >= 2 else None


def _negative_stem(item: Item) -> str | None:
    """A negation that a hurried reader misses: not written in capitals."""
    found = _NEGATIVE[item.language].search(item.question.question)
    if found is None:
        return None
    word = found[found.lastindex or 0]
    return None if any(part.isupper() for part in word.split()) else word


def _blank_in_stem(item: Item) -> str | None:
    found = re.search(r"_{2,}|\.{4,}|…(?=\s*\w)", item.question.question)
    return found[0] if found else None


def _unfocused_stem(item: Item) -> str | None:
    """A stem that asks nothing: no question mark, no question word, or hardly a word."""
    stem = item.question.question
    if len(content_words(stem)) < 2:
        return stem
    asks = stem.endswith(("?", ":", "…")) or _QUESTION_WORD[item.language].search(stem)
    return None if asks else stem


def _mixed_kinds(item: Item) -> str | None:
    """Numbers among words, or one clause among names: the odd one out is noticed first."""
    numeric = [bool(re.match(r"[^\w]*\d", text)) for text in item.question.options.values()]
    if any(numeric) and not all(numeric):
        lengths = [len(words(text)) for text in item.question.options.values()]
        if max(lengths) <= 4:
            return " / ".join(item.question.options.values())
    return None


def _numbers_unsorted(item: Item) -> str | None:
    values = [_number(text) for text in item.question.options.values()]
    numbers = [value for value in values if value is not None]
    if len(numbers) < 4 or numbers in (sorted(numbers), sorted(numbers, reverse=True)):
        return None
    return " / ".join(item.question.options.values())


def _number(text: str) -> float | None:
    match = re.fullmatch(r"\D{0,12}?(\d+(?:[.,]\d+)*)\D{0,20}", text)
    if match is None:
        return None
    digits = match[1]
    if re.fullmatch(r"\d{1,3}(?:[.,]\d{3})+", digits):
        return float(re.sub(r"[.,]", "", digits))
    return float(digits.replace(",", ".")) if digits.count(".") + digits.count(",") < 2 else None


def _only_true_false(item: Item) -> str | None:
    firsts = (words(text)[:1] for text in item.question.options.values())
    folded = {word for first in firsts for word in first}
    pairs = ({fold("đúng"), "sai"}, {"true", "false"}, {"yes", "no"})
    return " / ".join(sorted(folded)) if folded in pairs else None


def _wrong_language(item: Item) -> str | None:
    text = " ".join(item.texts)
    if item.language == "vi" and len(text) > 60 and detect_language(text) == "en":
        return "en"
    return "vi" if item.language == "en" and detect_language(text) == "vi" else None


def _foreign_script(item: Item) -> str | None:
    return foreign_letters(" ".join(item.texts), item.language, item.context) or None


def _leftovers(item: Item) -> str | None:
    return _first_match(_LEFTOVER, item.texts)


def _names_the_passage(item: Item) -> str | None:
    """Allowed only where the passage is shown with the question."""
    return _first_match(_PASSAGE, item.texts[:1])


def _key_not_supported(item: Item) -> str | None:
    return None if item.question.evidence is not None else item.question.key_text


def _numbers_not_in_context(item: Item) -> str | None:
    """A figure in the stem or the key that the passage never mentions."""
    known = set(re.findall(r"\d+", item.context))
    text = f"{item.question.question} {item.question.key_text}"
    strange = [n for n in re.findall(r"\d+", text) if n not in known and len(n) > 1]
    return ", ".join(dict.fromkeys(strange)) or None


def _first_match(pattern: re.Pattern[str], texts: Iterable[str]) -> str | None:
    return next((match[0] for text in texts if (match := pattern.search(text))), None)


_ALL_OR_NONE = re.compile(
    r"(?i)\btất cả (?:các |những )?(?:đáp án|phương án|lựa chọn|ý|câu)?\s*(?:ở |bên )?"
    r"(?:trên|đều đúng|đều sai|nêu trên)|\bkhông (?:có )?(?:đáp án|phương án|ý|lựa chọn) nào"
    r"|\bcả (?:ba|bốn|3|4) (?:đáp án|phương án|ý)|\b(?:all|none|any) of the (?:above|options)"
)
_COMBINED = re.compile(
    r"\b(?:[Cc]ả\s+)?[A-D]\s*(?:,\s*[A-D]\s*)?(?:và|and|hoặc|or|&)\s*[A-D]\b"
    r"|\b[Bb]oth [A-D] and [A-D]\b"
)
_ABSOLUTE: Mapping[Language, re.Pattern[str]] = {
    "vi": re.compile(r"(?i)\b(?:luôn luôn|luôn|không bao giờ|tuyệt đối|hoàn toàn|mọi|duy nhất)\b"),
    "en": re.compile(r"(?i)\b(?:always|never|only|completely|entirely)\b"),
}
_NEGATIVE: Mapping[Language, re.Pattern[str]] = {
    "vi": re.compile(
        r"(?i)\bngoại trừ\b|(?<=\bnào )(?:(?:sau|dưới) đây )?(?:là )?(?:sai|không)\b"
        r"|\bkhông (?:phải|thuộc|đúng|được nêu|được nhắc|đề cập)\b(?=.*\bnào\b)|\btrừ(?=\W*$)"
    ),
    "en": re.compile(
        r"(?i)\b(?P<word>except)\b(?=\W*$)|\bwhich\b[^?]*?\b(?P<other>not|false|incorrect)\b"
    ),
}
_QUESTION_WORD: Mapping[Language, re.Pattern[str]] = {
    "vi": re.compile(
        r"(?i)\b(?:gì|nào|ai|đâu|sao|mấy|bao nhiêu|bao lâu|bao giờ|thế nào|vì|để|là|khi)\W*$"
        r"|\b(?:gì|nào|tại sao|vì sao|bao nhiêu|như thế nào)\b"
    ),
    "en": re.compile(r"(?i)\b(?:what|which|who|whom|whose|when|where|why|how)\b"),
}
_LEFTOVER = re.compile(
    r"\*\*|```|^#{1,4} |</?[a-z]+>|\[\[|<\|"
    r"|(?i:^\s*(?:[a-d]\)|(?:đáp án|câu hỏi|answer|question)\s*:))"
)
_PASSAGE = re.compile(
    r"(?i)\b(?:theo|dựa (?:vào|trên)|trong) (?:đoạn|ngữ cảnh|bài|văn bản)(?: văn| đọc| viết)?"
    r"|\b(?:according to|in|based on) the (?:passage|text|context|paragraph|article)"
)

CHECKS: Mapping[str, Callable[[Item], str | None]] = {
    "key_is_longest": _key_is_longest,
    "stem_gives_key": _stem_gives_key,
    "options_overlap": _options_overlap,
    "all_or_none_of_the_above": _all_or_none,
    "combined_options": _combined_options,
    "absolute_terms": _absolute_terms,
    "negative_stem": _negative_stem,
    "blank_in_stem": _blank_in_stem,
    "unfocused_stem": _unfocused_stem,
    "mixed_kinds": _mixed_kinds,
    "numbers_unsorted": _numbers_unsorted,
    "only_true_false": _only_true_false,
    "wrong_language": _wrong_language,
    "foreign_script": _foreign_script,
    "leftovers": _leftovers,
    "names_the_passage": _names_the_passage,
    "key_not_supported": _key_not_supported,
    "numbers_not_in_context": _numbers_not_in_context,
}
"""Name to finder: None is in order, a text says what was found."""

_PASSED = {name: Check(name=name, passed=True, detail=None) for name in CHECKS}
