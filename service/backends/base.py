"""What the service asks of a thing that runs a model; every backend is behind this protocol.

A backend knows one base model in one precision, adapters by digest, and how to continue prompts.
It knows nothing of HTTP, of the registry or of questions.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from mcq.grammar import CompletionGrammar
from mcq.prompts import Prompt
from model_registry.adapter import BaseFingerprint

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; a temperature of 0 is greedy and ignores the rest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    """The same seed gives candidate `i` of a request the same tokens, whatever else runs."""
    max_tokens: int = 320


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """An adapter version as a backend needs it: verified files under an immutable name."""

    engine_name: str
    """`<name>-v<number>-<12 hex of the digest>`; never a prefix of another."""
    digest: str
    directory: Path
    """Holds `adapter_model.safetensors` and `adapter_config.json` in PEFT layout."""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Continue one prompt `n` times with one adapter (None is the bare base model)."""

    prompt: Prompt
    sampling: Sampling
    adapter: AdapterFiles | None = None
    grammar: CompletionGrammar | None = None
    extra_characters: frozenset[str] = frozenset()
    """Characters of the passage, admitted in fields besides the language's own."""
    n: int = 1
    deadline: float | None = None
    """On the clock of `time.monotonic()`; later tokens are not worth computing."""
    is_wanted: Callable[[str], bool] | None = None
    """Asked about a candidate's text so far; after False the rest is not worth computing, and a
    backend that can end one candidate alone ends it with the reason `cancelled`."""


@dataclass(frozen=True, slots=True)
class CompletionDelta:
    """A piece of candidate `index`; the last one of a candidate carries its finish reason."""

    index: int
    text: str
    tokens: int = 0
    """Tokens generated since this candidate's previous delta."""
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    """Set on the first delta of candidate 0, else 0."""
    logprob: float | None = None
    """Natural log-probability of the delta's tokens together, at temperature 1; None where the
    backend does not say."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Ask how likely each of `choices` is as the continuation of one prompt.

    Each choice must begin with a different token after the prompt; the log-probability of that
    first token is the score, normalised over the choices.
    """

    prompt: Prompt
    choices: Sequence[str]
    prefix: str = ""
    """Text that the model is taken to have said already, such as `Đáp án: `."""
    adapter: AdapterFiles | None = None


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """The one base model that a backend serves."""

    kind: str
    base_model: str
    fingerprint: BaseFingerprint | None
    precision: str
    """`fp32`, `bf16`, `fp16`, `nf4` or `dequantized` (NF4 turned back); others are refused."""
    max_context_tokens: int
    supports_chat: bool


class Backend(Protocol):
    """Continues prompts. Safe to call from many tasks of one event loop at once."""

    @property
    def info(self) -> BackendInfo:
        """What is loaded; constant over the backend's life."""
        ...

    @property
    def is_healthy(self) -> bool:
        """False once the backend can answer no more requests."""
        ...

    def count_tokens(self, prompt: Prompt) -> int:
        """How many tokens the prompt takes of the context window."""
        ...

    async def load_adapter(self, adapter: AdapterFiles) -> None:
        """Make an adapter ready; does nothing if it is.

        Raises:
            AdapterRejectedError: Its tensors do not fit the base or change nothing.
        """
        ...

    async def unload_adapter(self, digest: str) -> None:
        """Forget an adapter that no request is using; does nothing if it is unknown."""
        ...

    def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionDelta]:
        """Stream the candidates' texts as they grow, interleaved.

        Closing the generator cancels what is left. A deadline ends candidates with `cancelled`.

        Raises:
            ContextTooLongError: The prompt and its completion exceed the window.
            BackendOverloadedError: The queue is full.
            BackendFailedError: The model failed; other requests are not affected.
        """
        ...

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        """Log-probabilities of each request's choices, normalised over them."""
        ...

    async def close(self) -> None:
        """Stop work and free memory."""
        ...
