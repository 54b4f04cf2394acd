"""The two shapes a completion has: options under letters, or right before wrong without.

A form writes a completion for training, reads one strictly, and says which texts it admits. Prompt
formats (`mcq.prompts`) name one each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mcq.grammar import Choice, CompletionGrammar, Field, Part, Text
from mcq.language import Language
from mcq.parsing import (
    KEY_LABEL,
    LEAD_LABEL,
    STEM_LABEL,
    WRONG_LABEL,
    Lead,
    parse_completion,
    parse_unlettered,
)
from mcq.question import (
    LETTERS,
    MAX_OPTION_CHARACTERS,
    MAX_STEM_CHARACTERS,
    Question,
)

MAX_QUOTE_CHARACTERS = 500
"""Two long sentences; of 1,862 training questions two rest on more."""


class CompletionForm(Protocol):
    """How a question is written down by a model."""

    @property
    def needs_quote(self) -> bool:
        """Whether a completion begins with the sentence that proves the key."""
        ...

    def render(self, question: Question, language: Language, quote: str) -> str:
        """The text with which a model should continue, without its end token."""
        ...

    def parse(self, text: str, language: Language) -> Question:
        """Read a completion, or raise `MalformedCompletionError`."""
        ...

    def grammar(self, language: Language) -> CompletionGrammar:
        """The completions that this form admits."""
        ...


@dataclass(frozen=True)
class Lettered:
    """Stem, options under A–D, then the letter of the key."""

    needs_quote: bool = False

    def render(self, question: Question, language: Language, quote: str = "") -> str:
        """The question as it stands."""
        lines = [f"{STEM_LABEL[language]} {question.question}"]
        lines += [f"{letter}. {question.options[letter]}" for letter in LETTERS]
        lines += [f"{KEY_LABEL[language]} {question.key}"]
        return "\n".join(lines)

    def parse(self, text: str, language: Language) -> Question:
        """The question as it stands."""
        return parse_completion(text, language)

    def grammar(self, language: Language) -> CompletionGrammar:
        """Six lines."""
        parts: list[Part] = [
            Text(f"{STEM_LABEL[language]} "),
            Field("question", MAX_STEM_CHARACTERS),
        ]
        for letter in LETTERS:
            parts += [Text(f"\n{letter}. "), Field(letter, MAX_OPTION_CHARACTERS)]
        parts += [Text(f"\n{KEY_LABEL[language]} "), Choice("key", LETTERS)]
        return CompletionGrammar(language, tuple(parts))


@dataclass(frozen=True)
class Unlettered:
    """Some leading lines, the stem and the right option among them, then three wrong options.

    A model that composes four options before it names the key has to plan what it cannot see. Here
    it settles what is right before it looks for what is wrong. The letters come from whoever reads
    the completion.
    """

    leads: tuple[Lead, ...]

    @property
    def needs_quote(self) -> bool:
        """Whether the proving sentence is among the leading lines."""
        return "quote" in self.leads

    def render(self, question: Question, language: Language, quote: str = "") -> str:
        """The question without letters; the order of the wrong options is kept."""
        lines = self._leading(question, language, quote)
        lines += [f"{WRONG_LABEL[language]} {text}" for text in question.distractors]
        return "\n".join(lines) + "\n"

    def opening(self, question: Question, language: Language, quote: str = "") -> str:
        """The same up to where the first wrong option would be written."""
        return "\n".join([*self._leading(question, language, quote), WRONG_LABEL[language]])

    def _leading(self, question: Question, language: Language, quote: str) -> list[str]:
        said: dict[Lead, str] = {
            "quote": quote,
            "question": question.question,
            "right": question.key_text,
        }
        return [f"{LEAD_LABEL[lead][language]} {said[lead]}" for lead in self.leads]

    def parse(self, text: str, language: Language) -> Question:
        """The question, with letters given by its own digest (`mcq.shuffling.arranged`)."""
        return parse_unlettered(text, language, self.leads)

    def grammar(self, language: Language) -> CompletionGrammar:
        """A line for each, each ended, since a field ends where a newline begins."""
        named = [(LEAD_LABEL[lead][language], lead, _LIMITS[lead]) for lead in self.leads]
        named += [
            (WRONG_LABEL[language], f"wrong_{number}", MAX_OPTION_CHARACTERS)
            for number in (1, 2, 3)
        ]
        parts: list[Part] = []
        for label, name, limit in named:
            parts += [Text(f"\n{label} " if parts else f"{label} "), Field(name, limit)]
        return CompletionGrammar(language, (*parts, Text("\n")))


_LIMITS: Mapping[Lead, int] = {
    "quote": MAX_QUOTE_CHARACTERS,
    "question": MAX_STEM_CHARACTERS,
    "right": MAX_OPTION_CHARACTERS,
}
RIGHT_FIRST = Unlettered(("question", "right"))
"""The model answers its own question at once."""

QUOTE_FIRST = Unlettered(("quote", "question", "right"))
"""Before that it copies the sentence that proves the key."""

ANSWER_FIRST = Unlettered(("right", "question"))
"""The model takes a detail of the passage and asks for it, so that no question lacks its answer."""
