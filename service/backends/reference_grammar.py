# pyright: basic
# xgrammar is typed too loosely for strict mode.
"""Which tokens may come next in a completion, for the reference: xgrammar, and caps on fields.

The grammar's regular expression leaves fields unbounded, since bounded repeats take xgrammar
seconds to compile. So the length of the open field is counted here, and tokens that would pass its
limit are left out.
"""

from collections import OrderedDict

import torch
import xgrammar
from transformers import PreTrainedTokenizerBase

from mcq.grammar import CompletionGrammar, Field, Text, alphabet

_KEPT = 16
"""Compiled grammars in memory; passages with characters of their own make their own grammar."""


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
        vocabulary = info.decoded_vocab
        self._widths = torch.tensor([_width(text) for text in vocabulary])
        self._spaced = torch.tensor([_ends_in_space(text) for text in vocabulary])

    def state(self, grammar: CompletionGrammar, extra: frozenset[str]) -> "GrammarState":
        """Where a new completion stands: at the beginning."""
        regex = grammar.regex(alphabet=alphabet(grammar.language) | extra)
        if regex not in self._compiled:
            self._compiled[regex] = self._compiler.compile_regex(regex)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(regex)
        return GrammarState(grammar, self._compiled[regex], self._widths, self._spaced)


class GrammarState:
    """How far one completion has come."""

    def __init__(
        self,
        grammar: CompletionGrammar,
        compiled: xgrammar.CompiledGrammar,
        widths: torch.Tensor,
        spaced: torch.Tensor,
    ) -> None:
        self._grammar = grammar
        rows = len(widths)
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bitmask = xgrammar.allocate_token_bitmask(1, rows)
        self._bits = torch.arange(32, dtype=torch.int32)
        self._rows = rows
        self._widths, self._spaced = widths, spaced

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
        room = room_in_open_field(self._grammar, text)
        return allowed & (self._widths + self._spaced.int() <= room)


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


def _width(token: bytes) -> int:
    """Characters that a token adds to the open field: those that begin before its first newline."""
    return sum(byte & 0xC0 != 0x80 for byte in token.partition(b"\n")[0])


def _ends_in_space(token: bytes) -> bool:
    """Whether it leaves the field open after a space, which may not be the field's last."""
    return token.endswith(b" ") and b"\n" not in token
