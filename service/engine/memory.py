# pyright: basic
# torch's dtypes are typed too loosely for strict mode.
"""Room that is reserved at start and costs memory only where it gets used."""

import math

import numpy as np
import torch


def reserve(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    """Zeros; on a CPU their pages are not touched, so unused slots stay out of resident memory.

    `torch.zeros` writes every page. NumPy asks the system for pages that are zero anyway, and those
    come into being one by one when they are first written.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * torch.empty((), dtype=dtype).element_size()
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)
