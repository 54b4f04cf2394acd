"""What goes over the wire: requests, answers, and the events of a stream."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from mcq.language import Language
from mcq.question import Question

Variant = Literal["adapter", "merged"]
Quality = Literal["fast", "balanced", "best"]

MAX_BODY_BYTES = 1_000_000
"""Of any request."""


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class GenerateRequest(_Wire):
    """A paragraph, and how many questions of what kind are wanted about it."""

    context: str
    """The paragraph to ask about: plain text, Vietnamese or English."""

    n: Annotated[int, Field(ge=1)] = 1
    """How many different questions are wanted."""

    adapter: str | None = None
    """`name`, `name/3`, `name@alias`, or `base` for the bare base model; the server's default
    adapter if left out."""

    variant: Variant = "adapter"
    """`adapter` on the shared base model, or its `merged` weights where they are served."""

    quality: Quality = "fast"
    """How many candidates are drawn for each question. `fast` returns what was written, checked by
    rules; `balanced` and `best` return only what the base model, asked to answer it from the
    context, answers with the key."""

    language: Literal["auto", "vi", "en"] = "auto"
    """Language of the questions; `auto` is that of the context."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Left out, the first question is greedy and further ones are sampled."""

    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus of the sampled tokens; 0.95 if left out."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """The same seed gives the same questions."""

    avoid: Annotated[list[str], Field(max_length=50)] = []
    """Stems that exist already; questions like them are not wanted."""


class AdapterUsed(_Wire):
    """The exact version that answered."""

    name: str
    version: int
    digest: str


class Usage(_Wire):
    """What the questions cost."""

    prompt_tokens: int
    completion_tokens: int
    candidates: int
    """Completions that were drawn, those that were dropped included."""
    seconds: float


class GenerateStart(_Wire):
    """First event of a stream: who answers."""

    id: str
    base_model: str
    adapter: AdapterUsed | None
    variant: Variant
    variant_digest: str | None = None
    """Identity of the merged weights that answer, for `merged`."""
    language: Language


class GenerateDone(GenerateStart):
    """Last event of a stream: how it went."""

    shortfall: int
    """How many of the questions asked for are missing."""
    shortfall_reasons: dict[str, int]
    """Why completions were dropped, and how often."""
    usage: Usage


class GenerateResponse(GenerateDone):
    """Parsed, checked questions, and an honest count of those that are missing."""

    questions: list[Question]


class VersionInfo(_Wire):
    """One version of an adapter, and whether this server can use it."""

    version: int
    digest: str
    created_at: str
    prompt_format: str
    languages: list[str]
    precision: str
    servable: bool
    reason: str | None
    """Why it cannot be served here, if it cannot."""
    loaded: bool
    merged: str | None
    """Kind of the merged weights that `variant: merged` serves; none were made, or none may be
    served here, if empty."""


class AdapterInfo(_Wire):
    """An adapter with its versions and aliases."""

    name: str
    description: str
    latest: int | None
    aliases: dict[str, int]
    versions: list[VersionInfo]


class BaseModelInfo(_Wire):
    """The one base model that this server has loaded."""

    name: str
    backend: str
    precision: str
    max_context_tokens: int


class AdapterList(_Wire):
    """Everything that can be asked for."""

    base_model: BaseModelInfo
    default: str | None
    adapters: list[AdapterInfo]


class Reason(_Wire):
    """Why something is changed; it stays in the history."""

    reason: Annotated[str, Field(max_length=500)] = ""


class AliasMove(Reason):
    """Where an alias is to point."""

    version: Annotated[int, Field(ge=1)]


class Health(_Wire):
    """State of the server; `detail` says what it waits for."""

    status: Literal["ok", "starting", "draining", "failed"]
    detail: str = ""


class FieldProblem(_Wire):
    """One field of the request that is not as it must be."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details; `code` is stable, `detail` says what to do."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldProblem] = []
