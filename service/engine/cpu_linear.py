# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Products with 16-bit weights on a CPU that has no fast 16-bit products of many rows.

Without AVX512-BF16 or AMX a bf16 product of many rows is several times slower than the same in
fp32, while for one row, where reading the weights is all the work, bf16 is faster. So few rows go
through bf16, and many rows through fp32 products with blocks of the weight that are widened on the
way.
"""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

_BLOCK_BYTES = 2**21
"""Of a widened block: small enough to be in the cache when the product reads it."""
FEW_ROWS = 8
"""Up to here the bf16 product wins on AVX2."""
_LEVELS = 63


def widening_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`linear(x, weight, bias)` for an fp32 `x` and a weight of any floating type; fp32 comes
    out."""
    if weight.dtype == x.dtype:
        return linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    # fp16 ends at 65,504, which the inputs of some layers of language models exceed.
    if rows.shape[0] <= FEW_ROWS and weight.dtype != torch.float16:
        product = linear(rows.to(weight.dtype), weight).float()
    else:
        product = _by_blocks(rows, weight)
    if bias is not None:
        product += bias
    return product.view(*x.shape[:-1], weight.shape[0])


def _by_blocks(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    outputs, inputs = weight.shape
    block = max(_BLOCK_BYTES // (4 * inputs), 16)
    product = torch.empty((len(rows), outputs), dtype=torch.float32)
    wide = torch.empty((min(block, outputs), inputs), dtype=torch.float32)
    for start in range(0, outputs, block):
        stop = min(start + block, outputs)
        part = wide[: stop - start].copy_(weight[start:stop])
        product[:, start:stop] = rows @ part.t()
    return product


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, for CPUs whose fastest products are of 8-bit integers.
    Made by `convert`.

    Weights are rounded once, per output. An input row is written as the sum of two rows of 7-bit
    integers, the second for what the first leaves over, so that the few huge inputs of a language
    model do not drown the others; a product of few rows costs no more than reading the weights, so
    the second row is free where it matters. 7 bits, since 8 overflow the 16-bit sums of AVX2.
    """

    def __init__(self, bases: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.cat([base.weight.data for base in bases]).float()
        self.out_features, self.in_features = weight.shape
        has_bias = bases[0].bias is not None
        self.bias = torch.cat([base.bias.data for base in bases]).float() if has_bias else None
        largest = torch.maximum(weight.amax(dim=1), -weight.amin(dim=1))
        scale = (largest / 127).clamp(min=1e-12)
        # The same values as `quantize_per_channel` gives, in a quarter of its time.
        whole = weight.mul_(1 / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        zero = torch.zeros(len(weight), dtype=torch.int64)
        make: Any = torch._make_per_channel_quantized_tensor  # pyright: ignore[reportPrivateImportUsage] no public name
        rounded = make(whole, scale.double(), zero, 0)
        del weight, whole
        self._packed = torch.ops.quantized.linear_prepack(rounded, None)

    @classmethod
    def convert(cls, groups: Sequence[Sequence[nn.Linear]]) -> "list[Int8Linear]":
        """Round groups of layers, several at a time: packing one keeps a single core busy.

        The layers of a group read the same input and become one, their outputs side by side: what
        one row costs beside reading the weights is then paid once.
        """
        used, torch.backends.quantized.engine = torch.backends.quantized.engine, "fbgemm"
        try:
            with warnings.catch_warnings(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
                # Tensors of 8-bit types are deprecated, without a replacement on this hardware.
                warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
                return list(pool.map(cls, groups))
        finally:
            torch.backends.quantized.engine = used

    @staticmethod
    def is_supported() -> bool:
        """Whether this processor has the kernels."""
        return "fbgemm" in torch.backends.quantized.supported_engines

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        step = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30) / _LEVELS
        scaled = rows / step
        coarse = scaled.round()
        fine = (scaled - coarse).mul_(2 * _LEVELS)
        both = torch.cat([coarse, fine])
        # Inputs are whole numbers already (the fine ones are rounded by the operator).
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            both, 1.0, _LEVELS + 1, self._packed
        )
        count = rows.shape[0]
        y = product[:count].add_(product[count:], alpha=1 / (2 * _LEVELS)).mul_(step)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], self.out_features)
