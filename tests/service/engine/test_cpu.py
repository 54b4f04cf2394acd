# pyright: basic
# torch is typed too loosely for strict mode.
"""What only a CPU needs: room that costs nothing until it is used, and 8-bit products."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from service.engine.cpu_int8 import Int8Linear, RoundedWeight, packing
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


def rounded(bases: list[nn.Linear], *, is_fine: bool = True) -> Int8Linear:
    weight = RoundedWeight.of([base.weight.data for base in bases])
    has_bias = bases[0].bias is not None
    bias = torch.cat([base.bias.data for base in bases]) if has_bias else None
    with packing():
        return Int8Linear(weight, bias, is_fine=is_fine)


@needs_int8
@pytest.mark.parametrize("is_fine", [True, False])
def test_eight_bit_layers_of_one_input_give_what_each_gives_alone(is_fine: bool) -> None:
    torch.manual_seed(0)
    bases = [nn.Linear(96, size, bias=True) for size in (64, 32, 32)]
    together = rounded(bases, is_fine=is_fine)
    alone = [rounded([base], is_fine=is_fine) for base in bases]
    for rows in (1, 7):
        x = torch.randn(1, rows, 96)
        with torch.inference_mode():
            parts = together(x).split([64, 32, 32], dim=-1)
            for part, single in zip(parts, alone, strict=True):
                assert torch.equal(part, single(x))


@needs_int8
@pytest.mark.parametrize("is_fine", [True, False])
def test_a_row_of_an_eight_bit_product_does_not_depend_on_the_others(is_fine: bool) -> None:
    torch.manual_seed(0)
    layer = rounded([nn.Linear(512, 256, bias=True)], is_fine=is_fine)
    x = torch.randn(300, 512)
    with torch.inference_mode():
        whole = layer(x)
        for rows in (slice(0, 1), slice(3, 11), slice(100, 299)):
            assert torch.equal(layer(x[rows]), whole[rows])


@needs_int8
def test_eight_bit_sums_do_not_overflow() -> None:
    base = nn.Linear(512, 32, bias=False)
    base.weight.data.fill_(1.0)
    x = torch.ones(3, 512)
    with torch.inference_mode():
        for is_fine in (True, False):
            assert torch.allclose(rounded([base], is_fine=is_fine)(x), torch.tensor(512.0))


@needs_int8
@pytest.mark.parametrize("outlier", [1.0, 100.0])
def test_eight_bit_products_are_close_even_beside_a_huge_input(outlier: float) -> None:
    torch.manual_seed(1)
    base = nn.Linear(512, 256, bias=False)
    x = torch.randn(1, 5, 512)
    x[..., 3] *= outlier
    with torch.inference_mode():
        exact, close = base(x), rounded([base])(x)
    assert float((close - exact).norm() / exact.norm()) < 0.01
