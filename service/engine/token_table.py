"""A byte automaton lifted to tokens: for every state and token the next state, as one dense table.

Allowed tokens and the next state are then two gathers on the device, inside the step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.engine.byte_automaton import NO_LIMIT, ByteAutomaton
from service.errors import BackendError

NOT_ALLOWED = -1
_NEWLINE = 0x0A
_SPACE = 0x20


class UnsupportedTokenizerError(BackendError):
    """The vocabulary lacks a byte that the grammar needs, so a sequence could get stuck."""

    def __init__(self, missing: Sequence[int]) -> None:
        super().__init__(f"The tokenizer has no token for the bytes {[hex(b) for b in missing]}")


@dataclass(frozen=True)
class TokenTable:
    """What the device needs to follow one grammar; states are numbered from 0."""

    next_state: NDArray[np.int16]
    """[states, vocabulary], NOT_ALLOWED where the token may not follow."""
    automaton: ByteAutomaton

    def follow(self, state: int, tokens: Sequence[int]) -> int:
        """The state after tokens that may follow."""
        for token in tokens:
            state = int(self.next_state[state, token])
        return state


class Vocabulary:
    """Bytes of every token, laid out for walking all of them at once."""

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
        self.size = len(tokens)
        self.lengths = np.array([len(t or b"") for t in tokens], dtype=np.int32)
        self._bytes = np.zeros((max(int(self.lengths.max()), 1), self.size), dtype=np.uint8)
        for index, token in enumerate(tokens):
            if token:
                self._bytes[: len(token), index] = np.frombuffer(token, dtype=np.uint8)
        inside = np.arange(len(self._bytes))[:, None] < self.lengths
        lead = inside & ((self._bytes & 0xC0) != 0x80)
        newline = inside & (self._bytes == _NEWLINE)
        self.has_newline = newline.any(axis=0)
        self.characters = lead.sum(axis=0).astype(np.int16)
        """How many characters begin in each token."""
        self.head = (lead & (np.cumsum(newline, axis=0) == 0)).sum(axis=0).astype(np.int16)
        """… before its first newline."""
        last = self._bytes[np.maximum(self.lengths - 1, 0), np.arange(self.size)]
        self.room = self.head + ((last == _SPACE) & ~self.has_newline)
        """Characters a field must have left for the token: a space needs one more after it."""
        used = np.flatnonzero(self.lengths)
        first = self._bytes[0]
        self.by_first_byte = [used[first[used] == byte] for byte in range(256)]
        self.single_bytes = {int(first[i]) for i in used if self.lengths[i] == 1}

    def walk(
        self, delta: NDArray[np.int16], state: int, tokens: NDArray[np.intp]
    ) -> NDArray[np.int16]:
        """The state after each of `tokens`, begun in `state`."""
        dead = len(delta) - 1
        result = np.full(len(tokens), state, dtype=np.int16)
        active = np.arange(len(tokens))
        for position in range(len(self._bytes)):
            active = active[self.lengths[tokens[active]] > position]
            if not len(active):
                break
            result[active] = delta[result[active], self._bytes[position, tokens[active]]]
            active = active[result[active] != dead]
        return result


def build_token_table(automaton: ByteAutomaton, vocabulary: Vocabulary) -> TokenTable:
    """Lift an automaton to a vocabulary.

    Raises:
        UnsupportedTokenizerError: Some byte has no token of its own.
    """
    delta, dead = automaton.delta, automaton.dead
    used = set(np.flatnonzero((delta[:dead] != dead).any(axis=0)).tolist())
    if missing := sorted(used - vocabulary.single_bytes):
        raise UnsupportedTokenizerError(missing)
    table = np.full((dead, vocabulary.size), NOT_ALLOWED, dtype=np.int16)
    copies = {s for states in automaton.field_states[1:] for s in states}
    for state in range(dead):
        if state not in copies:
            _fill(table, automaton, vocabulary, state, newlines_only=False)
    for states in automaton.field_states[1:]:
        _copy_field(table, automaton.field_states[0], states)
        for state in states:
            _fill(table, automaton, vocabulary, state, newlines_only=True)
    return TokenTable(table, automaton)


def _fill(
    table: NDArray[np.int16],
    automaton: ByteAutomaton,
    vocabulary: Vocabulary,
    state: int,
    *,
    newlines_only: bool,
) -> None:
    alive = np.flatnonzero(automaton.delta[state] != automaton.dead)
    if not len(alive):
        return
    tokens = np.concatenate([vocabulary.by_first_byte[byte] for byte in alive])
    if newlines_only:
        tokens = tokens[vocabulary.has_newline[tokens]]
    ends = vocabulary.walk(automaton.delta, state, tokens)
    kept = ends != automaton.dead
    tokens, ends = tokens[kept], ends[kept]
    # A token that runs into a field must fit into it; inside a field the device counts.
    field_of, limit = np.array(automaton.field_of), np.array(automaton.limit)
    enters = (field_of[ends] >= 0) & (field_of[ends] != field_of[state])
    head = vocabulary.head[tokens] if field_of[state] >= 0 else 0
    tail = vocabulary.characters[tokens] - head - automaton.skip[state]
    spaced = np.isin(ends, [states[2] for states in automaton.field_states])
    fits = ~enters | (tail + spaced <= limit[ends])
    table[state, tokens[fits]] = ends[fits]


def _copy_field(table: NDArray[np.int16], source: range, target: range) -> None:
    """Fields differ only in what follows them: inside, rows are equal up to numbering."""
    rows = table[source.start : source.stop]
    inside = (rows >= source.start) & (rows < source.stop)
    table[target.start : target.stop] = np.where(
        inside, rows + (target.start - source.start), NOT_ALLOWED
    )


__all__ = ["NOT_ALLOWED", "NO_LIMIT", "TokenTable", "UnsupportedTokenizerError", "Vocabulary"]
