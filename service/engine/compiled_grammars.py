"""Compiled grammars kept for the next request, and the tokens that each of them forces."""

import threading
from collections.abc import Callable

from mcq.grammar import CompletionGrammar
from service.engine.device_grammar import GrammarCompiler, GrammarKey, grammar_key
from service.engine.token_table import NOT_ALLOWED, TokenTable

_KEPT = 6
"""About 40 MB each for a vocabulary of 150,000."""

Compiled = tuple[GrammarKey, TokenTable, dict[int, tuple[int, ...]]]


class CompiledGrammars:
    """Compiles on the calling thread, each grammar once."""

    def __init__(self, compiler: GrammarCompiler, encode: Callable[[str], list[int]]) -> None:
        self._compiler, self._encode = compiler, encode
        self._kept: dict[GrammarKey, Compiled] = {}
        self._lock = threading.Lock()

    def get(self, grammar: CompletionGrammar, extra_characters: frozenset[str]) -> Compiled:
        """The key, the table and the forced tokens of a grammar over the passage's characters."""
        key = grammar_key(grammar, extra_characters)
        with self._lock:
            compiled = self._kept.pop(key, None)
            if compiled is None:
                table = self._compiler.compile(key)
                compiled = key, table, self._forced(table)
            self._kept[key] = compiled  # moves to the end: the first is the one unused longest
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
            return compiled

    def _forced(self, table: TokenTable) -> dict[int, tuple[int, ...]]:
        """Forced texts as the tokenizer spells them, where it does so without adding anything."""
        result: dict[int, tuple[int, ...]] = {}
        for state, text in table.automaton.forced.items():
            tokens = self._encode(text.decode())
            if b"".join(self._compiler.tokens[token] or b"" for token in tokens) != text:
                continue
            after = state
            for token in tokens:
                after = int(table.next_state[after, token])
                if after == NOT_ALLOWED:
                    break
            else:
                result[state] = tuple(tokens)
        return result
