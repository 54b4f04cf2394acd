"""The only place where a prompt is written. Formats are named, versioned and never changed.

A changed word is a new format: an adapter learned one exact prompt, its manifest names it, and
the service refuses any other.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from mcq.errors import UnknownPromptFormatError
from mcq.forms import ANSWER_FIRST, QUOTE_FIRST, RIGHT_FIRST, CompletionForm, Lettered
from mcq.grammar import CompletionGrammar
from mcq.language import Language
from mcq.question import Question


class ChatTurn(TypedDict):
    """A message as chat templates read it."""

    role: str
    content: str


CHAT_TEMPLATE_ARGUMENTS: Mapping[str, object] = {
    "date_string": "26 Jul 2024",
    "enable_thinking": False,
}
"""Pinned for every template: Llama 3.2 prints today's date otherwise, Qwen 3 starts to think."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is to continue: either a chat or a plain text."""

    messages: tuple[Message, ...] = ()
    plain: str = ""

    def to_text(self, apply_chat_template: Callable[[list[ChatTurn]], str]) -> str:
        """The text to tokenize, special tokens of the template included.

        `apply_chat_template` opens the assistant's turn and passes `CHAT_TEMPLATE_ARGUMENTS`.
        Tokenize the result with `add_special_tokens=self.is_plain`.
        """
        if self.is_plain:
            return self.plain
        return apply_chat_template(
            [ChatTurn(role=m.role, content=m.content) for m in self.messages]
        )

    @property
    def is_plain(self) -> bool:
        """Whether this is text for a base model rather than a chat."""
        return not self.messages


@dataclass(frozen=True)
class PromptFormat:
    """A way to ask for one question: renders prompts, and reads what they are answered with."""

    name: str
    render_prompt: Callable[[str, Language, Sequence[str]], Prompt]
    form: CompletionForm = field(default_factory=Lettered)

    def render(self, context: str, language: Language, avoid: Sequence[str] = ()) -> Prompt:
        """The prompt for one question about `context` unlike the stems in `avoid`."""
        return self.render_prompt(normalize_context(context), language, avoid)

    def render_completion(self, question: Question, language: Language, quote: str = "") -> str:
        """The text with which a model should continue, without its end token.

        `quote` is the proving sentence, which formats with `form.needs_quote` begin with.
        """
        return self.form.render(question, language, quote)

    def parse(self, text: str, language: Language) -> Question:
        """Read a completion, or raise `MalformedCompletionError`."""
        return self.form.parse(text, language)

    def grammar(self, language: Language) -> CompletionGrammar:
        """The completions that this format admits."""
        return self.form.grammar(language)


def normalize_context(context: str) -> str:
    """NFC, single spaces, no outer space: what models are shown, and what evidence indexes.

    Paragraph breaks become single newlines.
    """
    text = unicodedata.normalize("NFC", context).replace("\r\n", "\n").replace("\r", "\n")
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


_INSTRUCTION: dict[Language, str] = {
    "vi": (
        "Hãy viết một câu hỏi trắc nghiệm dựa vào ngữ cảnh dưới đây. Câu hỏi có bốn phương án "
        "A, B, C, D, trong đó chỉ một phương án đúng."
    ),
    "en": (
        "Write one multiple-choice question about the context below. It has four options "
        "A, B, C, D, of which exactly one is right."
    ),
}
_FORM: dict[Language, str] = {
    "vi": ("Trả lời đúng theo mẫu:\nCâu hỏi: …\nA. …\nB. …\nC. …\nD. …\nĐáp án: (A, B, C hoặc D)"),
    "en": (
        "Answer exactly in this form:\nQuestion: …\nA. …\nB. …\nC. …\nD. …\nAnswer: (A, B, C or D)"
    ),
}
_CONTEXT_LABEL: dict[Language, str] = {"vi": "### Ngữ cảnh:", "en": "### Context:"}
_RESPONSE_LABEL: dict[Language, str] = {"vi": "### Phản hồi:", "en": "### Response:"}
_AVOID_LABEL: dict[Language, str] = {
    "vi": "Hỏi về ý khác với các câu đã có:",
    "en": "Ask about something other than these questions do:",
}


def _avoided(language: Language, avoid: Sequence[str]) -> str:
    if not avoid:
        return ""
    stems = (f"- {' '.join(unicodedata.normalize('NFC', stem).split())}" for stem in avoid)
    return "\n".join([_AVOID_LABEL[language], *stems])


