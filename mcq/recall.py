"""Does a question ask for what its passage says in so many words? Decided without a model.

Small models write such questions rightly far more often than those that ask for a reason, a
conclusion or an application; see docs/quality.md.
"""

import re

from mcq.question import Question
from mcq.words import content_words, sentences, words

_REASON = re.compile(r"(?i)^\W*(?:vì sao|tại sao|vì lý do gì|vì lí do gì|why)\b")


def asks_in_one_sentence(stem: str) -> bool:
    """No situation is told first."""
    return len(sentences(stem)) <= 1


def asks_for_a_reason(stem: str) -> bool:
    """It begins with why."""
    return _REASON.search(stem) is not None


def may_ask_for_recall(stem: str) -> bool:
    """Whether a stem, or the beginning of one, asks in one sentence and for no reason."""
    return asks_in_one_sentence(stem) and not asks_for_a_reason(stem)


def key_coverage(question: Question, passage: str) -> float:
    """Share of the key's words that stand in the passage or a part of it; 1 if the key has none."""
    needed = content_words(question.key_text) or words(question.key_text)
    said = set(words(passage))
    return sum(word in said for word in needed) / len(needed) if needed else 1.0


def is_verbatim(question: Question, passage: str) -> bool:
    """Whether the passage has the key's words in a row."""
    key, text = words(question.key_text), words(passage)
    spans = range(len(text) - len(key) + 1)
    return bool(key) and any(text[i : i + len(key)] == key for i in spans)
