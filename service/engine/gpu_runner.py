# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Steps on a GPU, replayed as CUDA graphs: a step is one launch, whatever is in it.

A decode step finds tokens, positions, adapters and grammar states of its rows on the device and
leaves the next ones there; the host only says which slots run, when that changes. A step with
prompts finds its tokens in `PromptBuffers`.
"""

import bisect
import math
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from itertools import product
from typing import TypeVar

import numpy as np
import torch

from service.engine.config import EngineConfig
from service.engine.device_state import POSITION, TOKEN
from service.engine.kernels import GpuKernels
from service.engine.lora_slots import LoraSlot
from service.engine.model import EngineModel
from service.engine.prompt_buffers import PromptBuffers
from service.engine.runner import Launched, Part, Runner
from service.engine.token_table import Vocabulary
from service.engine.triton_attention import PROMPT_ROWS
from service.engine.triton_lora import DECODE_BLOCK, NARROW, PROMPT_BLOCK, WIDE, parts_of_blocks

# None of 1: torch.compile would make code for it alone, which costs more at start than a row here.
_BUCKETS = (2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
_FEW_ROWS = 32
"""So many draws do not fill the device unless the vocabulary is cut into pieces; more do."""
_POOLED_RANKS = 2048
_MANY_RANKS, _MANY_ROWS = 4096, 128
"""A pool of more than `_POOLED_RANKS` is only read as a whole for so many rows, which use most of
it; one of more than `_MANY_RANKS` never is."""
_ODD = 77
"""Compiled code takes a number of tokens that equals some other size for that size, and is made
again for the next number; this one is nothing else."""
_Result = TypeVar("_Result")


class GpuRunner(Runner):
    """The runner with kernels, compiled layers and graphs."""

    def __init__(self, model: EngineModel, config: EngineConfig, vocabulary: Vocabulary) -> None:
        super().__init__(model, config, vocabulary)
        self._kernels = GpuKernels(model.plan, _rank_tile(config))
        self._nothing = LoraSlot(0, "", slice(0, 0))
        self._cuts = next(n for n in (128, 64, 32, 1) if model.vocab_size % n == 0)
        self._pooled_from = _pooled_from(config.max_ranks)
        model.plan.kernels = model.lora_step.kernels = self._kernels
        for group in {linear.group for linear in model.linears.values()}:
            group.parts_of = parts_of_blocks(group.sizes, self.device)
        most = config.max_sequences
        self._buckets = [b for b in _BUCKETS if b < most] + [most]
        self._slots = torch.full((most,), most, device=self.device)
        self._rows: list[tuple[int, tuple[int, int]]] = []
        blocks = self._decode_blocks(most)
        self._lora_blocks = torch.zeros((blocks, 4), dtype=torch.int32, device=self.device)
        self._prompts = PromptBuffers(config, self.state)
        shape = (most, model.vocab_size)
        self._logits = torch.empty(shape, dtype=model.activations, device=self.device)
        self._decode_graphs: dict[
            tuple[int, bool, bool], tuple[torch.cuda.CUDAGraph, torch.Tensor]
        ] = {}
        self._prompt_graphs: dict[tuple[int, bool], torch.cuda.CUDAGraph] = {}
        self._memory, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        if config.compile_layers:
            torch._dynamo.config.recompile_limit = 64
            for layer in model.model.base_model.layers:
                layer.compile(dynamic=True)
            self._next = torch.compile(self._next, dynamic=True)

    @torch.inference_mode()
    def warm_up(self, *, sampling: bool = True) -> dict[str, float]:
        """Compile, and capture the graphs; returns the seconds of each. Before any request."""
        started = time.monotonic()
        with_lora = (False, True) if self.config.max_adapters else (False,)
        sampled = (False, True) if sampling else (False,)
        odd = (min(_ODD, self.config.max_sequences), 3)
        for lora in with_lora:
            self._compute_prompts(_ODD, lora)
            for rows, draws in product(odd, sampled):
                self._decode_rows(rows, lora, draws)
        torch.cuda.synchronize()
        compiled = time.monotonic()
        for lora in with_lora:
            for size in reversed(self._prompts.sizes):
                self._capture_prompts(size, lora)
            for bucket in reversed(self._buckets):
                for draws in sampled:
                    self._capture_decode(bucket, lora, draws)
        if self.config.max_adapters:
            self.probe(LoraSlot(1, "", slice(0, 8)))
        torch.cuda.synchronize()
        return {"compile": compiled - started, "graphs": time.monotonic() - compiled}

    @torch.inference_mode()
    def decode(self, parts: Items[Part], *, sampling: bool) -> Launched:
        order = sorted(range(len(parts)), key=lambda i: (parts[i].lora_number, parts[i].slot))
        rows = [(parts[i].slot, _ranks_of(parts[i])) for i in order]
        bucket = self._buckets[bisect.bisect_left(self._buckets, len(rows))]
        if rows != self._rows:
            self._rows = rows
            padding = [self.config.max_sequences] * (self.config.max_sequences - len(rows))
            self._slots.copy_(self.state.tensor([slot for slot, _ in rows] + padding))
            ranks = [ranks for _, ranks in rows] + [(0, 0)] * (bucket - len(rows))
            table = _lora_table(ranks, [1] * bucket, DECODE_BLOCK)
            table += [[0] * 4] * (len(self._lora_blocks) - len(table))
            self._lora_blocks.copy_(self.state.tensor(table, torch.int32))
        key = bucket, any(part.lora is not None for part in parts), sampling
        if key not in self._decode_graphs:
            self._capture_decode(*key)
        graph, drawn = self._decode_graphs[key]
        graph.replay()
        return Launched(order, drawn[: len(rows)], {})

    def _forward(self, parts: list[Part], ids: torch.Tensor | None = None) -> torch.Tensor:
        """Logits after the last parts of a step with prompts; parts in the order of adapters."""
        assert ids is None, "decoding has graphs of its own"
        lengths = [len(part.tokens) for part in parts]
        tokens = np.concatenate([np.asarray(part.tokens, dtype=np.int64) for part in parts])
        starts = [part.start + np.arange(n) for part, n in zip(parts, lengths, strict=True)]
        slots = np.repeat(np.array([part.slot for part in parts]), lengths)
        packed = np.stack([tokens, np.concatenate(starts), slots])
        ends = np.cumsum(lengths) - 1
        keep = [int(end) for part, end in zip(parts, ends, strict=True) if part.is_last]
        with_lora = any(part.lora is not None for part in parts)
        ranks = [_ranks_of(part) for part in parts]
        lora = _lora_table(ranks, lengths, PROMPT_BLOCK) if with_lora else []
        size = self._prompts.fill(packed, keep, _attention_table(parts, lengths), lora)
        if (size, with_lora) not in self._prompt_graphs:
            self._capture_prompts(size, with_lora)
        self._prompt_graphs[size, with_lora].replay()
        return self._logits[: max(2, len(keep))]  # never one row: see `_BUCKETS`

    def _compute_prompts(self, size: int, with_lora: bool) -> None:
        """A step of the buffers' first tokens; leaves the logits in their place."""
        step, plan, kernels = self._prompts.step(size), self.model.plan, self._kernels
        plan.positions, plan.slots = step.positions, step.slots
        kernels.attention_blocks = step.attention
        kernels.lora_blocks = step.lora if with_lora else None
        kernels.pooled = False
        logits = self.model.logits(step.ids, step.positions, step.keep)
        self._logits[: len(logits)].copy_(logits)

    def _decode_rows(self, bucket: int, with_lora: bool, sampling: bool) -> torch.Tensor:
        slots = self._slots[:bucket]
        state, plan, kernels = self.state, self.model.plan, self._kernels
        rows = state.integers[slots]
        plan.slots = slots
        # A row that ended a step ago runs once more before the host knows; it stays in its slot.
        plan.positions = rows[:, POSITION].clamp(max=self.config.max_context - 1)
        kernels.attention_blocks = None
        kernels.lora_blocks = None
        if with_lora:
            kernels.lora_blocks = self._lora_blocks[: self._decode_blocks(bucket)]
            kernels.pooled = bucket >= self._pooled_from
        logits = self.model.logits(rows[:, TOKEN].contiguous(), plan.positions, 0)
        state.integers[slots, POSITION] = rows[:, POSITION] + 1
        drawn = self._draw(logits, slots, sampling)
        state.integers[self.config.max_sequences] = 0
        return drawn

    def _draw(self, logits: torch.Tensor, slots: torch.Tensor, sampling: bool) -> torch.Tensor:
        self._pieces = self._cuts if len(slots) <= _FEW_ROWS else 1
        return super()._draw(logits, slots, sampling)

    def _decode_blocks(self, rows: int) -> int:
        """The most blocks that so many rows may make; the base's and padding are apart, too."""
        groups = min(rows, self.config.max_adapters + 2)
        return (rows + (DECODE_BLOCK - 1) * groups) // DECODE_BLOCK

    @torch.inference_mode()
    def _capture_prompts(self, size: int, with_lora: bool) -> None:
        graph, _ = self._capture(lambda: self._compute_prompts(size, with_lora))
        self._prompt_graphs[size, with_lora] = graph

    @torch.inference_mode()
    def _capture_decode(self, bucket: int, with_lora: bool, sampling: bool) -> None:
        kept, rows = self.state.integers.clone(), self._slots.clone()
        self._slots.fill_(self.config.max_sequences)
        captured = self._capture(lambda: self._decode_rows(bucket, with_lora, sampling))
        self._decode_graphs[bucket, with_lora, sampling] = captured
        self.state.integers.copy_(kept)
        self._slots.copy_(rows)

    def _capture(self, work: Callable[[], _Result]) -> tuple[torch.cuda.CUDAGraph, _Result]:
        """A graph of some work, which is done once before: that compiles what is new, and lets
        libraries allocate their workspaces."""
        self._stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # Not through `torch.cuda.graph`, which collects garbage each time: a tenth of a second.
        with torch.cuda.stream(self._stream):
            work()
            self._stream.synchronize()
            graph.capture_begin(pool=self._memory)
            try:
                result = work()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(self._stream)
        return graph, result


