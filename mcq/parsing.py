"""A model's text to a question, or the reason why it is none. Nothing is repaired in silence.

The canonical completion is what `mcq.grammar` accepts. Older adapters also wrote `A.text` and
`Đáp án: B.`; those two spellings mean the same and are read too.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from mcq.errors import InvalidQuestionError, MalformedCompletionError
from mcq.language import Language
from mcq.question import LETTERS, Letter, Question
from mcq.shuffling import arranged

STEM_LABEL: dict[Language, str] = {"vi": "Câu hỏi:", "en": "Question:"}
KEY_LABEL: dict[Language, str] = {"vi": "Đáp án:", "en": "Answer:"}
QUOTE_LABEL: dict[Language, str] = {"vi": "Trích:", "en": "Quote:"}
RIGHT_LABEL: dict[Language, str] = {"vi": "Đúng:", "en": "Right:"}
WRONG_LABEL: dict[Language, str] = {"vi": "Sai:", "en": "Wrong:"}

Lead = Literal["quote", "question", "right"]
"""A line before the wrong options."""

LEAD_LABEL: Mapping[Lead, Mapping[Language, str]] = {
    "quote": QUOTE_LABEL,
    "question": STEM_LABEL,
    "right": RIGHT_LABEL,
}
_REASON_WITHOUT: Mapping[Lead, str] = {
    "quote": "no_quote",
    "question": "no_stem",
    "right": "no_key",
}

_OPTION_LINE = re.compile(r"([A-Z])\. ?(\S.*)")
_KEY = re.compile(r" ?([A-Z])\.?")


def parse_completion(text: str, language: Language) -> Question:
    """Read one completion.

    Raises:
        MalformedCompletionError: Its `reason` is one of `empty`, `broken_text`, `no_stem`,
            `no_key`, `key_out_of_range`, `missing_option`, `repeated_option`, `option_order`,
            `trailing_text`, `unexpected_line`, `invalid_question`.
    """
    stem_line, *rest = _lines(text)
    stem = _labelled(stem_line, STEM_LABEL[language])
    if stem is None:
        raise MalformedCompletionError(
            "no_stem", f"no line “{STEM_LABEL[language]} …” at the start"
        )
    key_at = [i for i, line in enumerate(rest) if line.startswith(KEY_LABEL[language])]
    if not key_at:
        raise MalformedCompletionError("no_key", f"no line “{KEY_LABEL[language]} …”")
    if key_at[0] != len(rest) - 1:
        raise MalformedCompletionError("trailing_text", f"text after the key: {rest[-1]!r}")
    options = _options(rest[: key_at[0]])
    key = _key(rest[key_at[0]].removeprefix(KEY_LABEL[language]))
    try:
        return Question(question=stem, options=options, key=key)
    except ValueError as error:
        raise MalformedCompletionError("invalid_question", _first_reason(error)) from error


def parse_unlettered(text: str, language: Language, leads: Sequence[Lead]) -> Question:
    """Read one completion of a form without letters: its leading lines, then three wrong options.

    Raises:
        MalformedCompletionError: Its `reason` is one of `empty`, `broken_text`, `no_quote`,
            `no_stem`, `no_key`, `missing_option`, `trailing_text`, `invalid_question`.
    """
    lines = _lines(text)
    expected = [(_REASON_WITHOUT[lead], LEAD_LABEL[lead][language]) for lead in leads]
    expected += [("missing_option", WRONG_LABEL[language])] * (len(LETTERS) - 1)
    found: list[str] = []
    for number, (reason, label) in enumerate(expected):
        content = _labelled(lines[number], label) if number < len(lines) else None
        if content is None:
            raise MalformedCompletionError(reason, f"line {number + 1} is not “{label} …”")
        found.append(content)
    if len(lines) > len(expected):
        raise MalformedCompletionError(
            "trailing_text", f"text after the last option: {lines[len(expected)]!r}"
        )
    led = dict(zip(leads, found, strict=False))
    try:
        return arranged(led["question"], led["right"], found[len(leads) :])
    except ValueError as error:
        raise MalformedCompletionError("invalid_question", _first_reason(error)) from error


def _lines(text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text).removesuffix("\n")
    if not text.strip():
        raise MalformedCompletionError("empty", "the text is empty")
    if "\ufffd" in text:
        raise MalformedCompletionError("broken_text", "the text holds broken characters")
    return text.split("\n")


def _labelled(line: str, label: str) -> str | None:
    rest = line.removeprefix(label)
    return None if rest == line or not rest.strip() else rest.removeprefix(" ")


def _options(lines: list[str]) -> dict[Letter, str]:
    found: list[tuple[str, str]] = []
    for line in lines:
        match = _OPTION_LINE.fullmatch(line)
        if match is None:
            raise MalformedCompletionError("unexpected_line", f"not an option: {line!r}")
        found.append((match[1], match[2]))
    counts = Counter(letter for letter, _ in found)
    repeated = [letter for letter, count in counts.items() if count > 1]
    if repeated:
        raise MalformedCompletionError("repeated_option", f"option {repeated[0]} occurs twice")
    missing = [letter for letter in LETTERS if letter not in counts]
    if missing:
        raise MalformedCompletionError("missing_option", f"option {', '.join(missing)} is missing")
    if tuple(letter for letter, _ in found) != LETTERS:
        raise MalformedCompletionError("option_order", f"options read {', '.join(counts)}")
    return {letter: text for letter, (_, text) in zip(LETTERS, found, strict=True)}


def _key(text: str) -> Letter:
    match = _KEY.fullmatch(text)
    if match is None:
        raise MalformedCompletionError("no_key", f"the key is {text.strip()!r}")
    for letter in LETTERS:
        if match[1] == letter:
            return letter
    raise MalformedCompletionError("key_out_of_range", f"the key is {match[1]}")


def _first_reason(error: ValueError) -> str:
    if isinstance(error, InvalidQuestionError):
        return str(error)
    errors = getattr(error, "errors", None)  # pydantic's ValidationError wraps ours
    if errors is None:
        return str(error)
    return str(errors()[0]["msg"]).removeprefix("Value error, ")
