# pyright: basic
# torch's tensors are typed too loosely for strict mode.
"""Where a GPU finds a step with prompts: fixed places, so that one graph serves all such steps.

A graph computes a fixed number of tokens. What a step leaves free is filled with tokens of the
padding slot, which nobody reads, and with blocks of no tokens.
"""

import bisect
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch

from service.engine.config import EngineConfig
from service.engine.device_state import DeviceState
from service.engine.triton_attention import PROMPT_ROWS
from service.engine.triton_lora import PROMPT_BLOCK

_SIZES = (128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
Table = list[list[int]]


@dataclass(frozen=True, slots=True)
class PromptStep:
    """A step of a fixed size, in views of the buffers."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    keep: torch.Tensor
    attention: torch.Tensor
    lora: torch.Tensor


class PromptBuffers:
    """Tokens and tables of one step with prompts."""

    def __init__(self, config: EngineConfig, state: DeviceState) -> None:
        self._config, self._state = config, state
        most = config.prefill_tokens
        self.sizes = [size for size in _SIZES if size < most] + [most]
        """Tokens that a graph computes, ascending."""
        kind = {"dtype": torch.int32, "device": state.device}
        self._tokens = torch.zeros((3, most), dtype=torch.int64, device=state.device)
        self._keep = torch.zeros(config.max_sequences, dtype=torch.int64, device=state.device)
        self._attention = torch.zeros((self._attention_blocks(most), 4), **kind)
        self._lora = torch.zeros((self._lora_blocks(most), 4), **kind)

    def step(self, size: int) -> PromptStep:
        """The buffers of a step of so many tokens."""
        ids, positions, slots = self._tokens[:, :size]
        return PromptStep(
            ids=ids,
            positions=positions,
            slots=slots,
            keep=self._keep[: min(size, self._config.max_sequences)],
            attention=self._attention[: self._attention_blocks(size)],
            lora=self._lora[: self._lora_blocks(size)],
        )

    def fill(self, packed: np.ndarray, keep: Items[int], attention: Table, lora: Table) -> int:
        """Put a step in; returns the size of the graph that computes it.

        Args:
            packed: [3, tokens]: ids, positions and slots.
            keep: Indices of the tokens whose logits are wanted.
        """
        count = packed.shape[1]
        size = self.sizes[bisect.bisect_left(self.sizes, count)]
        step = self.step(size)
        tokens = np.zeros((3, size), dtype=np.int64)
        tokens[:, :count] = packed
        # Not position 0, which probes of adapters read in that slot.
        tokens[1, count:] = self._config.max_context - 1
        tokens[2, count:] = self._config.max_sequences
        self._tokens[:, :size].copy_(self._state.tensor(tokens))
        step.keep.copy_(self._state.tensor([*keep, *[0] * (len(step.keep) - len(keep))]))
        _fill_table(step.attention, attention, self._state)
        if lora:
            _fill_table(step.lora, lora, self._state)
        return size

    def _attention_blocks(self, size: int) -> int:
        return size // PROMPT_ROWS + min(size, self._config.max_sequences)

    def _lora_blocks(self, size: int) -> int:
        return size // PROMPT_BLOCK + min(size, self._config.max_adapters + 2)


def _fill_table(buffer: torch.Tensor, table: Table, state: DeviceState) -> None:
    rows = np.zeros(buffer.shape, dtype=np.int32)
    rows[: len(table)] = table
    buffer.copy_(state.tensor(rows, torch.int32))
