"""From many candidates for each passage to what a model should write more of, and less of.

A candidate's worth is what can be decided without a person: its form, its flaws, and what the bare
base answers with the passage and without it (`training.answerability`). Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mcq.flaws import is_blocked
from mcq.question import LETTERS, Question, comparable
from training.metrics import JudgedItem, key_strictly_longest

MALFORMED = -1.0
BLOCKED = -0.5
_CHANCE = 1 / len(LETTERS)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, the better one first."""

    chosen: JudgedItem
    rejected: JudgedItem

    @property
    def reason(self) -> str:
        """What is wrong with the second one, for the report."""
        if self.rejected.malformed is not None:
            return self.rejected.malformed
        return "flawed" if is_blocked(self.rejected.flaws) else "not_answerable"

    def to_json(self, prompt_format: str, source: str, licence: str) -> dict[str, Any]:
        """A row of a preference set."""
        return {
            "id": self.chosen.id,
            "lang": self.chosen.language,
            "context": self.chosen.context,
            "prompt_format": prompt_format,
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "reason": self.reason,
            "margin": round(worth(self.chosen) - worth(self.rejected), 4),
            "source": source,
            "licence": licence,
        }


def worth(item: JudgedItem) -> float:
    """How good a candidate seems: at most 1, below 0 if it cannot be used at all.

    The key's probability with the passage, less what the reader gets right by guessing, less a
    little for each flaw: a question that answers itself or whose key is the longest option teaches
    to guess.
    """
    if item.question is None:
        return MALFORMED
    if is_blocked(item.flaws) or not item.language_ok:
        return BLOCKED
    guessed = (item.without_context or {}).get(item.question.key, _CHANCE)
    value = item.key_probability - 0.5 * max(0.0, guessed - _CHANCE)
    value -= 0.1 * key_strictly_longest(item.question)
    value -= 0.0 if item.has_evidence else 0.2
    return value - 0.05 * len(item.flaws)


def best(items: Iterable[JudgedItem], count: int, least: float) -> list[JudgedItem]:
    """The best candidates of one passage that ask different things and have other keys."""
    chosen: list[JudgedItem] = []
    for item in sorted(items, key=worth, reverse=True):
        if worth(item) < least or len(chosen) == count:
            break
        if not any(_same(item.question, other.question) for other in chosen):
            chosen.append(item)
    return chosen


def pairs(
    items: Sequence[JudgedItem],
    *,
    count: int = 2,
    least: float = 0.5,
    margin: float = 0.35,
) -> list[Pair]:
    """Up to `count` pairs of one passage: its best candidates against bad ones of every kind.

    The first good one is set against a malformed candidate where there is one, the next against the
    least answerable; no candidate is in two pairs.
    """
    good = best(items, count, least)
    bad = _bad_ones([item for item in items if not any(item is other for other in good)])
    result: list[Pair] = []
    for chosen in good:
        rejected = next((b for b in bad if worth(chosen) - worth(b) >= margin), None)
        if rejected is None:
            continue
        bad = [b for b in bad if b is not rejected and b.text != rejected.text]
        result.append(Pair(chosen, rejected))
    return result


def _bad_ones(items: Sequence[JudgedItem]) -> list[JudgedItem]:
    """The worst malformed one, then by worth: kinds of failure take turns."""
    ranked = sorted(items, key=worth)
    malformed = [item for item in ranked if item.question is None and item.stopped]
    others = [item for item in ranked if item.question is not None]
    return [*malformed[:1], *others, *malformed[1:]]


def _same(a: Question | None, b: Question | None) -> bool:
    if a is None or b is None:
        return a is b
    keys_agree = comparable(a.key_text) == comparable(b.key_text)
    return keys_agree or comparable(a.question) == comparable(b.question)
