"""What the service answers, as frozen models, and the options of a request.

Fields that a later service adds are ignored, so an older client goes on working with it.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

Letter = Literal["A", "B", "C", "D"]
Language = Literal["vi", "en"]


class GenerateOptions(TypedDict, total=False):
    """The options of a generation; what is left out is the server's default."""

    n: int
    """How many questions, 1 to 20; 1 by default."""
    adapter: str | None
    """`name`, `name/3`, `name@alias`, `base` for the bare base model; None: the server's own."""
    variant: Literal["adapter", "merged"]
    language: Literal["auto", "vi", "en"]
    temperature: float | None
    top_p: float | None
    seed: int | None
    avoid: Sequence[str]
    """Stems of questions that are there already."""
    quality: Literal["fast", "balanced", "best"]
    """How many candidates are written for each question that is returned."""


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Evidence(_Answer):
    """The part of the context, after NFC, that proves the key."""

    start: int
    end: int
    text: str


class Check(_Answer):
    """One thing that was looked at in a question, and whether it was in order."""

    name: str
    passed: bool
    detail: str | None = None


class Question(_Answer):
    """A stem, four options and the letter of the right one."""

    id: str
    question: str
    options: dict[Letter, str]
    key: Letter
    evidence: Evidence | None = None
    checks: tuple[Check, ...] = ()

    @property
    def key_text(self) -> str:
        """The text of the right option."""
        return self.options[self.key]

    @property
    def flaws(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


class AdapterUsed(_Answer):
    """The exact adapter version that wrote the questions."""

    name: str
    version: int
    digest: str


class Usage(_Answer):
    """What a generation cost."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    candidates: int = 0
    seconds: float = 0.0


class GenerationStart(_Answer):
    """What is known of a generation before its first question."""

    id: str
    base_model: str
    adapter: AdapterUsed | None = None
    variant: str = "adapter"
    variant_digest: str | None = None
    language: Language


class Generation(GenerationStart):
    """The answer to one request."""

    questions: tuple[Question, ...] = ()
    shortfall: int = 0
    """How many questions fewer than asked for; `shortfall_reasons` says why."""
    shortfall_reasons: dict[str, int] = Field(default_factory=dict[str, int])
    usage: Usage = Usage()


class AdapterVersion(_Answer):
    """One immutable version of an adapter; `reason` says why it is not servable here."""

    version: int
    digest: str
    created_at: str | None = None
    prompt_format: str | None = None
    languages: tuple[str, ...] = ()
    precision: str | None = None
    servable: bool = True
    reason: str | None = None
    loaded: bool = False
    merged: str | None = None


class Adapter(_Answer):
    """An adapter by name, with its versions and the aliases that point at them."""

    name: str
    description: str = ""
    latest: int | None = None
    aliases: dict[str, int] = Field(default_factory=dict[str, int])
    versions: tuple[AdapterVersion, ...] = ()


class AdapterList(_Answer):
    """Everything that can be asked for on one server."""

    base_model: dict[str, Any]
    default: str | None = None
    adapters: tuple[Adapter, ...] = ()
