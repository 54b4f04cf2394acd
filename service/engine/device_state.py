# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""What the device knows of every sequence, by KV slot, so that decoding needs no word from the
host.

A decode step gathers its rows from here, and its sampler writes the new token, position and grammar
state back. The host writes a row when a sequence starts, and otherwise only says which rows run.
"""

from dataclasses import dataclass

import torch

TOKEN, POSITION, LORA, STATE, COUNT, SEED, COLUMNS = range(7)
TEMPERATURE, TOP_P = range(2)


@dataclass(frozen=True, slots=True)
class RowValues:
    """The start values of a row."""

    lora: int
    state: int
    count: int
    seed: int
    temperature: float
    top_p: float


class DeviceState:
    """Integers and floats of each slot; the last row belongs to padding."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.device = device
        self.integers = torch.zeros((slots + 1, COLUMNS), dtype=torch.int64, device=device)
        self.floats = torch.zeros((slots + 1, 2), dtype=torch.float32, device=device)

    def write(self, rows: dict[int, RowValues]) -> None:
        """Set the rows of slots whose sequences start, or were moved on by the host."""
        if not rows:
            return
        slots = self.tensor(list(rows))
        values = list(rows.values())
        integers = self.tensor([[v.lora, v.state, v.count, v.seed] for v in values])
        self.integers[slots[:, None], torch.arange(LORA, COLUMNS, device=self.device)] = integers
        self.floats[slots] = self.tensor([[v.temperature, v.top_p] for v in values], torch.float32)

    def tensor(self, values, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Host values on the device, without waiting for it."""
        host = torch.as_tensor(values, dtype=dtype)
        if self.device.type == "cpu":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)
