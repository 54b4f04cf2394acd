# pyright: basic
# torch is typed too loosely for strict mode.
"""What only a CPU needs: room that costs nothing until it is used, and 8-bit products."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from service.engine.cpu_linear import Int8Linear
from service.engine.lora import Int8Part, LinearGroup
from service.engine.memory import reserve

needs_int8 = pytest.mark.skipif(not Int8Linear.is_supported(), reason="no 8-bit kernels here")


def resident_mib() -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", text)
    assert found is not None
    return int(found[1]) // 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reserved_room_is_resident_only_where_it_was_written() -> None:
    before = resident_mib()
    room = reserve((1024, 2**18), torch.float32, "cpu")  # 1 GiB, rows of 1 MiB
    room[::4, :64] = 1.0
    assert resident_mib() - before < 64
    assert float(room.sum()) == 256 * 64


@needs_int8
def test_eight_bit_layers_of_one_input_give_what_each_gives_alone() -> None:
    torch.manual_seed(0)
    bases = [nn.Linear(96, size, bias=True) for size in (64, 32, 32)]
    alone = Int8Linear.convert([[base] for base in bases])
    group = LinearGroup(bases, 0, joined=False)
    parts = [Int8Part(base, group, index) for index, base in enumerate(bases)]
    group.round_to_int8(Int8Linear.convert([bases])[0])
    for rows in (1, 7):
        x = torch.randn(1, rows, 96)
        with torch.inference_mode():
            for part, single in zip(parts, alone, strict=True):
                assert torch.equal(part(x), single(x))


@needs_int8
@pytest.mark.parametrize("outlier", [1.0, 100.0])
def test_eight_bit_products_are_close_even_beside_a_huge_input(outlier: float) -> None:
    torch.manual_seed(1)
    base = nn.Linear(512, 256, bias=False)
    x = torch.randn(1, 5, 512)
    x[..., 3] *= outlier
    with torch.inference_mode():
        exact, rounded = base(x), Int8Linear.convert([[base]])[0](x)
    assert float((rounded - exact).norm() / exact.norm()) < 0.01
