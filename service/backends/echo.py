"""A backend without a model: makes well-formed questions out of the prompt's own words.

For tests, for measuring what the service costs beside the model, and for building a front end
before a model is at hand. Its questions are about the text, but nobody would ask them.
"""

import asyncio
import random
import re
from collections.abc import AsyncGenerator, Sequence

from mcq.grammar import Choice, CompletionGrammar, Field, Text
from mcq.prompts import Prompt, prompt_format
from mcq.question import LETTERS
from mcq.words import fold
from service.backends.base import (
    AdapterFiles,
    BackendInfo,
    CompletionDelta,
    CompletionRequest,
    ScoreRequest,
)

_OPTION_LINE = re.compile(r"(?m)^([A-D])\. (.+)$")
_FALLBACK_WORDS = ("một", "hai", "ba", "bốn", "năm", "sáu")


class EchoBackend:
    """Answers at once, or one piece of text every `token_delay_s` seconds."""

    def __init__(self, token_delay_s: float = 0.0) -> None:
        self._token_delay_s = token_delay_s
        self._loaded: dict[str, AdapterFiles] = {}
        self._info = BackendInfo("echo", "echo", None, "bf16", 32_768, supports_chat=True)

    @property
    def info(self) -> BackendInfo:
        """No weights, so every adapter fits."""
        return self._info

    @property
    def is_healthy(self) -> bool:
        """Nothing in it can break."""
        return True

    def count_tokens(self, prompt: Prompt) -> int:
        """About one token for four characters."""
        return len(_text(prompt)) // 4 + 1

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        """Remember the name."""
        self._loaded[adapter.digest] = adapter

    async def unload_adapter(self, digest: str) -> None:
        """Forget the name."""
        self._loaded.pop(digest, None)

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
        """Stream each candidate in pieces of one line."""
        grammar = request.grammar or prompt_format("chat/1").grammar("vi")
        tokens = self.count_tokens(request.prompt)
        for index in range(request.n):
            text = _completion(request, grammar, index)
            pieces = text.splitlines(keepends=True)
            for number, piece in enumerate(pieces, start=1):
                await asyncio.sleep(self._token_delay_s)
                yield CompletionDelta(
                    index,
                    piece,
                    tokens=len(piece) // 4 + 1,
                    finish_reason="stop" if number == len(pieces) else None,
                    prompt_tokens=tokens if index == 0 and number == 1 else 0,
                )

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        """Agree with its own keys: the option that comes first in the alphabet."""
        await asyncio.sleep(0)
        return [_beliefs(request) for request in requests]

    async def close(self) -> None:
        """Nothing to free."""


def _completion(request: CompletionRequest, grammar: CompletionGrammar, index: int) -> str:
    """A text of the grammar, drawn from the prompt's words by seed and candidate."""
    adapter = request.adapter.digest if request.adapter else "base"
    rng = random.Random(f"{request.sampling.seed}/{index}/{adapter}")
    words = re.findall(r"[^\W\d_]{3,}", _text(request.prompt))
    distinct = list({fold(word): word for word in (*words, *_FALLBACK_WORDS)}.values())
    options = rng.sample(distinct, len(LETTERS))
    key = min(LETTERS, key=lambda letter: options[LETTERS.index(letter)])
    start = rng.randrange(max(1, len(words) - 6))
    stem = " ".join(words[start : start + 6]) or "…"
    fields = {"question": f"{stem} …?", **dict(zip(LETTERS, options, strict=True)), "key": key}
    fields |= {"quote": stem, "right": options[LETTERS.index(key)]}
    wrong = (text for letter, text in zip(LETTERS, options, strict=True) if letter != key)
    fields |= {f"wrong_{number}": text for number, text in enumerate(wrong, start=1)}
    pieces: list[str] = []
    for part in grammar.parts:
        match part:
            case Text(text):
                pieces.append(text)
            case Field(name) | Choice(name):
                pieces.append(fields[name])
    return "".join(pieces)


def _beliefs(request: ScoreRequest) -> list[float]:
    lines = _OPTION_LINE.findall(request.prompt.messages[-1].content)
    texts = dict(lines[-len(LETTERS) :])
    first = min(texts, key=lambda letter: texts[letter], default="")
    return [0.0 if choice.strip() == first else -9.0 for choice in request.choices]


def _text(prompt: Prompt) -> str:
    """The context alone: other sections of the prompt come after a blank line."""
    text = prompt.plain or prompt.messages[-1].content
    return max(text.split("\n\n"), key=len)
