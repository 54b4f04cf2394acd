# pyright: basic
# transformers' models are typed too loosely for strict mode.
"""Turns the linear layers of a loaded model into 8-bit ones."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from service.engine.cpu_int8 import Int8Linear, RoundedWeight, packing
from service.engine.cpu_weights import Rounding, rounded_weights
from service.engine.lora import LoraLinear
from service.engine.memory import give_back_free_pages

_AT_ONCE = 4
"""Groups of layers; between two lots the 16-bit matrices of the first are freed."""
_HEAD = "lm_head"


def round_layers(model: Any, cache: Path | None) -> None:
    """Round the head and every group of layers, or take them from `cache`."""
    adapted = [module for module in model.modules() if isinstance(module, LoraLinear)]
    groups = list(dict.fromkeys(module.group for module in adapted))
    head = model.get_output_embeddings()
    has_head = isinstance(head, nn.Linear)
    layers = [base for group in groups for base in group.bases] + ([head] if has_head else [])
    size = sum(layer.weight.numel() for layer in layers)
    for module in adapted:
        module.base = None  # the group holds it until it is rounded
    with packing() as pool, rounded_weights(cache, size) as rounding:
        make = partial(_rounded, rounding)
        if has_head:
            model.set_output_embeddings(pool.submit(make, _HEAD, [head], is_fine=True).result())
        for start in range(0, len(groups), _AT_ONCE):
            some = groups[start : start + _AT_ONCE]
            made: Callable[[Any], Int8Linear] = lambda group: make(  # noqa: E731
                group.name,
                group.bases,
                # From the wide layer of a block come the few huge inputs.
                is_fine=group.bases[0].in_features > group.bases[0].out_features,
            )
            for group, joined in zip(some, pool.map(made, some), strict=True):
                group.round_to_int8(joined)
    give_back_free_pages()


def _rounded(
    rounding: Rounding, name: str, layers: list[nn.Linear], *, is_fine: bool
) -> Int8Linear:
    weight = rounding(name, lambda: RoundedWeight.of([layer.weight.data for layer in layers]))
    bias = None
    if layers[0].bias is not None:
        bias = torch.cat([layer.bias.data for layer in layers]).float()
    return Int8Linear(weight, bias, is_fine=is_fine)
