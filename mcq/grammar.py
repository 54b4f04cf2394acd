"""The completion format as a small regular grammar, from which every constraint is derived.

A grammar is a row of parts: fixed texts, free fields of one line, and a choice of letters. The
regular expression for xgrammar, vLLM and the parser's tests, and the token automaton of the engine
all come from these parts; none is typed twice.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from mcq.language import LETTERS_OF, SCIENCE_LETTERS, Language

PUNCTUATION = frozenset(
    " .,;:!?…\"'“”‘’«»()[]{}<>/\\|-–—−+*×÷=≠≤≥±%‰°#&@$€£_^~`²³₀₁₂₃₄₅₆₇₈₉½¼¾√∞→′″·•"
)
DIGITS = frozenset("0123456789")

# What `mcq.question` refuses anywhere in a field, and what it refuses at its ends; written out as
# characters and ranges, since engines for regular expressions differ in their escapes.
_NOT_TEXT = "\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd\ue000-\uf8ff"
_SPACES = " \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"


def alphabet(language: Language) -> frozenset[str]:
    """Characters that a field may hold besides those of its passage.

    Models of many languages slip foreign scripts into sampled Vietnamese; a passage about Chinese
    characters may still be asked about, since its own characters are admitted.
    """
    return LETTERS_OF[language] | SCIENCE_LETTERS | DIGITS | PUNCTUATION


def passage_characters(context: str) -> frozenset[str]:
    """Characters of a passage that a field may hold: no line breaks, no odd spaces, only text."""
    return frozenset(c for c in set(context) if c == " " or (c.isprintable() and not c.isspace()))


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that must follow exactly so."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """One line of free text: not empty, no outer space, no control characters."""

    name: str
    max_characters: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several texts, of which none begins with another."""

    name: str
    options: tuple[str, ...]


Part = Text | Field | Choice


@dataclass(frozen=True)
class CompletionGrammar:
    """A row of parts; a field is always followed by a text that begins with a newline."""

    language: Language
    parts: tuple[Part, ...]

    def regex(self, *, bounded: bool = False, alphabet: frozenset[str] | None = None) -> str:
        """A regular expression for the whole completion.

        Args:
            bounded: Limit the length of fields. Off by default, since bounded repeats take
                seconds to compile in xgrammar; cap fields by tokens there.
            alphabet: Only these characters in fields; any printable one if left out.
        """
        return "".join(self._regex_parts(bounded, alphabet))

    def _regex_parts(self, bounded: bool, alphabet: frozenset[str] | None) -> Iterator[str]:
        if alphabet is None:
            inner, outer = f"[^{_NOT_TEXT}]", f"[^{_NOT_TEXT}{_SPACES}]"
        else:
            inner, outer = _character_class(alphabet), _character_class(alphabet - {" "})
        for part in self.parts:
            match part:
                case Text(text):
                    yield _escape(text)
                case Field(_, limit) if bounded:
                    yield f"{outer}(?:{inner}{{0,{limit - 2}}}{outer})?"
                case Field():
                    yield f"{outer}(?:{inner}*{outer})?"
                case Choice(_, options):
                    yield f"(?:{'|'.join(_escape(option) for option in options)})"

    def accepts(self, text: str) -> bool:
        """Whether the text is exactly one completion of this grammar."""
        return self._pattern.fullmatch(text) is not None

    def fields(self, text: str) -> dict[str, str] | None:
        """The fields and choices of a completion by name, or None if it is not one."""
        match = self._named_pattern.fullmatch(text)
        return None if match is None else match.groupdict()

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.regex(bounded=True))

    @cached_property
    def _named_pattern(self) -> re.Pattern[str]:
        pieces = self._regex_parts(True, None)
        named = (
            piece if isinstance(part, Text) else f"(?P<{part.name}>{piece})"
            for part, piece in zip(self.parts, pieces, strict=True)
        )
        return re.compile("".join(named))


def _escape(text: str) -> str:
    """Escape for Python's `re`, xgrammar and Rust's regex alike (which refuse `\\ `)."""
    return "".join(f"\\{c}" if c in r"\.^$*+?{}[]|()" else {"\n": r"\n"}.get(c, c) for c in text)


def _character_class(characters: frozenset[str]) -> str:
    escaped = (f"\\{c}" if c in r"\]^[-" else c for c in sorted(characters))
    return f"[{''.join(escaped)}]"
