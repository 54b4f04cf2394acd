"""A candidate on its way through the engine, and the request it belongs to."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from service.engine.adapter_files import HostAdapter
from service.engine.device_grammar import GrammarKey, LoadedGrammar
from service.engine.device_state import RowValues
from service.engine.drafts import Lookup
from service.engine.lora_slots import LoraSlot
from service.engine.token_table import TokenTable

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """Continue `prompt` `n` times; everything slow (tokenizing, compiling, reading) is done
    already."""

    prompt: tuple[int, ...]
    n: int = 1
    max_tokens: int = 320
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    digest: str = ""
    """Of the adapter; empty is the base. It salts prefix reuse."""
    adapter: HostAdapter | None = None
    grammar: GrammarKey | None = None
    table: TokenTable | None = None
    forced: dict[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    """Tokens that must follow a state of the grammar (numbered from 0)."""
    stop_tokens: frozenset[int] = frozenset()
    deadline: float | None = None
    choices: tuple[int, ...] = ()
    """Instead of a continuation: the tokens after the prompt whose log-probabilities are wanted."""


@dataclass(frozen=True, slots=True)
class Output:
    """News of one candidate: tokens since the last news, and why it ended if it did."""

    index: int
    tokens: tuple[int, ...] = ()
    finish: Finish | None = None
    error: Exception | None = None
    scores: tuple[float, ...] = ()
    logprob: float = 0.0
    """Of the tokens, together; those that had to follow count as certain."""


Listener = Callable[[list[Output]], None]
"""Called on the engine's thread, once per request and step."""


@dataclass(eq=False)
class Ticket:
    """A submitted request: the handle by which it is cancelled."""

    request: EngineRequest
    listener: Listener
    on_closed: Callable[[], None] = lambda: None
    """Called once, on the engine's thread, when nothing of the request is left in the engine."""
    submitted: float = field(default_factory=time.monotonic)
    cancelled: bool = False
    unwanted: set[int] = field(default_factory=set[int])
    """Candidates that are to end before their next step."""
    open_candidates: int = 0


@dataclass(eq=False)
class Sequence:
    """One candidate."""

    ticket: Ticket
    index: int
    tokens: list[int]
    """Prompt, forced and generated tokens."""
    prompt_length: int
    slot: int = -1
    computed: int = 0
    """How many of the tokens have keys and values in the slot, or will have after launched
    steps."""
    generated: int = 0
    lora: LoraSlot | None = None
    grammar: LoadedGrammar | None = None
    state: int = 0
    finish: Finish | None = None
    error: Exception | None = None
    scores: tuple[float, ...] = ()
    last_token: float | None = None
    """When the newest token was read."""
    launched: int = 0
    """Steps whose tokens have not been read yet."""
    lookup: Lookup = field(default_factory=Lookup)
    news: list[int] = field(default_factory=list[int])
    news_logprob: float = 0.0

    @property
    def request(self) -> EngineRequest:
        return self.ticket.request

    @property
    def pending(self) -> int:
        """Known tokens without keys and values."""
        return len(self.tokens) - self.computed

    @property
    def is_over(self) -> bool:
        return self.finish is not None or self.error is not None

    @property
    def lora_number(self) -> int:
        return 0 if self.lora is None else self.lora.number

    def take_news(self) -> Output:
        """What was not told yet, which counts as told then."""
        output = Output(
            self.index,
            tuple(self.news),
            self.finish,
            self.error,
            self.scores,
            self.news_logprob,
        )
        self.news.clear()
        self.news_logprob = 0.0
        return output

    def guess(self, most: int, max_context: int) -> tuple[int, ...]:
        """What may follow the newest token, as far as the sequence may grow."""
        room = min(self.request.max_tokens - self.generated, max_context - len(self.tokens)) - 1
        return self.lookup.guess(self.tokens, min(most, room))

    def row_values(self) -> RowValues:
        """What the device has to know before it goes on from here."""
        return RowValues(
            lora=self.lora_number,
            state=self.state,
            count=0,
            seed=self.seed,
            temperature=self.request.temperature,
            top_p=self.request.top_p,
        )

    @property
    def seed(self) -> int:
        """Each candidate draws from its own stream."""
        return (self.request.seed + 0x9E3779B1 * self.index) & 0xFFFFFFFF
