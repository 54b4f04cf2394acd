# pyright: basic
# torch's autograd functions and transformers' interfaces are typed too loosely for strict checking.
"""Attention in training without masks, so that it always runs in the flash kernel.

Two masks are not needed. Padding on the right comes after every token that counts, where causal
attention does not look. And packed rows, which lie one after another in a single sequence, can be
laid side by side for attention alone; the mask that keeps them apart would grow with the square of
that sequence.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

NAME = "packed_sdpa"


def ignore_right_padding(model: Any) -> None:
    """Hide the mask of padded rows from the model while TRL asks it for a loss.

    TRL pads those on the right, and labels of padding are ignored. Generation pads on the left and
    keeps its mask. Where experts are balanced over all tokens, padding would count; there the mask
    stays.
    """
    if hasattr(model.config.get_text_config(), "output_router_logits"):
        return

    def hide(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if kwargs.get("fused_lm_head") and kwargs.get("labels") is not None:
            kwargs = {name: value for name, value in kwargs.items() if name != "attention_mask"}
        return args, kwargs

    model.register_forward_pre_hook(hide, with_kwargs=True)


def use_packed_attention(model: Any) -> bool:
    """Let a model attend to packed rows one by one, if it attends causally in all its layers."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    forward: Any = sdpa_attention_forward
    causal_mask: Any = sdpa_mask
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if config._attn_implementation != "sdpa" or kinds != {"full_attention"}:
        return False
    if window is not None and not hasattr(config, "layer_types"):
        return False

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        bounds = kwargs.get("cu_seq_lens_q")
        if bounds is None or mask is not None:
            return forward(module, query, key, value, mask, **kwargs)
        places = Places(bounds, int(kwargs["max_length_q"]), query.shape[2])
        apart = [places.spread(part) for part in (query, key, value)]
        result, _ = forward(module, *apart, None, **kwargs)
        return places.gather(result), None

    def mask(*args: Any, **kwargs: Any) -> Any:
        plain = kwargs.get("attention_mask") is None and kwargs["q_length"] == kwargs["kv_length"]
        return None if plain else causal_mask(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, mask)
    config._attn_implementation = NAME
    return True


class Places:
    """Where the tokens of a packed sequence lie when its rows are side by side."""

    def __init__(self, bounds: Any, longest: int, tokens: int) -> None:
        begins, lengths = bounds[:-1].long(), bounds.diff().long()
        steps = torch.arange(longest, device=bounds.device)
        self.rows = len(begins)
        self.filled = (steps < lengths[:, None]).flatten()
        # a row's padding repeats tokens that come after it
        self.spread_from = (begins[:, None] + steps).clamp(max=tokens - 1).flatten()
        tokens_at = torch.arange(tokens, device=bounds.device)
        row = torch.searchsorted(bounds[1:].long().contiguous(), tokens_at, right=True)
        self.gather_from = row * longest + tokens_at - begins[row]

    def spread(self, packed: Any) -> Any:
        """[1, heads, tokens, size] as [rows, heads, longest, size]."""
        flat = packed[0].transpose(0, 1)
        spread = _Moved.apply(flat, self.spread_from, self.gather_from, None)
        return spread.view(self.rows, -1, *spread.shape[1:]).transpose(1, 2)

    def gather(self, apart: Any) -> Any:
        """[rows, longest, heads, size] as [1, tokens, heads, size]."""
        flat = apart.flatten(0, 1)
        return _Moved.apply(flat, self.gather_from, self.spread_from, self.filled)[None]


class _Moved(torch.autograd.Function):
    """Rows taken by index; the gradient is taken by index too, and nothing has to be summed.

    That is right because padding has no gradient: queries there are not gathered, and no query of a
    row sees keys that come after it.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, index: Any, back: Any, filled: Any) -> Any:
        ctx.save_for_backward(back, filled)
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        back, filled = ctx.saved_tensors
        grad = gradients[0].index_select(0, back)
        if filled is not None:
            grad = grad.masked_fill_(~filled.view(-1, *[1] * (grad.ndim - 1)), 0)
        return grad, None, None, None
