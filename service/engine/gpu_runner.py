# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Steps on a GPU: prompts through compiled layers, decoding by replaying CUDA graphs.

A decode step is one graph launch: it finds tokens, positions, adapters and grammar states of its
rows on the device and leaves the next ones there. The host only says which slots run, when that
changes.
"""

import bisect
import time
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
import torch

from service.engine.config import EngineConfig
from service.engine.device_state import POSITION, TOKEN
from service.engine.kernels import GpuKernels
from service.engine.lora_slots import LoraSlot
from service.engine.model import EngineModel
from service.engine.runner import Launched, Part, Runner
from service.engine.token_table import Vocabulary
from service.engine.triton_attention import PROMPT_ROWS
from service.engine.triton_lora import DECODE_BLOCK, PROMPT_BLOCK, parts_of_blocks

_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)


class GpuRunner(Runner):
    """The runner with kernels, compiled layers and graphs."""

    def __init__(self, model: EngineModel, config: EngineConfig, vocabulary: Vocabulary) -> None:
        super().__init__(model, config, vocabulary)
        self._kernels = GpuKernels(forked=config.fork_adapters)
        model.plan.kernels = model.lora_step.kernels = self._kernels
        for group in {linear.group for linear in model.linears.values()}:
            group.parts_of = parts_of_blocks(group.sizes, self.device)
        self._buckets = [b for b in _BUCKETS if b < config.max_sequences] + [config.max_sequences]
        padding = config.max_sequences
        self._slots = torch.full((config.max_sequences,), padding, device=self.device)
        self._rows: list[tuple[int, Any]] = []
        blocks = self._decode_blocks(config.max_sequences)
        self._lora_blocks = torch.zeros((blocks, 4), dtype=torch.int32, device=self.device)
        self._graphs: dict[tuple[int, bool, bool], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._memory = None
        if config.compile_layers:
            torch._dynamo.config.recompile_limit = 64
            for layer in model.model.base_model.layers:
                layer.compile(dynamic=True)
            self._next = torch.compile(self._next, dynamic=True)

    @torch.inference_mode()
    def warm_up(self, *, sampling: bool = True) -> dict[str, float]:
        """Compile, and capture the graphs; returns the seconds of each. Before any request."""
        started = time.monotonic()
        padding, nowhere = self.config.max_sequences, LoraSlot(1, "", slice(0, 8))
        for length in (64, 96):
            for number in (None, nowhere) if self.config.max_adapters else (None,):
                part = Part(padding, 0, range(length), number)
                self._forward([part])
        torch.cuda.synchronize()
        compiled = time.monotonic()
        for bucket in reversed(self._buckets):
            for with_lora in (False, True) if self.config.max_adapters else (False,):
                for sampled in (False, True) if sampling else (False,):
                    self._capture(bucket, with_lora, sampled)
        torch.cuda.synchronize()
        return {"compile": compiled - started, "graphs": time.monotonic() - compiled}

    @torch.inference_mode()
    def decode(self, parts: Items[Part], *, sampling: bool) -> Launched:
        order = sorted(range(len(parts)), key=lambda i: (parts[i].lora_number, parts[i].slot))
        rows = [(parts[i].slot, _rows_of(parts[i])) for i in order]
        bucket = self._buckets[bisect.bisect_left(self._buckets, len(rows))]
        if rows != self._rows:
            self._rows = rows
            padding = [self.config.max_sequences] * (self.config.max_sequences - len(rows))
            self._slots.copy_(self.state.tensor([slot for slot, _ in rows] + padding))
            table = _lora_table([parts[i] for i in order], [1] * len(rows), DECODE_BLOCK)
            table += [[0] * 4] * (len(self._lora_blocks) - len(table))
            self._lora_blocks.copy_(self.state.tensor(table, torch.int32))
        with_lora = any(part.lora is not None for part in parts)
        key = (bucket, with_lora, sampling)
        if key not in self._graphs:
            self._capture(*key)
        graph, drawn = self._graphs[key]
        graph.replay()
        return Launched(order, drawn[: len(rows)], {})

    @torch.inference_mode()
    def _capture(self, bucket: int, with_lora: bool, sampling: bool) -> None:
        kept, rows = self.state.integers.clone(), self._slots.clone()
        self._slots.fill_(self.config.max_sequences)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and lets libraries allocate their workspaces
            for _ in range(2):
                self._decode_rows(bucket, with_lora, sampling)
        torch.cuda.current_stream().wait_stream(stream)
        self._memory = self._memory or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            drawn = self._decode_rows(bucket, with_lora, sampling)
        self._graphs[bucket, with_lora, sampling] = graph, drawn
        self.state.integers.copy_(kept)
        self._slots.copy_(rows)

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
        logits = self.model.logits(rows[:, TOKEN].contiguous(), plan.positions, 0)
        state.integers[slots, POSITION] = rows[:, POSITION] + 1
        drawn = self._draw(logits, slots, sampling)
        state.integers[self.config.max_sequences] = 0
        return drawn

    def _decode_blocks(self, rows: int) -> int:
        """The most blocks that so many rows may make."""
        adapters = min(rows, self.config.max_adapters)
        return (rows + (DECODE_BLOCK - 1) * adapters) // DECODE_BLOCK

    def _forward(self, parts: list[Part], ids: torch.Tensor | None = None) -> torch.Tensor:
        """Logits after the last parts of a step with prompts; parts in the order of adapters."""
        assert ids is None, "decoding goes through graphs"
        lengths = [len(part.tokens) for part in parts]
        self._kernels.attention_blocks = self.state.tensor(
            _attention_table(parts, lengths), torch.int32
        )
        lora = _lora_table(parts, lengths, PROMPT_BLOCK)
        self._kernels.lora_blocks = self.state.tensor(lora, torch.int32) if lora else None
        plan = self.model.plan
        tokens = np.concatenate([np.asarray(part.tokens, dtype=np.int64) for part in parts])
        starts = [part.start + np.arange(n) for part, n in zip(parts, lengths, strict=True)]
        slots = np.repeat(np.array([part.slot for part in parts]), lengths)
        packed = self.state.tensor(np.stack([tokens, np.concatenate(starts), slots]))
        plan.positions, plan.slots = packed[1], packed[2]
        ends = np.cumsum(lengths) - 1
        keep = [int(end) for part, end in zip(parts, ends, strict=True) if part.is_last] or [0]
        return self.model.logits(packed[0], packed[1], self.state.tensor(keep))


def _rows_of(part: Part) -> slice | None:
    return None if part.lora is None else part.lora.rows


def _attention_table(parts: list[Part], lengths: list[int]) -> list[list[int]]:
    """Blocks of each part's tokens: first packed token, how many, KV slot, first position."""
    table, token = [], 0
    for part, length in zip(parts, lengths, strict=True):
        for start in range(0, length, PROMPT_ROWS):
            count = min(PROMPT_ROWS, length - start)
            table.append([token + start, count, part.slot, part.start + start])
        token += length
    return table


def _lora_table(parts: list[Part], lengths: list[int], block: int) -> list[list[int]]:
    """Blocks of each adapter's tokens: first packed token, how many, first rank row, rank."""
    table: list[list[int]] = []
    token = 0
    for part, length in zip(parts, lengths, strict=True):
        end = token + length
        while part.lora is not None and token < end:
            rows = part.lora.rows
            if not (table and table[-1][2] == rows.start and table[-1][1] < block):
                table.append([token, 0, rows.start, rows.stop - rows.start])
            count = min(block - table[-1][1], end - token)
            table[-1][1] += count
            token += count
        token = end
    return table
