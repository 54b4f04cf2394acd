"""The multiple-choice question and every rule that makes it valid.

Validity is what a machine can decide from the question alone: four distinct options, a key among
them, clean text. Whether it is a *good* question is for `mcq.checks`.
"""

import hashlib
import json
import unicodedata
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mcq.errors import InvalidQuestionError

Letter = Literal["A", "B", "C", "D"]
LETTERS: tuple[Letter, ...] = get_args(Letter)

MAX_STEM_CHARACTERS = 400
MAX_OPTION_CHARACTERS = 200


class Evidence(BaseModel):
    """The part of the context that proves the key: `context[start:end] == text`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: int = Field(ge=0)
    end: int
    text: str

    @model_validator(mode="after")
    def _spans_its_text(self) -> Self:
        if self.end - self.start != len(self.text) or not self.text:
            raise InvalidQuestionError(
                f"Evidence of {len(self.text)} characters cannot span {self.start}–{self.end}"
            )
        return self


class Check(BaseModel):
    """One thing that was looked at in a question, and whether it was in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    detail: str | None = None


class Question(BaseModel):
    """A stem, four distinct options, a key, and what is known about their quality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = ""
    """`q_` and 16 hexadecimal digits over stem, options and key; filled in when left empty."""
    question: str
    options: dict[Letter, str]
    key: Letter
    evidence: Evidence | None = None
    checks: tuple[Check, ...] = ()

    @field_validator("question", mode="after")
    @classmethod
    def _clean_stem(cls, text: str) -> str:
        return clean_field(text, "question", MAX_STEM_CHARACTERS)

    @field_validator("options", mode="after")
    @classmethod
    def _clean_options(cls, options: dict[Letter, str]) -> dict[Letter, str]:
        missing = [letter for letter in LETTERS if letter not in options]
        if missing:
            raise InvalidQuestionError(f"Option {', '.join(missing)} is missing")
        cleaned: dict[Letter, str] = {
            letter: clean_field(options[letter], f"option {letter}", MAX_OPTION_CHARACTERS)
            for letter in LETTERS
        }
        seen: dict[str, Letter] = {}
        for letter, text in cleaned.items():
            twin = seen.setdefault(comparable(text), letter)
            if twin != letter:
                raise InvalidQuestionError(f"Options {twin} and {letter} say the same: {text!r}")
        return cleaned

    @model_validator(mode="after")
    def _with_id(self) -> Self:
        if not self.id:
            object.__setattr__(self, "id", _question_id(self.question, self.options, self.key))
        return self

    def rearranged(self, options: dict[Letter, str], key: Letter) -> Self:
        """The same stem and option texts, with other letters, under an id of their own.

        What was valid stays so and is not validated again; evidence and checks are kept.
        """
        new_id = _question_id(self.question, options, key)
        return self.model_copy(update={"id": new_id, "options": options, "key": key})

    @property
    def key_text(self) -> str:
        """The text of the right option."""
        return self.options[self.key]

    @property
    def distractors(self) -> tuple[str, ...]:
        """The texts of the three wrong options, in order."""
        return tuple(text for letter, text in self.options.items() if letter != self.key)


def _question_id(stem: str, options: dict[Letter, str], key: Letter) -> str:
    content = json.dumps([stem, *options.values(), key])
    return f"q_{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def clean_field(text: str, name: str, max_characters: int) -> str:
    """NFC text of one line without outer space, or `InvalidQuestionError`."""
    text = unicodedata.normalize("NFC", text)
    if not text.strip():
        raise InvalidQuestionError(f"The {name} is empty")
    if text != text.strip():
        raise InvalidQuestionError(f"The {name} has space around it: {text!r}")
    if "\ufffd" in text or _is_broken(text):
        raise InvalidQuestionError(f"The {name} holds a character that is not text: {text!r}")
    if len(text) > max_characters:
        raise InvalidQuestionError(
            f"The {name} has {len(text)} characters; at most {max_characters} are allowed"
        )
    return text


def _is_broken(text: str) -> bool:
    if text.isprintable():  # no character of these categories is; decides nearly every field
        return False
    return not _BROKEN_CATEGORIES.isdisjoint(map(unicodedata.category, text))


_BROKEN_CATEGORIES = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Control, surrogate, private, unassigned, line and paragraph separators."""


def comparable(text: str) -> str:
    """The text as far as a reader tells two options apart.

    Case, outer punctuation and the width of spaces do not count. What stands inside does: `-1` is
    not `1`, `C++` is not `C`, `10²` is not `102`.
    """
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return folded.strip(" .,;:!?…\"'“”‘’«»") or folded
