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

import numpy as np
import torch

from service.engine.config import EngineConfig
from service.engine.device_state import LORA, POSITION, TOKEN
from service.engine.kernels import GpuKernels
from service.engine.lora_slots import LoraSlots
from service.engine.model import EngineModel
from service.engine.runner import Launched, Part, Runner
from service.engine.token_table import Vocabulary
from service.engine.triton_attention import PROMPT_ROWS
from service.engine.triton_lora import BLOCK_TOKENS

_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)


class GpuRunner(Runner):
    """The runner with kernels, compiled layers and graphs."""

    def __init__(
        self, model: EngineModel, config: EngineConfig, vocabulary: Vocabulary, lora: LoraSlots
    ) -> None:
        super().__init__(model, config, vocabulary)
        self._kernels = GpuKernels(lora.owner, lora.span, config.max_rank)
        model.plan.kernels = model.lora_step.kernels = self._kernels
        self._buckets = [b for b in _BUCKETS if b < config.max_sequences] + [config.max_sequences]
        padding = config.max_sequences
        self._slots = torch.full((config.max_sequences,), padding, device=self.device)
        self._rows: list[int] = []
        self._graphs: dict[tuple[int, bool, bool], tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._memory = torch.cuda.graph_pool_handle()
        if config.compile_layers:
            torch._dynamo.config.recompile_limit = 64
            for layer in model.model.base_model.layers:
                layer.compile(dynamic=True)
            self._next = torch.compile(self._next, dynamic=True)

    def warm_up(self, *, sampling: bool = True) -> dict[str, float]:
        """Compile, and capture the graphs; returns the seconds of each. Before any request."""
        started = time.monotonic()
        padding = self.config.max_sequences
        for length in (64, 96):
            for number in (0, 1) if self.config.max_adapters else (0,):
                self._prompt_tables([Part(padding, 0, range(length))], [length], number)
                self._forward_packed([Part(padding, 0, range(length))], [length])
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
        rows = [part.slot for part in parts]
        bucket = self._buckets[bisect.bisect_left(self._buckets, len(rows))]
        if rows != self._rows:
            padded = rows + [self.config.max_sequences] * (self.config.max_sequences - len(rows))
            self._slots.copy_(self.state.tensor(padded))
            self._rows = rows
        with_lora = any(part.lora is not None for part in parts)
        key = (bucket, with_lora, sampling)
        if key not in self._graphs:
            self._capture(*key)
        graph, drawn = self._graphs[key]
        graph.replay()
        return Launched(list(range(len(rows))), drawn[: len(rows)], {})

    @torch.inference_mode()
    def _capture(self, bucket: int, with_lora: bool, sampling: bool) -> None:
        kept, self._rows = self.state.integers.clone(), []
        self._slots.fill_(self.config.max_sequences)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and lets libraries allocate their workspaces
            for _ in range(2):
                self._decode_rows(bucket, with_lora, sampling)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            drawn = self._decode_rows(bucket, with_lora, sampling)
        self._graphs[bucket, with_lora, sampling] = graph, drawn
        self.state.integers.copy_(kept)

    def _decode_rows(self, bucket: int, with_lora: bool, sampling: bool) -> torch.Tensor:
        slots = self._slots[:bucket]
        state, plan, kernels = self.state, self.model.plan, self._kernels
        rows = state.integers[slots]
        plan.slots = slots
        # A row that ended a step ago runs once more before the host knows; it stays in its slot.
        plan.positions = rows[:, POSITION].clamp(max=self.config.max_context - 1)
        kernels.attention_blocks = None
        kernels.lora_table = rows[:, LORA].contiguous()
        kernels.lora = self._decode_form(bucket) if with_lora else "off"
        logits = self.model.logits(rows[:, TOKEN].contiguous(), plan.positions, 0)
        state.integers[slots, POSITION] = rows[:, POSITION] + 1
        drawn = self._draw(logits, slots, sampling)
        state.integers[self.config.max_sequences] = 0
        return drawn

    def _decode_form(self, bucket: int) -> str:
        """One product with the whole pool while it is small beside the layer; else row by row."""
        few = bucket <= self.config.rows_form_up_to
        return "rows" if few or self.config.max_ranks > self.config.pool_form_up_to else "pool"

    def _forward(self, parts: list[Part], ids: torch.Tensor | None = None) -> torch.Tensor:
        assert ids is None, "decoding goes through graphs"
        lengths = [len(part.tokens) for part in parts]
        self._prompt_tables(parts, lengths, max(part.lora_number for part in parts))
        return self._forward_packed(parts, lengths)

    def _forward_packed(self, parts: list[Part], lengths: list[int]) -> torch.Tensor:
        plan = self.model.plan
        ids = np.concatenate([np.asarray(part.tokens, dtype=np.int64) for part in parts])
        starts = [part.start + np.arange(n) for part, n in zip(parts, lengths, strict=True)]
        slots = np.repeat(np.array([part.slot for part in parts]), lengths)
        packed = self.state.tensor(np.stack([ids, np.concatenate(starts), slots]))
        plan.positions, plan.slots = packed[1], packed[2]
        ends = np.cumsum(lengths) - 1
        keep = [int(end) for part, end in zip(parts, ends, strict=True) if part.is_last] or [0]
        return self.model.logits(packed[0], packed[1], self.state.tensor(keep))

    def _prompt_tables(self, parts: list[Part], lengths: list[int], highest_lora: int) -> None:
        kernels = self._kernels
        attention, lora = [], []
        token = 0
        for part, length in zip(parts, lengths, strict=True):
            for start in range(0, length, PROMPT_ROWS):
                count = min(PROMPT_ROWS, length - start)
                attention.append([token + start, count, part.slot, part.start + start])
            if part.lora is not None:
                first, rank = part.lora.rows.start, part.lora.rows.stop - part.lora.rows.start
                lora += _merge(lora, token, length, first, rank)
            token += length
        kernels.attention_blocks = self.state.tensor(attention, torch.int32)
        kernels.lora = "blocks" if highest_lora else "off"
        kernels.lora_table = self.state.tensor(lora, torch.int32).view(-1, 4)


def _merge(
    blocks: list[list[int]], token: int, count: int, first: int, rank: int
) -> list[list[int]]:
    """Blocks for a part, after filling up the last block if it is of the same adapter."""
    if blocks and blocks[-1][0] + blocks[-1][1] == token and blocks[-1][2] == first:
        room = min(BLOCK_TOKENS - blocks[-1][1], count)
        blocks[-1][1] += room
        token, count = token + room, count - room
    return [
        [token + start, min(BLOCK_TOKENS, count - start), first, rank]
        for start in range(0, count, BLOCK_TOKENS)
    ]
