# pyright: basic
# transformers' models are typed too loosely for strict mode.
"""How likely each choice is as the next token, for many prompts at once.

Prompts that ask about one passage begin alike. What all of them share is read once; the rests go
in batches over copies of its cache, filled up on the right, where no real token looks.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

_BATCH = 8
"""Logits of a whole vocabulary are kept for each row."""


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """The tokens of a prompt, and the token with which each choice goes on."""

    ids: list[int]
    firsts: list[int]


def split_choices(choices: Sequence[str], rows: list[list[int]]) -> ScoredPrompt:
    """What the encoded choices share, and the first token of each after it.

    Encoded whole, since `: ` and `A` may be the two tokens `:` and ` A`.
    """
    shared = common_prefix(rows)
    firsts = [row[shared] for row in rows if len(row) > shared]
    if not shared or len(set(firsts)) < len(rows):
        raise ValueError(f"the choices {list(choices)} do not differ in their first token")
    return ScoredPrompt(rows[0][:shared], firsts)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    shared = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        shared += 1
    return shared


def score_prompts(model: PreTrainedModel, prompts: Sequence[ScoredPrompt]) -> list[list[float]]:
    """Log-probabilities of each prompt's choices, normalised over them."""
    # Every row keeps a token of its own to be read, even if it is all that others begin with.
    shared = min(common_prefix([p.ids for p in prompts]), min(len(p.ids) for p in prompts) - 1)
    if len(prompts) == 1:
        shared = 0
    scores: dict[int, list[float]] = {}
    with torch.inference_mode():
        prefix = _read(model, prompts[0].ids[:shared]) if shared else None
        for places in _batches([len(p.ids) for p in prompts]):
            batch = [prompts[place] for place in places]
            logits = _last_logits(model, [p.ids[shared:] for p in batch], prefix)
            for place, prompt, row in zip(places, batch, logits, strict=True):
                scores[place] = torch.log_softmax(row[prompt.firsts], dim=-1).tolist()
    return [scores[place] for place in range(len(prompts))]


def _batches(lengths: list[int]) -> Iterator[list[int]]:
    """Places of prompts, those of like length together."""
    order = sorted(range(len(lengths)), key=lambda place: lengths[place])
    for start in range(0, len(order), _BATCH):
        yield order[start : start + _BATCH]


def _read(model: PreTrainedModel, ids: list[int]) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    prompt = torch.tensor([ids], device=model.device)
    model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def _last_logits(
    model: PreTrainedModel, rows: list[list[int]], prefix: DynamicCache | None
) -> list[torch.Tensor]:
    """The logits after each row's last token."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in rows], device=model.device)
    cache = copy.deepcopy(prefix)
    if cache is not None:
        cache.batch_repeat_interleave(len(rows))
    kept = sorted({len(row) - 1 for row in rows})
    logits = model(
        ids,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=torch.tensor(kept, device=model.device),
    ).logits.float()
    return [logits[i, kept.index(len(row) - 1)].cpu() for i, row in enumerate(rows)]
