"""Which rows are trained on, and the report of those that are not and why."""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from mcq.language import Language
from mcq.recall import asks_for_a_reason, asks_in_one_sentence, key_coverage
from training.config import DataConfig, SourceConfig
from training.errors import DataError
from training.examples import (
    REQUIRED,
    Example,
    RejectedRowError,
    require_columns,
    resolve_columns,
    to_example,
)
from training.sources import RawRow, read_rows

_EXAMPLES_SHOWN = 3


@dataclass
class CleaningReport:
    """What was read, what was dropped, with a few examples of each reason."""

    read: Counter[str] = field(default_factory=Counter[str])
    kept: Counter[str] = field(default_factory=Counter[str])
    dropped: Counter[str] = field(default_factory=Counter[str])
    shown: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def drop(self, reason: str, place: str, detail: str) -> None:
        """Count one dropped row."""
        self.dropped[reason] += 1
        shown = self.shown.setdefault(reason, [])
        if len(shown) < _EXAMPLES_SHOWN:
            shown.append(f"{place}: {detail}")

    def to_markdown(self) -> str:
        """The report for people."""
        lines = ["| data set | read | kept |", "|---|---|---|"]
        lines += [f"| {name} | {self.read[name]} | {self.kept[name]} |" for name in self.read]
        if not self.dropped:
            return "\n".join([*lines, "", "Nothing was dropped."])
        lines += ["", "Dropped:"]
        for reason, count in self.dropped.most_common():
            lines.append(f"- {reason}: {count}")
            lines += [f"  - {example}" for example in self.shown[reason]]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Split:
    """Examples to learn from and examples for the held-out loss; no passage is in both."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    report: CleaningReport


def load_examples(
    config: DataConfig, held_out: Iterable[str] = (), *, faulty: bool = False
) -> Split:
    """Read, clean, de-duplicate and split.

    Args:
        config: The data sets.
        held_out: Passages of the evaluation; rows about them are dropped as leaks.
        faulty: Keep questions that a reader found wrong, for a verifier to learn from.

    Raises:
        DataError: A source is unreadable, or nothing is left.
    """
    report = CleaningReport()
    rng = random.Random(config.shuffle_seed)
    seen: set[str] = set()
    validation = [
        example
        for source in config.validation
        for example in _load_source(source, report, seen, faulty)
    ]
    held = {passage_key(context): "evaluation" for context in held_out}
    validation_keys = {passage_key(example.context): "validation" for example in validation}
    train: list[Example] = []
    for source in config.train:
        kept: list[Example] = []
        for example in _load_source(source, report, seen, faulty):
            if config.questions == "recall" and not is_recall(example):
                report.kept[source.path] -= 1
                report.drop("not_recall", example.place, example.question.question)
                continue
            leak = {**validation_keys, **held}.get(passage_key(example.context))
            if leak is None:
                kept.append(example)
            else:
                report.kept[source.path] -= 1
                report.drop("leak", example.place, f"its passage is in the {leak} data")
        train += _weighted(kept, source.weight, rng)
    if not config.validation and config.validation_share:
        train, validation = _split_by_passage(train, config.validation_share, rng)
    if not train:
        reasons = ", ".join(f"{reason} {n}" for reason, n in report.dropped.most_common())
        raise DataError(f"No row is left to train on after cleaning ({reasons or 'all empty'})")
    return Split(tuple(train), tuple(validation), report)


def _load_source(
    source: SourceConfig, report: CleaningReport, seen: set[str], faulty: bool
) -> list[Example]:
    columns = resolve_columns(source.columns, source.path)
    language: Language | None = None if source.language == "auto" else source.language
    kept: list[Example] = []
    report.read[source.path] += 0
    for row in read_rows(source.path):
        if not report.read[source.path]:
            require_columns(row, columns, REQUIRED)
        report.read[source.path] += 1
        example = _clean(row, columns, language, report)
        if example is None:
            continue
        if example.label not in ("", "right") and not faulty:
            report.drop("labelled_wrong", row.place, f"its label is {example.label!r}")
            continue
        twin = _question_key(example)
        if twin in seen:
            report.drop("duplicate", row.place, example.question.question)
            continue
        seen.add(twin)
        kept.append(example)
    report.kept[source.path] += len(kept)
    return kept


def _clean(
    row: RawRow, columns: object, language: Language | None, report: CleaningReport
) -> Example | None:
    try:
        return to_example(row, columns, language)  # type: ignore[arg-type]
    except RejectedRowError as error:
        report.drop(error.reason, row.place, error.detail)
        return None


def _weighted(examples: list[Example], weight: float, rng: random.Random) -> list[Example]:
    whole, part = int(weight), weight - int(weight)
    return examples * whole + rng.sample(examples, round(part * len(examples)))


def _split_by_passage(
    examples: Sequence[Example], share: float, rng: random.Random
) -> tuple[list[Example], list[Example]]:
    passages = list(dict.fromkeys(passage_key(example.context) for example in examples))
    rng.shuffle(passages)
    count = max(1, round(share * len(passages))) if len(passages) > 1 else 0
    held = set(passages[:count])
    train = [e for e in examples if passage_key(e.context) not in held]
    return train, [e for e in examples if passage_key(e.context) in held]


_MOST_KEY_WORDS = 12


def is_recall(example: Example) -> bool:
    """A question in one sentence, not for a reason, whose key is short and in the proof's words."""
    question = example.question
    return (
        asks_in_one_sentence(question.question)
        and not asks_for_a_reason(question.question)
        and len(question.key_text.split()) <= _MOST_KEY_WORDS
        and key_coverage(question, example.evidence or example.context) >= 0.8
    )


def passage_key(text: str) -> str:
    """What two spellings of the same passage share: its words, folded."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold()))


def _question_key(example: Example) -> str:
    key = f"{passage_key(example.context)}|{passage_key(example.question.question)}"
    if example.label:  # models are asked for other options to the same stem
        key += "|" + passage_key(" ".join(sorted(example.question.options.values())))
    return key
