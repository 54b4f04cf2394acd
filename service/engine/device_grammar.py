# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""The grammars in use, joined into one table on the device, and the two gathers that apply it.

State 0 admits everything for ever (no grammar), state 1 follows the end of a completion. The others
belong to compiled grammars; a grammar in use is never dropped.
"""

from dataclasses import dataclass

import torch

from mcq.grammar import CompletionGrammar, alphabet
from service.engine.byte_automaton import NO_LIMIT, build_byte_automaton
from service.engine.token_table import NOT_ALLOWED, TokenTable, Vocabulary, build_token_table
from service.errors import BackendOverloadedError

FREE = 0
FINISHED = 1

GrammarKey = tuple[CompletionGrammar, frozenset[str]]


def grammar_key(grammar: CompletionGrammar, extra_characters: frozenset[str]) -> GrammarKey:
    """What a compiled table depends on; passages without foreign letters share one."""
    return grammar, extra_characters - alphabet(grammar.language)


class GrammarCompiler:
    """Compiles grammars for one vocabulary; safe on any thread, takes about a fifth of a second."""

    def __init__(self, tokens: list[bytes | None]) -> None:
        self.tokens = tokens
        self.vocabulary = Vocabulary(tokens)

    def compile(self, key: GrammarKey) -> TokenTable:
        """The table for a grammar over the letters of its language and the passage's."""
        grammar, extra = key
        automaton = build_byte_automaton(grammar, alphabet(grammar.language) | extra)
        return build_token_table(automaton, self.vocabulary)


@dataclass
class LoadedGrammar:
    """Where a table lies on the device; states are numbered from `offset`."""

    offset: int
    table: TokenTable
    users: int = 0

    @property
    def accept(self) -> int:
        """The state of a complete text."""
        return self.offset + self.table.automaton.accept


class DeviceGrammar:
    """The joined table. Owned by the engine thread."""

    def __init__(self, vocabulary: Vocabulary, rows: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        shape = (rows, vocabulary.size)
        # Untouched pages of the host cost nothing, so the table may be generous.
        self.next_state = torch.empty(shape, dtype=torch.int16, device=device)
        self.next_state[FREE] = FREE
        self.next_state[FINISHED] = FINISHED
        self.per_state = torch.zeros((rows, 3), dtype=torch.int32, device=device)
        """Field, limit of its characters, characters of fixed text before the next field."""
        self.per_state[:, 0] = -1
        self.per_state[:, 1] = NO_LIMIT
        self.per_token = torch.stack(
            [
                torch.from_numpy(v.astype("int32"))
                for v in (vocabulary.room, vocabulary.head, vocabulary.characters)
            ],
            dim=1,
        ).to(device)
        self._loaded: dict[GrammarKey, LoadedGrammar] = {}
        self._free = [range(2, rows)]

    def acquire(self, key: GrammarKey, compiled: TokenTable) -> LoadedGrammar:
        """Hold a grammar for one sequence, copying its table to the device if it is absent.

        Raises:
            BackendOverloadedError: All rows are held by grammars in use.
        """
        loaded = self._loaded.pop(key, None) or self._load(compiled)
        self._loaded[key] = loaded  # moves to the end: the first is the one idle longest
        loaded.users += 1
        return loaded

    def is_loaded(self, key: GrammarKey) -> bool:
        return key in self._loaded

    def release(self, loaded: LoadedGrammar) -> None:
        """End one sequence's hold."""
        loaded.users -= 1

    def _load(self, compiled: TokenTable) -> LoadedGrammar:
        rows = len(compiled.next_state)
        place = self._place(rows)
        table = torch.from_numpy(compiled.next_state)
        moved = torch.where(table == NOT_ALLOWED, table, table + place.start)
        accept = compiled.automaton.accept
        moved[accept] = FINISHED
        self.next_state[place.start : place.stop] = moved.to(self.next_state.device)
        about = compiled.automaton
        # Fields of different grammars need no distinct numbers: a sequence keeps to one grammar.
        columns = torch.tensor([about.field_of, about.limit, about.skip], dtype=torch.int32).T
        self.per_state[place.start : place.stop] = columns.to(self.per_state.device)
        return LoadedGrammar(place.start, compiled)

    def _place(self, rows: int) -> range:
        while True:
            for index, free in enumerate(self._free):
                if len(free) >= rows:
                    self._free[index] = free[rows:]
                    return free[:rows]
            idle = next((k for k, loaded in self._loaded.items() if loaded.users == 0), None)
            if idle is None:
                raise BackendOverloadedError
            dropped = self._loaded.pop(idle)
            self._free.append(range(dropped.offset, dropped.offset + len(dropped.table.next_state)))
            self._join_free()

    def _join_free(self) -> None:
        joined: list[range] = []
        for free in sorted((r for r in self._free if r), key=lambda r: r.start):
            if joined and joined[-1].stop == free.start:
                joined[-1] = range(joined[-1].start, free.stop)
            else:
                joined.append(free)
        self._free = joined

    def mask(self, logits: torch.Tensor, state: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Logits with -inf at the tokens that may not follow; rows are sequences."""
        room = self.per_state[state, 1] - count
        allowed = (self.next_state[state] != NOT_ALLOWED) & (self.per_token[:, 0] <= room[:, None])
        return torch.where(allowed, logits, float("-inf"))

    def admits(self, state: torch.Tensor, count: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """Whether a token may follow; as `mask`, for one token of each row."""
        room = self.per_state[state, 1] - count
        return (self.next_state[state, token] != NOT_ALLOWED) & (self.per_token[token, 0] <= room)

    def advance(
        self, state: torch.Tensor, count: torch.Tensor, token: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The state after a token, and how many characters its field then has."""
        following = self.next_state[state, token].to(state.dtype)
        before, after = self.per_state[state], self.per_state[following, 0]
        head, characters = self.per_token[token, 1], self.per_token[token, 2]
        inside = before[:, 0] >= 0
        stays = inside & (after == before[:, 0])
        entered = characters - torch.where(inside, head, 0) - before[:, 2]
        counted = torch.where(stays, count + head, torch.where(after >= 0, entered, 0))
        return following, counted.to(count.dtype)
