"""Options in another order, so that keys are spread evenly over A–D whatever a model prefers."""

import random
import re
from collections.abc import Sequence

from mcq.question import LETTERS, Letter, Question

_REFERS_TO_LETTERS = re.compile(r"\b[A-D]\b\s*(?:,|và|hoặc|and|or|&)\s*\b[A-D]\b")
_LEADING_NUMBER = re.compile(r"\D{0,3}(\d+(?:[.,]\d+)*)")


def is_order_free(question: Question) -> bool:
    """Whether the options may change places: none names another's letter, no row of numbers."""
    texts = list(question.options.values())
    if any(_REFERS_TO_LETTERS.search(text) for text in texts):
        return False
    return not all(_LEADING_NUMBER.match(text) for text in texts)


def with_key_at(question: Question, letter: Letter, rng: random.Random) -> Question:
    """The same question with its key at `letter` and the distractors in a random order."""
    distractors = list(question.distractors)
    rng.shuffle(distractors)
    waiting = iter(distractors)
    options: dict[Letter, str] = {
        place: question.key_text if place == letter else next(waiting) for place in LETTERS
    }
    return Question(question=question.question, options=options, key=letter)


def next_key(used: Sequence[Letter], rng: random.Random) -> Letter:
    """A letter that is the key least often so far; random among equals."""
    least = min(used.count(letter) for letter in LETTERS)
    return rng.choice([letter for letter in LETTERS if used.count(letter) == least])


def balanced(question: Question, used: Sequence[Letter], rng: random.Random) -> Question:
    """The question with its key where the set needs one, if its options may change places."""
    if not is_order_free(question):
        return question
    return with_key_at(question, next_key(used, rng), rng)
