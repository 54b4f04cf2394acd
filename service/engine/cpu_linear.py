# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Products with 16-bit weights on a CPU that has no fast 16-bit products of many rows.

Without AVX512-BF16 or AMX a bf16 product of many rows is several times slower than the same in
fp32, while for one row, where reading the weights is all the work, bf16 is faster. So few rows go
through bf16, and many rows through fp32 products with blocks of the weight that are widened on the
way.
"""

import torch
from torch.nn.functional import linear

_BLOCK_BYTES = 2**21
"""Of a widened block: small enough to be in the cache when the product reads it."""
FEW_ROWS = 8
"""Up to here the bf16 product wins on AVX2."""


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
