"""From judged completions to figures with intervals. Pure arithmetic."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from difflib import SequenceMatcher
from typing import Any

from mcq.checks import run_checks
from mcq.errors import MalformedCompletionError
from mcq.evidence import find_evidence
from mcq.language import Language, detect_language, foreign_letters
from mcq.prompts import prompt_format
from mcq.question import LETTERS, Letter, Question

_SIMILAR_STEMS = 0.9
_COPIED_WORDS = 12
"""A stem with so many words in a row from its passage is a sentence with a gap, not a question."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of items, with Wilson's 95 % interval."""

    share: float
    low: float
    high: float
    count: int
    of: int

    @classmethod
    def over(cls, outcomes: Iterable[bool]) -> "Rate":
        """The share of true outcomes."""
        values = list(outcomes)
        low, high = wilson(sum(values), len(values))
        share = sum(values) / len(values) if values else 0.0
        return cls(share, low, high, sum(values), len(values))

    def __str__(self) -> str:
        return f"{self.share:.1%} [{self.low:.0%}, {self.high:.0%}]"


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval, which is sound near 0 and 1 too."""
    if total == 0:
        return 0.0, 1.0
    p = hits / total
    middle = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass
class JudgedItem:
    """One completion and everything that was found out about it."""

    id: str
    context: str
    language: Language
    text: str
    stopped: bool
    tokens: int
    question: Question | None = None
    malformed: str | None = None
    """The parser's reason, where there is no question."""
    malformed_detail: str = ""
    has_evidence: bool = False
    flaws: tuple[str, ...] = ()
    language_ok: bool = False
    copied_words: int = 0
    with_context: dict[Letter, float] | None = None
    without_context: dict[Letter, float] | None = None
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def repeats_option(self) -> bool:
        """In the right form, but two of its options say the same."""
        return "say the same" in self.malformed_detail

    @property
    def reader_right(self) -> bool:
        """The reader with the passage chooses the key."""
        return _chooses_key(self.question, self.with_context)

    @property
    def guessed(self) -> bool:
        """The reader without the passage chooses the key."""
        return _chooses_key(self.question, self.without_context)

    @property
    def key_probability(self) -> float:
        """What the reader with the passage gives the key; 0 where there is no question."""
        if self.question is None or self.with_context is None:
            return 0.0
        return self.with_context[self.question.key]

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        values = asdict(self)
        values["question"] = (
            None if self.question is None else self.question.model_dump(mode="json")
        )
        return values


def _chooses_key(question: Question | None, given: dict[Letter, float] | None) -> bool:
    return (
        question is not None
        and given is not None
        and (max(LETTERS, key=lambda letter: given[letter]) == question.key)
    )


def judge(
    id: str,
    context: str,
    language: Language,
    text: str,
    *,
    format_name: str,
    stopped: bool,
    tokens: int,
) -> JudgedItem:
    """Parse one completion and look at it in every way that needs no model."""
    item = JudgedItem(id, context, language, text, stopped, tokens)
    try:
        question = prompt_format(format_name).parse(text, language)
    except MalformedCompletionError as error:
        item.malformed, item.malformed_detail = error.reason, error.detail
        return item
    if not stopped:
        item.malformed = "never_stops"
        return item
    evidence = find_evidence(context, question)
    question = question.model_copy(update={"evidence": evidence})
    item.question = question
    item.has_evidence = evidence is not None
    item.flaws = tuple(c.name for c in run_checks(question, context, language) if not c.passed)
    item.language_ok = _in_language(question, language, context)
    item.copied_words = longest_copy(question.question, context)
    return item


def _in_language(question: Question, language: Language, context: str) -> bool:
    whole = " ".join((question.question, *question.options.values()))
    return not foreign_letters(whole, language, context) and (
        detect_language(question.question) == language
    )