def _pooled_from(ranks: int) -> float:
    """Rows from which a decode step multiplies all A of a pool of so many ranks."""
    if ranks <= _POOLED_RANKS:
        return 0
    return _MANY_ROWS if ranks <= _MANY_RANKS else math.inf


def _rank_tile(config: EngineConfig) -> int:
    """The wider one where the pool has been made for adapters of more than 32 ranks each."""
    return WIDE if config.max_ranks > 32 * max(1, config.max_adapters) else NARROW


def _ranks_of(part: Part) -> tuple[int, int]:
    """The first row of a part's adapter in the pool, and how many; none for the base."""
    rows = slice(0, 0) if part.lora is None else part.lora.rows
    return rows.start, rows.stop - rows.start


def _attention_table(parts: list[Part], lengths: list[int]) -> list[list[int]]:
    """Blocks of each part's tokens: first packed token, how many, KV slot, first position."""
    table, token = [], 0
    for part, length in zip(parts, lengths, strict=True):
        for start in range(0, length, PROMPT_ROWS):
            count = min(PROMPT_ROWS, length - start)
            table.append([token + start, count, part.slot, part.start + start])
        token += length
    return table


def _lora_table(ranks: Items[tuple[int, int]], lengths: Items[int], block: int) -> list[list[int]]:
    """Blocks of tokens of one adapter, or of the base: first packed token, how many, first rank
    row, rank."""
    table: list[list[int]] = []
    token = 0
    for (first, rank), length in zip(ranks, lengths, strict=True):
        end = token + length
        while token < end:
            if not (table and table[-1][2:] == [first, rank] and table[-1][1] < block):
                table.append([token, 0, first, rank])
            count = min(block - table[-1][1], end - token)
            table[-1][1] += count
            token += count
    return table
