# pyright: basic
# xgrammar is typed too loosely for strict mode.
"""Which tokens may come next in a completion, for the reference: xgrammar, and caps on fields.

The grammar's regular expression leaves fields unbounded, since bounded repeats take xgrammar
seconds to compile. So the length of the open field is counted here, and near its limit only tokens
that close it are left.
"""

from collections import OrderedDict

import torch
import xgrammar
from transformers import PreTrainedTokenizerBase

from mcq.grammar import CompletionGrammar, Field, Text, alphabet

_KEPT = 16
"""Compiled grammars in memory; passages with characters of their own make their own grammar."""
_SLACK = 40
"""Characters before a field's limit at which it is closed: tokens are up to this long."""


class GrammarCompiler:
    """Compiles completion grammars for one tokenizer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, rows: int, end_token_ids: tuple[int, ...]
    ) -> None:
        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=rows, stop_token_ids=list(end_token_ids)
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=2, cache_enabled=False)
        self._compiled: OrderedDict[str, xgrammar.CompiledGrammar] = OrderedDict()
        self._rows = rows
        self._closing = torch.zeros(rows, dtype=torch.bool)
        for token, text in enumerate(info.decoded_vocab):
            self._closing[token] = text.startswith(b"\n")

    def state(self, grammar: CompletionGrammar, extra: frozenset[str]) -> "GrammarState":
        """Where a new completion stands: at the beginning."""
        regex = grammar.regex(alphabet=alphabet(grammar.language) | extra)
        if regex not in self._compiled:
            self._compiled[regex] = self._compiler.compile_regex(regex)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(regex)
        return GrammarState(grammar, self._compiled[regex], self._rows, self._closing)


class GrammarState:
    """How far one completion has come."""

    def __init__(
        self,
        grammar: CompletionGrammar,
        compiled: xgrammar.CompiledGrammar,
        rows: int,
        closing: torch.Tensor,
    ) -> None:
        self._grammar = grammar
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bitmask = xgrammar.allocate_token_bitmask(1, rows)
        self._bits = torch.arange(32, dtype=torch.int32)
        self._rows = rows
        self._closing = closing

    def accept(self, token: int) -> None:
        """Take a token that `allowed` has admitted."""
        if not self._matcher.accept_token(token):
            raise RuntimeError(f"token {token} was drawn against the grammar")

    @property
    def is_complete(self) -> bool:
        """Whether the completion is whole; nothing but the end token may follow."""
        return self._matcher.is_completed()

    def allowed(self, text: str) -> torch.Tensor:
        """Which tokens may follow, as booleans; `text` is the completion so far."""
        self._matcher.fill_next_token_bitmask(self._bitmask)
        allowed = ((self._bitmask[0][:, None] >> self._bits) & 1).bool().flatten()[: self._rows]
        if room_in_open_field(self._grammar, text) <= _SLACK:
            closing = allowed & self._closing
            if closing.any():  # not right after a space, or inside a character
                return closing
        return allowed


def room_in_open_field(grammar: CompletionGrammar, text: str) -> int:
    """How many characters still fit into the field that `text` ends in; a large number if none."""
    rest = text
    for part in grammar.parts:
        match part:
            case Text(fixed):
                if not rest.startswith(fixed):
                    break
                rest = rest[len(fixed) :]
            case Field(_, limit):
                content, newline, _ = rest.partition("\n")
                if not newline:
                    return limit - len(content)
                rest = rest[len(content) :]
            case _:
                break
    return 1 << 30