def longest_copy(text: str, context: str) -> int:
    """How many words in a row `text` has in common with the context."""
    mine, theirs = (re.findall(r"\w+", t.casefold()) for t in (text, context))
    matcher = SequenceMatcher(None, mine, theirs, autojunk=False)
    return matcher.find_longest_match(0, len(mine), 0, len(theirs)).size


def summarize(items: Sequence[JudgedItem], known_stems: Iterable[str] = ()) -> dict[str, Any]:
    """The figures over a set of completions; shares are of all completions or of valid ones.

    Args:
        items: One or more completions for each passage.
        known_stems: Stems of the training data, to see what was learned by heart.

    `well_formed` asks for the form alone, `valid_format` for four different options as well.
    """
    valid = [item for item in items if item.question is not None]
    questions = [item.question for item in valid if item.question is not None]
    stems = [question.question for question in questions]
    memory = {_folded(stem) for stem in known_stems}
    result: dict[str, Any] = {
        "completions": len(items),
        "valid_format": Rate.over(item.question is not None for item in items),
        "well_formed": Rate.over(i.question is not None or i.repeats_option for i in items),
        "stops": Rate.over(item.stopped for item in items),
        "distinct_options": Rate.over(not item.repeats_option for item in items),
        "key_strictly_longest": Rate.over(map(key_strictly_longest, questions)),
        "evidence_found": Rate.over(item.has_evidence for item in valid),
        "right_language": Rate.over(item.language_ok for item in valid),
        "copies_passage": Rate.over(item.copied_words >= _COPIED_WORDS for item in valid),
        "repeats_training_stem": Rate.over(_folded(stem) in memory for stem in stems),
        "near_duplicate_stems": Rate.over(near_duplicates(stems)),
        "key_positions": dict(Counter(question.key for question in questions)),
        "key_balance_p": key_balance(questions),
        "flaws_per_item": sum(len(i.flaws) for i in valid) / len(valid) if valid else 0.0,
        "flaws": dict(Counter(flaw for item in valid for flaw in item.flaws).most_common()),
        "malformed": dict(Counter(i.malformed for i in items if i.malformed).most_common()),
        "tokens_mean": sum(item.tokens for item in items) / len(items) if items else 0.0,
    }
    read = [item for item in valid if item.with_context is not None]
    if read:
        result |= _answerability(read)
    return result


def _answerability(read: Sequence[JudgedItem]) -> dict[str, Any]:
    with_text = Rate.over(item.reader_right for item in read)
    without = Rate.over(item.guessed for item in read)
    return {
        "reader_with_passage": with_text,
        "reader_without_passage": without,
        "informativity": with_text.share - without.share,
        "key_probability_mean": sum(item.key_probability for item in read) / len(read),
    }


def key_strictly_longest(question: Question) -> bool:
    """The key has more characters than every distractor."""
    return len(question.key_text) > max(map(len, question.distractors))


def key_balance(questions: Sequence[Question]) -> float:
    """Chi-square over the four positions: how likely so uneven a spread is by chance."""
    if not questions:
        return 1.0
    expected = len(questions) / len(LETTERS)
    counts = Counter(question.key for question in questions)
    x = sum((counts[letter] - expected) ** 2 / expected for letter in LETTERS)
    # the survival function of chi-square with three degrees of freedom, in closed form
    return math.erfc(math.sqrt(x / 2)) + math.sqrt(2 * x / math.pi) * math.exp(-x / 2)


def near_duplicates(stems: Sequence[str]) -> list[bool]:
    """For each stem, whether an earlier one says nearly the same."""
    words = [set(_folded(stem).split()) for stem in stems]
    result: list[bool] = []
    for i, mine in enumerate(words):
        result.append(any(_jaccard(mine, words[j]) > _SIMILAR_STEMS for j in range(i)))
    return result


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _folded(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def to_json(metrics: dict[str, Any]) -> dict[str, Any]:
    """Plain JSON, rounded."""
    result: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Rate):
            values = asdict(value)
            result[name] = {
                k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()
            }
        else:
            result[name] = round(value, 4) if isinstance(value, float) else value
    return result
