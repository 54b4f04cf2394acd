"""A completion grammar as a finite automaton over UTF-8 bytes.

Tokens are pieces of bytes, and byte-level BPE splits Vietnamese letters between tokens, so the
automaton reads bytes: a field ends only between whole characters, and only characters of its
alphabet pass.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mcq.grammar import CompletionGrammar, Field, Text

NO_LIMIT = 2**30
_NEWLINE = 0x0A
_SPACE = 0x20


@dataclass
class ByteAutomaton:
    """States with what the counters need to know about each; the last state is dead."""

    delta: NDArray[np.int16]
    """[states + 1, 256]: the next state; the last row and index is the dead state."""
    start: int
    accept: int
    field_of: list[int]
    """Which field a state is in, or -1."""
    limit: list[int]
    """The most characters of the field a state is in."""
    skip: list[int]
    """Characters of fixed text between a state and the beginning of the next field."""
    forced: dict[int, bytes]
    """Fixed bytes that must follow, less a last space, which a tokenizer joins with what comes."""
    field_states: list[range] = field(default_factory=list[range])
    """The states of each field; all fields number theirs in the same order: start, after a
    character, after a space, then inside characters."""

    @property
    def dead(self) -> int:
        """The state after a byte that the grammar does not admit."""
        return len(self.delta) - 1


def build_byte_automaton(grammar: CompletionGrammar, characters: frozenset[str]) -> ByteAutomaton:
    """The automaton of `grammar` with fields over `characters`.

    Characters that are space (other than the plain one) or that no parser accepts are left out.
    """
    encoded = sorted(c.encode() for c in characters if c.isprintable())
    builder = _Builder(encoded)
    for part in reversed(grammar.parts):  # from the end, so that a part knows what follows it
        match part:
            case Text(text):
                builder.prepend_text(text.encode())
            case Field(_, limit):
                builder.prepend_field(limit)
            case _:
                builder.prepend_choice([option.encode() for option in part.options])
    return builder.finish()


class _Builder:
    """Adds parts from the last to the first; `head` is the state in which the added rest begins."""

    def __init__(self, characters: list[bytes]) -> None:
        self._characters = characters
        self._edges: list[dict[int, int]] = [{}]
        self._field_of, self._limit, self._skip = [-1], [NO_LIMIT], [0]
        self._forced: dict[int, bytes] = {}
        self._fields: list[range] = []
        self._head = 0
        self._ahead = b""  # fixed bytes that `head` begins with
        self._joins = False  # whether those run into a field or a choice

    def prepend_text(self, text: bytes) -> None:
        for byte in reversed(text):
            self._ahead = bytes([byte]) + self._ahead
            self._head = self._state({byte: self._head}, skip=_characters(self._ahead))
            forced = self._ahead.removesuffix(b" ") if self._joins else self._ahead
            if forced and _is_lead(byte):
                self._forced[self._head] = forced

    def prepend_field(self, limit: int) -> None:
        index, first, skip = len(self._fields), len(self._edges), _characters(self._ahead)
        start, after, spaced = (self._state({}, index, limit, skip) for _ in range(3))
        self._edges[after] |= self._edges[self._head]  # the text that follows, by its newline
        for bytes_ in self._characters:
            self._spell(bytes_, (start, after, spaced), (index, limit, skip))
        self._fields.append(range(first, len(self._edges)))
        self._head, self._ahead, self._joins = start, b"", True

    def _spell(
        self, character: bytes, origins: tuple[int, int, int], about: tuple[int, int, int]
    ) -> None:
        start, after, spaced = origins
        if character == b" ":
            self._edges[after][_SPACE] = self._edges[spaced][_SPACE] = spaced
            return
        node = after
        for byte in character[:-1]:
            if byte not in self._edges[node]:
                self._edges[node][byte] = self._state({}, *about)
            node = self._edges[node][byte]
        self._edges[node][character[-1]] = after
        for origin in (start, spaced):
            self._edges[origin][character[0]] = self._edges[after][character[0]]

    def prepend_choice(self, options: list[bytes]) -> None:
        root = self._state({})
        for option in options:
            node = root
            for byte in option[:-1]:
                if byte not in self._edges[node]:
                    self._edges[node][byte] = self._state({})
                node = self._edges[node][byte]
            self._edges[node][option[-1]] = self._head
        self._head, self._ahead, self._joins = root, b"", True

    def _state(
        self, edges: dict[int, int], field: int = -1, limit: int = NO_LIMIT, skip: int = 0
    ) -> int:
        self._edges.append(edges)
        self._field_of.append(field)
        self._limit.append(limit)
        self._skip.append(skip)
        return len(self._edges) - 1

    def finish(self) -> ByteAutomaton:
        dead = len(self._edges)
        delta = np.full((dead + 1, 256), dead, dtype=np.int16)
        for state, edges in enumerate(self._edges):
            for byte, target in edges.items():
                delta[state, byte] = target
        return ByteAutomaton(
            delta,
            self._head,
            0,
            self._field_of,
            self._limit,
            self._skip,
            self._forced,
            self._fields,
        )


def _characters(encoded: bytes) -> int:
    return sum(map(_is_lead, encoded))


def _is_lead(byte: int) -> bool:
    """Whether a byte begins a character: the first of several, or one alone."""
    return byte & 0xC0 != 0x80
