# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""Drawing tokens on the device, each row with its own temperature, nucleus and seed.

The random number of a draw is a hash of the row's seed and the token's position, so it does not
depend on what else is in the batch. The logits may, in their last bits: the shapes of a batch
decide in which order products are summed. So a seed gives the same tokens on the same batch always,
and in any batch unless two candidates are closer than that rounding (on the CPU in fp32:
practically never).
"""

import torch

CANDIDATES = 256
"""Draws are among the most likely tokens only; the rest of the vocabulary is noise at any top-p."""
_MASK = 0xFFFFFFFF


def draw(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    """One token per row of `logits` [rows, vocabulary]; a temperature of 0 takes the most
    likely."""
    best, tokens = logits.float().topk(min(CANDIDATES, logits.shape[-1]), dim=-1)
    probability = torch.softmax(best / temperature.clamp(min=1e-3)[:, None], dim=-1)
    before = probability.cumsum(-1) - probability
    kept = (before < top_p[:, None]) & (probability > 0)
    cumulated = torch.where(kept, probability, 0).cumsum(-1)
    threshold = uniform(seed, position)[:, None] * cumulated[:, -1:]
    chosen = torch.minimum((cumulated <= threshold).sum(-1), kept.sum(-1) - 1)
    chosen = torch.where(temperature > 0, chosen, 0)
    return tokens.gather(-1, chosen[:, None])[:, 0]


def likeliest(logits: torch.Tensor, pieces: int) -> torch.Tensor:
    """The token of the highest logit in each row. On a GPU one program for each row would leave
    most of it idle: `pieces` says in how many a row is cut."""
    rows, vocabulary = logits.shape
    best, places = logits.view(rows, pieces, vocabulary // pieces).max(-1)
    piece = best.argmax(-1, keepdim=True)
    return (piece * (vocabulary // pieces) + places.gather(-1, piece))[:, 0]


def log_normalizer(logits: torch.Tensor, pieces: int) -> torch.Tensor:
    """The logarithm of the sum of each row's exponentials, likewise."""
    rows, vocabulary = logits.shape
    cut = logits.float().view(rows, pieces, vocabulary // pieces)
    return cut.logsumexp(-1).logsumexp(-1)


def uniform(seed: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """A number in [0, 1) for each pair of a 32-bit seed and a position, the same on every
    device."""
    mixed = _mix(seed ^ _mix((position + 0x9E3779B9) & _MASK))
    return (mixed >> 8).float() / 2**24


def _mix(x: torch.Tensor) -> torch.Tensor:
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & _MASK
    return x ^ (x >> 16)
