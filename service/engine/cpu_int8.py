# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Linear layers with 8-bit weights, for CPUs whose fastest products are of 8-bit integers.

Sums of integers are exact, so a row's product is the same bit for bit whatever rows stand beside it
and however many threads there are.
"""

import warnings
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_ROWS_AT_ONCE = 128
"""More gain nothing; buffers of this size are reused by the allocator, not mapped anew."""
_EXACT_SUMS: bool = torch.cpu._is_vnni_supported()  # pyright: ignore[reportPrivateUsage] no public name
"""AVX2 adds pairs of products in 16 bits, which inputs of more than 7 bits would overflow."""
_LEVELS = 127 if _EXACT_SUMS else 63


@dataclass(frozen=True)
class RoundedWeight:
    """A matrix [outputs, inputs] as 8-bit integers, each output with a scale."""

    whole: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, weights: list[torch.Tensor]) -> "RoundedWeight":
        """Round matrices of one input, put side by side."""
        weight = torch.cat(weights).float()
        largest = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1))
        scale = (largest / 127).clamp(min=1e-12)
        # The same values as `quantize_per_channel` gives, in a quarter of its time.
        whole = weight.mul_(1 / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        return cls(whole, scale)


class Int8Linear(nn.Module):
    """Several linear layers of one input as one product, their outputs side by side.

    An input row is scaled by its largest element and rounded to 8 bits. Where a few huge inputs
    would drown the others (`is_fine`), or the processor sums only 7 bits exactly, a second row
    holds what the first leaves over. For a few rows that costs nothing beside reading the weights,
    for many twice the time; so only layers that need it have it: on the default base a single row
    adds 6 % of error to what the wide layer puts out and 5 % to the logits, but 1 to 2 % elsewhere,
    where rounding the weights alone costs 1 %. Made within `packing`.
    """

    def __init__(
        self, weight: RoundedWeight, bias: torch.Tensor | None = None, *, is_fine: bool = True
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.whole.shape
        self.bias = bias
        self._is_fine = is_fine or not _EXACT_SUMS
        make: Any = torch._make_per_channel_quantized_tensor  # pyright: ignore[reportPrivateImportUsage] no public name
        zero = torch.zeros(self.out_features, dtype=torch.int64)
        rounded = make(weight.whole, weight.scale.double(), zero, 0)
        self._packed = torch.ops.quantized.linear_prepack(rounded, None)

    @staticmethod
    def is_supported() -> bool:
        """Whether this processor has the kernels."""
        return "fbgemm" in torch.backends.quantized.supported_engines

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        y = torch.empty((len(rows), self.out_features))
        for some, part in zip(rows.split(_ROWS_AT_ONCE), y.split(_ROWS_AT_ONCE), strict=True):
            self._multiply(some, part)
        return y.view(*x.shape[:-1], self.out_features)

    def _multiply(self, rows: torch.Tensor, y: torch.Tensor) -> None:
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30)
        if self._is_fine:
            scaled = rows / (largest / _LEVELS)
            coarse = scaled.round()
            fine = (scaled - coarse).mul_(2 * _LEVELS)
            both = self._product(torch.cat([coarse, fine]), 1.0)
            both[: len(rows)].add_(both[len(rows) :], alpha=1 / (2 * _LEVELS))
            torch.mul(both[: len(rows)], largest / _LEVELS, out=y)
        else:
            torch.mul(self._product(rows / largest, 1 / _LEVELS), largest, out=y)
        if self.bias is not None:
            y += self.bias

    def _product(self, rows: torch.Tensor, step: float) -> torch.Tensor:
        return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows, step, _LEVELS + 1, self._packed
        )


@contextmanager
def packing() -> Generator[ThreadPoolExecutor]:
    """Threads on which layers are made: packing one keeps a single core busy."""
    used, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
    try:
        with warnings.catch_warnings(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
            # Tensors of 8-bit types are deprecated, without a replacement on this hardware.
            warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
            yield pool
    finally:
        torch.backends.quantized.engine = used
