# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Runs steps on the device: packs tokens, calls the model, draws the next tokens."""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from service.engine.attention import Block, plan_blocks
from service.engine.config import EngineConfig
from service.engine.device_grammar import FREE, DeviceGrammar
from service.engine.device_state import (
    COUNT,
    LORA,
    POSITION,
    SEED,
    STATE,
    TEMPERATURE,
    TOKEN,
    TOP_P,
    DeviceState,
)
from service.engine.lora import LoraUse
from service.engine.lora_slots import LoraSlot
from service.engine.model import EngineModel
from service.engine.sampling import draw, likeliest, log_normalizer
from service.engine.token_table import Vocabulary


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one sequence in a step."""

    slot: int
    start: int
    tokens: Items[int]
    lora: LoraSlot | None = None
    is_last: bool = True
    """Whether the next token is drawn after it."""
    choices: tuple[int, ...] = ()
    """Instead of a draw: tokens whose log-probabilities are wanted."""
    drafts: tuple[int, ...] = ()
    """In decoding: what may follow its token; checked in the same step."""

    @property
    def lora_number(self) -> int:
        return 0 if self.lora is None else self.lora.number


class Drawn(NamedTuple):
    """A token, the grammar state after it, and how likely the model held it to be."""

    token: int
    state: int
    logprob: float
    """Natural logarithm, at temperature 1, among the tokens that the grammar admits."""


LOGPROB_UNITS = 1e6
"""Log-probabilities travel to the host beside the tokens, as integers."""


class Launched:
    """The results of a step that may still be running."""

    def __init__(
        self, order: list[int], drawn: torch.Tensor | None, scores: dict[int, torch.Tensor]
    ):
        self._order, self._scores = order, scores
        self._event = None
        if drawn is not None and drawn.is_cuda:
            host = torch.empty(drawn.shape, dtype=drawn.dtype, pin_memory=True)
            host.copy_(drawn, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
            drawn = host
        self._drawn = drawn

    def read(self) -> dict[int, list[Drawn]]:
        """What was drawn, one token after the other, by the index of its part; waits for the
        device."""
        if self._drawn is None:
            return {}
        if self._event is not None:
            self._event.synchronize()
        rows: list[list[int]] = self._drawn.tolist()
        result: dict[int, list[Drawn]] = defaultdict(list)
        for i, (token, state, units) in zip(self._order, rows, strict=False):
            result[i].append(Drawn(token, state, units / LOGPROB_UNITS))
        return result

    def scores(self, index: int) -> list[float]:
        """Log-probabilities of a part's choices, normalised over them."""
        return self._scores[index].tolist()


