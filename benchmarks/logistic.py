# pyright: basic
# torch's optimisers are typed too loosely for strict mode.
"""Logistic regression on few questions."""

from collections.abc import Sequence
from typing import Any

import torch


def fit_logistic(
    features: Sequence[Sequence[float]], is_right: Sequence[bool], *, decay: float
) -> list[float]:
    """The bias, then a weight for each feature; `decay` keeps the weights small, not the bias."""
    x = torch.tensor([[1.0, *row] for row in features])
    y = torch.tensor([float(right) for right in is_right])
    w = torch.zeros(x.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=300)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ w, y)
        loss = loss + decay * (w[1:] ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return [round(float(value), 4) for value in w.detach()]
