"""From a row under any column names to an example: a passage with one question about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from mcq.errors import InvalidQuestionError
from mcq.language import Language, detect_language
from mcq.prompts import normalize_context
from mcq.question import LETTERS, Letter, Question
from training.errors import DataError
from training.sources import RawRow

REQUIRED = (
    "context",
    "question",
    "answer_a",
    "answer_b",
    "answer_c",
    "answer_d",
    "correct_answer",
)
OPTIONAL = ("lang", "evidence", "source", "licence", "explanation", "label")

PRESETS: Mapping[str, Mapping[str, str]] = {
    "own": {name: name for name in (*REQUIRED, *OPTIONAL)},
    "tong_hop_trac_nghiem": {name: name for name in REQUIRED},
    "tin_hoc": {
        **{name: name for name in REQUIRED},
        "context": "para",
        "correct_answer": "answer_key",
    },
}
"""Our names to those of a data set."""


@dataclass(frozen=True, slots=True)
class Example:
    """A passage and one question about it."""

    place: str
    context: str
    question: Question
    language: Language
    evidence: str = ""
    """The verbatim part of the passage that proves the key, where the source says."""
    source: str = ""
    licence: str = ""
    label: str = ""
    """What a reader found (docs/labelling.md), for questions that a model wrote."""


class RejectedRowError(Exception):
    """Why a row is left out of training; `reason` is a stable identifier for the report."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def resolve_columns(columns: str | Mapping[str, str], place: str) -> Mapping[str, str]:
    """The mapping that a preset or a user's own mapping stands for."""
    if not isinstance(columns, str):
        unknown = set(columns) - set(REQUIRED) - set(OPTIONAL)
        if unknown:
            known = ", ".join((*REQUIRED, *OPTIONAL))
            raise DataError(f"{place}: columns map from {sorted(unknown)}; known are {known}")
        return {**{name: name for name in REQUIRED}, **columns}
    if columns not in PRESETS:
        raise DataError(f"{place}: no preset {columns!r}; known: {', '.join(PRESETS)}")
    return PRESETS[columns]


def require_columns(row: RawRow, columns: Mapping[str, str], needed: tuple[str, ...]) -> None:
    """Raise `DataError` with the columns found if the first row lacks some."""
    missing = [columns[name] for name in needed if columns[name] not in row.values]
    if missing:
        raise DataError(
            f"{row.place}: column {', '.join(missing)} is missing; "
            f"found: {', '.join(map(str, row.values))}"
        )


def to_example(row: RawRow, columns: Mapping[str, str], language: Language | None) -> Example:
    """Read one row.

    Raises:
        RejectedRowError: It cannot be trained on; rows are never repaired in silence.
    """
    values = {name: row.values.get(column) for name, column in columns.items()}
    texts = {name: _text(value) for name, value in values.items()}
    context = normalize_context(texts["context"])
    if not context:
        raise RejectedRowError("no_context", "the passage is empty")
    options: dict[Letter, str] = {letter: texts[f"answer_{letter.lower()}"] for letter in LETTERS}
    key = texts["correct_answer"].upper().removesuffix(".")
    letter: Letter | None = next((letter for letter in LETTERS if letter == key), None)
    if letter is None:
        raise RejectedRowError("key_out_of_range", f"the key is {texts['correct_answer']!r}")
    try:
        question = Question(question=texts["question"], options=options, key=letter)
    except InvalidQuestionError as error:
        raise RejectedRowError("invalid_question", str(error)) from error
    except ValidationError as error:
        message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise RejectedRowError("invalid_question", message) from error
    return Example(
        place=row.place,
        context=context,
        question=question,
        language=_language(texts.get("lang", ""), language, context),
        evidence=texts.get("evidence", ""),
        source=texts.get("source", ""),
        licence=texts.get("licence", ""),
        label=texts.get("label", ""),
    )


def _text(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split(" ")).strip()


def _language(said: str, configured: Language | None, context: str) -> Language:
    if said == "vi" or said == "en":
        return said
    return configured or detect_language(context)