class Runner:
    """One model with the state of its sequences. Owned by the engine thread."""

    def __init__(self, model: EngineModel, config: EngineConfig, vocabulary: Vocabulary) -> None:
        self.model, self.config, self.device = model, config, model.device
        self.state = DeviceState(config.max_sequences, self.device)
        self.grammar = DeviceGrammar(vocabulary, config.max_grammar_states, self.device)
        self._pieces = 1
        """In how many parts reductions over the vocabulary are computed."""
        self._nothing: LoraSlot | None = None
        """What stands for the base where it must be computed as adapters are."""
        self._unchanged: torch.Tensor | None = None

    def copy_prefixes(self, copies: Items[tuple[int, int, int]]) -> None:
        """Copy the first rows of slots: (source, target, tokens)."""
        by_length: dict[int, list[tuple[int, int]]] = defaultdict(list)
        read: set[int] = set()
        written: set[int] = set()
        for source, target, tokens in copies:
            if not tokens or source == target:
                continue
            # What is copied together is read before any of it is written, so a copy out of a slot
            # that is itself being filled, or into one that others read, has to wait for them.
            if source in written or target in read or target in written:
                self._copy_together(by_length)
                by_length.clear()
                read, written = set(), set()
            by_length[tokens].append((source, target))
            read.add(source)
            written.add(target)
        self._copy_together(by_length)

    def _copy_together(self, by_length: dict[int, list[tuple[int, int]]]) -> None:
        for tokens, pairs in by_length.items():
            sources, targets = self.state.tensor(pairs).unbind(1)
            rows = self.model.keys_values[..., :tokens, :]
            rows[:, :, targets] = rows[:, :, sources]

    @torch.inference_mode()
    def extend(self, parts: Items[Part], *, sampling: bool) -> Launched:
        """Compute several tokens of each part, and draw after those that are last."""
        order = sorted(range(len(parts)), key=lambda i: parts[i].lora_number)
        ordered = [parts[i] for i in order]
        logits = self._forward(ordered)
        last = [n for n, part in enumerate(ordered) if part.is_last]
        scores = {
            order[n]: torch.log_softmax(logits[row, list(ordered[n].choices)].float(), -1)
            for row, n in enumerate(last)
            if ordered[n].choices
        }
        if not last:
            return Launched([], None, {})
        spare = len(logits) - len(last)
        rows = [ordered[n].slot for n in last] + [self.config.max_sequences] * spare
        ends = [ordered[n].start + len(ordered[n].tokens) for n in last] + [0] * spare
        slots = self.state.tensor(rows)
        self.state.integers[slots, POSITION] = self.state.tensor(ends)
        return Launched([order[n] for n in last], self._draw(logits, slots, sampling), scores)

    @torch.inference_mode()
    def decode(self, parts: Items[Part], *, sampling: bool) -> Launched:
        """Compute each part's newest token, which the device knows, and draw the next one; and one
        more after each draft that is what was drawn."""
        order = sorted(range(len(parts)), key=lambda i: parts[i].lora_number)
        ordered = [parts[i] for i in order]
        if any(part.drafts for part in ordered):
            return self._decode_drafts(order, ordered, sampling)
        slots = self.state.tensor([part.slot for part in ordered])
        ids = self.state.integers[slots, TOKEN]
        logits = self._forward(ordered, ids)
        self.state.integers[slots, POSITION] += 1
        return Launched(order, self._draw(logits, slots, sampling), {})

    def _decode_drafts(self, order: list[int], parts: list[Part], sampling: bool) -> Launched:
        """Each token is a row of its own, computed as if it were alone: the same as step by step,
        to the bit where that is promised at all."""
        rows = [(n, j) for n, part in enumerate(parts) for j in range(1 + len(part.drafts))]
        alone = [replace(parts[n], start=parts[n].start + j) for n, j in rows]
        ahead = self.state.tensor([j for _, j in rows])
        guessed = self.state.tensor([parts[n].drafts[j - 1] if j else 0 for n, j in rows])
        slots = self.state.tensor([part.slot for part in alone])
        values = self.state.integers[slots]
        values[:, TOKEN] = torch.where(ahead > 0, guessed, values[:, TOKEN])
        logits = self._forward(alone, values[:, TOKEN])
        values[:, POSITION] += 1 + ahead
        for j in range(1, int(ahead.max()) + 1):
            here = (ahead == j).nonzero()[:, 0]
            before = values[here - 1]
            following = before[:, STATE], before[:, COUNT], values[here, TOKEN]
            admitted = self.grammar.admits(*following)
            state, count = self.grammar.advance(*following)
            # After a guess that may not follow, nothing is used: any state will do.
            values[here, STATE] = torch.where(admitted, state, FREE)
            values[here, COUNT] = torch.where(admitted, count, 0)
        moved, logprob = self._next(logits, values, self.state.floats[slots], sampling)
        drawn, kept, last = moved[:, TOKEN].tolist(), [], []
        for row, (n, j) in enumerate(rows):
            if j == 0 or (kept[-1] == row - 1 and drawn[row - 1] == parts[n].drafts[j - 1]):
                kept.append(row)
            if j == len(parts[n].drafts):
                last.append(kept[-1])
        self.state.integers[self.state.tensor([part.slot for part in parts])] = moved[last]
        result = torch.stack((moved[:, TOKEN], moved[:, STATE], logprob), dim=1)[kept]
        return Launched([order[rows[row][0]] for row in kept], result, {})

    @torch.inference_mode()
    def probe(self, lora: LoraSlot) -> Callable[[], bool]:
        """Whether an adapter changes the logits of a few tokens; what is returned waits for the
        device and says it, on any thread."""
        padding, tokens = self.config.max_sequences, range(2, 10)
        if self._unchanged is None:
            self._unchanged = self._forward([Part(padding, 0, tokens, self._nothing)]).clone()
        adapted = self._forward([Part(padding, 0, tokens, lora)])
        differs = torch.isfinite(adapted).all() & (adapted != self._unchanged).any()
        launched = Launched([0], differs.long().expand(1, 3), {})
        return lambda: bool(launched.read()[0][0].token)

    def recover(self) -> None:
        """Give memory back after a step that failed."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, parts: list[Part], ids: torch.Tensor | None = None) -> torch.Tensor:
        lengths = [len(part.tokens) for part in parts] if ids is None else [1] * len(parts)
        starts, slots = [part.start for part in parts], [part.slot for part in parts]
        if ids is None:
            ids = self.state.tensor([token for part in parts for token in part.tokens])
        positions = [s + j for s, n in zip(starts, lengths, strict=True) for j in range(n)]
        plan = self.model.plan
        plan.positions = self.state.tensor(positions)
        plan.slots = self.state.tensor(
            [s for s, n in zip(slots, lengths, strict=True) for _ in range(n)]
        )
        plan.blocks = plan_blocks(lengths, starts, slots)
        adapters = {part.slot: part.lora.rows for part in parts if part.lora is not None}
        self.model.lora_step.uses = _lora_uses(plan.blocks, adapters)
        ends = [sum(lengths[: n + 1]) - 1 for n, part in enumerate(parts) if part.is_last]
        # A chunk in the middle of its prompt needs no logits; one row keeps the shapes legal.
        keep = self.state.tensor(ends or [0])
        return self.model.logits(ids, plan.positions, keep)

    def _draw(self, logits: torch.Tensor, slots: torch.Tensor, sampling: bool) -> torch.Tensor:
        """Draw the next tokens and move the rows on; returns [rows, (token, grammar state,
        log-probability)]."""
        moved, logprob = self._next(
            logits, self.state.integers[slots], self.state.floats[slots], sampling
        )
        self.state.integers[slots] = moved
        return torch.stack((moved[:, TOKEN], moved[:, STATE], logprob), dim=1)

    def _next(
        self, logits: torch.Tensor, rows: torch.Tensor, floats: torch.Tensor, sampling: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        masked = self.grammar.mask(logits, rows[:, STATE], rows[:, COUNT])
        if sampling:
            token = draw(
                masked, floats[:, TEMPERATURE], floats[:, TOP_P], rows[:, SEED], rows[:, POSITION]
            )
        else:
            token = likeliest(masked, self._pieces)
        state, count = self.grammar.advance(rows[:, STATE], rows[:, COUNT], token)
        columns = [token, rows[:, POSITION], rows[:, LORA], state, count, rows[:, SEED]]
        drawn = masked.gather(-1, token[:, None])[:, 0].float()
        logprob = (drawn - log_normalizer(masked, self._pieces)) * LOGPROB_UNITS
        return torch.stack(columns, dim=1), logprob.round().long()


def _lora_uses(blocks: list[Block], adapters: dict[int, slice]) -> list[LoraUse]:
    """What is multiplied together: a block, or lone tokens of one adapter, each for itself."""
    uses: list[LoraUse] = []
    for block in blocks:
        rows, tokens = adapters.get(block.slot), block.tokens
        if rows is None:
            continue
        apart, last = block.end == block.start + 1, uses[-1] if uses else None
        if apart and last and last.apart and (last.rows, last.tokens.stop) == (rows, tokens.start):
            uses[-1] = LoraUse(slice(last.tokens.start, tokens.stop), rows, apart=True)
        else:
            uses.append(LoraUse(tokens, rows, apart))
    return uses