def _instruct_v1(context: str, language: Language, avoid: Sequence[str]) -> Prompt:
    sections = [
        _INSTRUCTION[language],
        _avoided(language, avoid),
        f"{_CONTEXT_LABEL[language]}\n{context}",
        f"{_RESPONSE_LABEL[language]}\n",
    ]
    return Prompt(plain="\n\n".join(section for section in sections if section))


def _chat_v1(context: str, language: Language, avoid: Sequence[str]) -> Prompt:
    return _chat(f"{_INSTRUCTION[language]} {_FORM[language]}", context, language, avoid)


_QUOTED_FORM: dict[Language, str] = {
    "vi": (
        "Hãy chép lại phần ngữ cảnh nêu một ý đáng hỏi, rồi viết một câu hỏi trắc nghiệm về ý đó: "
        "một phương án đúng, ba phương án sai cùng loại với nó. Trả lời đúng theo mẫu:\n"
        "Trích: …\nCâu hỏi: …\nĐúng: …\nSai: …\nSai: …\nSai: …"
    ),
    "en": (
        "Quote the part of the context that states a fact worth asking about, then write one "
        "multiple-choice question about it: one right option, three wrong ones of its kind. "
        "Answer exactly in this form:\n"
        "Quote: …\nQuestion: …\nRight: …\nWrong: …\nWrong: …\nWrong: …"
    ),
}


_RIGHT_FIRST_FORM: dict[Language, str] = {
    "vi": (
        "Hãy viết một câu hỏi trắc nghiệm dựa vào ngữ cảnh dưới đây: một phương án đúng, ba phương "
        "án sai cùng loại với nó. Trả lời đúng theo mẫu:\n"
        "Câu hỏi: …\nĐúng: …\nSai: …\nSai: …\nSai: …"
    ),
    "en": (
        "Write one multiple-choice question about the context below: one right option, three wrong "
        "ones of its kind. Answer exactly in this form:\n"
        "Question: …\nRight: …\nWrong: …\nWrong: …\nWrong: …"
    ),
}


_ANSWER_FIRST_FORM: dict[Language, str] = {
    "vi": (
        "Hãy chọn một chi tiết mà ngữ cảnh dưới đây nêu rõ, rồi viết một câu hỏi trắc nghiệm mà "
        "chi tiết đó là phương án đúng, kèm ba phương án sai cùng loại. Trả lời đúng theo mẫu:\n"
        "Đúng: …\nCâu hỏi: …\nSai: …\nSai: …\nSai: …"
    ),
    "en": (
        "Choose a detail that the context below states plainly, then write a multiple-choice "
        "question to which that detail is the right option, with three wrong ones of its kind. "
        "Answer exactly in this form:\n"
        "Right: …\nQuestion: …\nWrong: …\nWrong: …\nWrong: …"
    ),
}


def _asking(task: Mapping[Language, str]) -> Callable[[str, Language, Sequence[str]], Prompt]:
    """A chat whose system message is the task alone."""

    def render(context: str, language: Language, avoid: Sequence[str]) -> Prompt:
        return _chat(task[language], context, language, avoid)

    return render


def _chat(system: str, context: str, language: Language, avoid: Sequence[str]) -> Prompt:
    user = "\n\n".join(section for section in (context, _avoided(language, avoid)) if section)
    return Prompt(messages=(Message("system", system), Message("user", user)))


PROMPT_FORMATS: Mapping[str, PromptFormat] = {
    prompt_format.name: prompt_format
    for prompt_format in (
        PromptFormat("instruct-vi/1", _instruct_v1),
        PromptFormat("chat/1", _chat_v1),
        PromptFormat("chat/2", _asking(_QUOTED_FORM), QUOTE_FIRST),
        PromptFormat("chat/3", _asking(_RIGHT_FIRST_FORM), RIGHT_FIRST),
        PromptFormat("chat/4", _asking(_ANSWER_FIRST_FORM), ANSWER_FIRST),
    )
}


def prompt_format(name: str) -> PromptFormat:
    """The format of that name, or `UnknownPromptFormatError`."""
    try:
        return PROMPT_FORMATS[name]
    except KeyError:
        raise UnknownPromptFormatError(name, tuple(PROMPT_FORMATS)) from None
