# pyright: basic
# torch's dtypes are typed too loosely for strict mode.
"""Room that is reserved at start and costs memory only where it gets used, and room given back."""

import ctypes
import math
import mmap
import sys

import torch


def reserve(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Zeros; on a CPU their pages come into being one by one when they are first written.

    `torch.zeros` would write every page, and huge pages would fill 2 MiB around each written row,
    so that a short prompt in every slot, or a small adapter in every layer, took all the room.
    """
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    if torch.device(device).type != "cpu" or size == 0:
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def give_back_free_pages() -> None:
    """Return to the system what loading has freed; the C library would keep it for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc
        trim(0)
