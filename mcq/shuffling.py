"""Options in another order, so that keys are spread evenly over A–D whatever a model prefers."""

import hashlib
import random
import re
from collections.abc import Sequence

from mcq.question import LETTERS, Letter, Question

_REFERS_TO_LETTERS = re.compile(r"\b[A-D]\b\s*(?:,|và|hoặc|and|or|&)\s*\b[A-D]\b")
_LEADING_NUMBER = re.compile(r"\D{0,3}(\d+(?:[.,]\d+)*)")


def arranged(stem: str, right: str, wrong: Sequence[str]) -> Question:
    """A question from its right and its wrong options: figures ascend, other keys fall evenly.

    The letter of the key comes from a digest of the text, so that one completion always reads the
    same, in training, evaluation and serving, and many together are balanced over A–D.

    Raises:
        InvalidQuestionError: The parts break a rule of the domain.
    """
    options = [right, *wrong]
    values = [_leading_value(text) for text in options]
    if all(value is not None for value in values):
        order = sorted(range(len(options)), key=lambda i: (values[i] or 0.0, i))
    else:
        digest = hashlib.sha256("\n".join((stem, *options)).encode()).digest()
        order = list(range(1, len(options)))
        order.insert(digest[0] % len(options), 0)
    return Question(
        question=stem,
        options={letter: options[i] for letter, i in zip(LETTERS, order, strict=True)},
        key=LETTERS[order.index(0)],
    )


def _leading_value(text: str) -> float | None:
    """The figure that an option begins with; points and commas between digits group or divide."""
    match = _LEADING_NUMBER.match(text)
    if match is None:
        return None
    groups = re.split(r"[.,]", match[1])
    if len(groups) > 1 and all(len(group) == 3 for group in groups[1:]):
        return float("".join(groups))
    return float(f"{''.join(groups[:-1])}.{groups[-1]}") if len(groups) > 1 else float(groups[0])


def is_order_free(question: Question) -> bool:
    """Whether the options may change places: none names another's letter, no row of numbers."""
    texts = list(question.options.values())
    if any(_REFERS_TO_LETTERS.search(text) for text in texts):
        return False
    return not all(_LEADING_NUMBER.match(text) for text in texts)


def with_key_at(question: Question, letter: Letter, rng: random.Random) -> Question:
    """The same question with its key at `letter` and the distractors in a random order.

    Evidence and checks stay; details of checks that name letters do not follow.
    """
    distractors = list(question.distractors)
    rng.shuffle(distractors)
    waiting = iter(distractors)
    options: dict[Letter, str] = {
        place: question.key_text if place == letter else next(waiting) for place in LETTERS
    }
    return question.rearranged(options, letter)


def next_key(used: Sequence[Letter], rng: random.Random) -> Letter:
    """A letter that is the key least often so far; random among equals."""
    least = min(used.count(letter) for letter in LETTERS)
    return rng.choice([letter for letter in LETTERS if used.count(letter) == least])


def balanced(question: Question, used: Sequence[Letter], rng: random.Random) -> Question:
    """The question with its key where the set needs one, if its options may change places."""
    if not is_order_free(question):
        return question
    return with_key_at(question, next_key(used, rng), rng)
