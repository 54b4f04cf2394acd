# pyright: basic
# torch and bitsandbytes are typed too loosely for strict checking.
"""What weights look like through an NF4 load, bit for bit as bitsandbytes has it, but sooner on a
CPU.

bitsandbytes packs the codes and looks for each of them by bisection over whole matrices. Here a
value goes through a table of 65,536 cells straight to its level; the few values in a cell that a
boundary crosses are looked up as bitsandbytes does. In chunks that fit the cache, as memory is what
takes the time.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")
_BLOCK = 64
_CHUNK = 2**18
_CELLS = 2**16


class Nf4RoundTrip:
    """Quantises and dequantises matrices as a load in 4 bits does.

    Args:
        dtype: Of the weights at the load; the dequantised values have it too.
        nested: Whether the blocks' scales are quantised again (double quantisation).
    """

    def __init__(self, dtype: "torch.dtype", *, nested: bool) -> None:
        self._dtype = dtype
        self._nested = nested
        self._pool: ThreadPoolExecutor | None = None
        self._tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def __call__(self, weight: "torch.Tensor") -> "torch.Tensor":
        """The weight as the forward pass of a model loaded in 4 bits sees it."""
        weight = weight.to(self._dtype).contiguous()
        if weight.device.type != "cpu" or weight.numel() % _BLOCK:
            return self._by_library(weight)
        return self._by_table(weight)

    def _by_library(self, weight: "torch.Tensor") -> "torch.Tensor":
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=self._nested)
        return dequantize_4bit(packed, state)

    def _by_table(self, weight: "torch.Tensor") -> "torch.Tensor":
        import torch

        table, bounds, levels = self._tables or self._make_tables()
        flat = weight.view(-1)
        starts = range(0, len(flat), _CHUNK)
        absmax = torch.cat(list(self._map(lambda i: _largest(flat[i : i + _CHUNK]), starts)))
        factors = 1.0 / absmax.clamp(min=1e-38)
        scales = self._stored_scales(absmax)
        result = torch.empty_like(flat)

        def turn(start: int) -> None:
            part = flat[start : start + _CHUNK].float().view(-1, _BLOCK)
            blocks = slice(start // _BLOCK, start // _BLOCK + len(part))
            scaled = part.mul_(factors[blocks, None]).clamp_(-1, 1).view(-1)
            cells = scaled.add(1.0).mul_(_CELLS / 2).to(torch.int32)
            values = table.index_select(0, cells)
            crossed = values.isnan().nonzero().view(-1)
            if len(crossed):
                values[crossed] = levels[torch.bucketize(scaled[crossed], bounds)]
            values = values.view(-1, _BLOCK).mul_(scales[blocks, None])
            result[start : start + _CHUNK] = values.view(-1).to(self._dtype)

        threads = torch.get_num_threads()
        list(self._map(turn, starts))
        # The workers' setting is theirs alone but for the library of matrix products.
        torch.set_num_threads(threads)
        return result.view_as(weight)

    def _map(self, function: "Callable[[int], _T]", items: range) -> "Iterator[_T]":
        """Chunks side by side, each on one thread: small operations on several only wait for
        each other, most of all where the machine has other work."""
        import torch

        if self._pool is None:
            threads = torch.get_num_threads()
            self._pool = ThreadPoolExecutor(
                threads, initializer=torch.set_num_threads, initargs=(1,)
            )
        return self._pool.map(function, items)

    def _stored_scales(self, absmax: "torch.Tensor") -> "torch.Tensor":
        from bitsandbytes.functional import dequantize_blockwise, quantize_blockwise

        if not self._nested:
            return absmax
        offset = absmax.mean()
        return dequantize_blockwise(*quantize_blockwise(absmax - offset, blocksize=256)) + offset

    def _make_tables(self) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        """Level by cell (NaN where a boundary is in or beside the cell), boundaries, levels."""
        import torch
        from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
        from bitsandbytes.backends.utils import _get_4bit_code

        cpu = torch.device("cpu")
        bounds, _ = _get_4bit_quantize_bounds("nf4", cpu)
        levels = _get_4bit_code("nf4", cpu)
        middles = (torch.arange(_CELLS + 1) + 0.5) * (2 / _CELLS) - 1
        table = levels[torch.bucketize(middles.float(), bounds)].clone()
        for cell in ((bounds.double() + 1) * (_CELLS / 2)).long().tolist():
            table[max(0, cell - 1) : cell + 2] = float("nan")
        self._tables = table, bounds, levels
        return self._tables


def _largest(part: "torch.Tensor") -> "torch.Tensor":
    """The largest magnitude of every block."""
    return part.view(-1, _BLOCK).abs().amax(-1).float()
