# pyright: basic
# torch is typed too loosely for strict checking.
"""The reader: the bare base model answers a question, with its passage and without.

With the passage it should choose the key, without it should have to guess; the difference is what
the passage tells. Options are scored by log-probability in four rotations (`mcq.reader`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mcq.language import Language
from mcq.prompts import Prompt
from mcq.question import Letter, Question
from mcq.reader import CHOICES, ROTATIONS, option_probabilities, reader_prompts
from training.generation import bare, evaluating, pad_left, prompts_of
from training.rows import Renderer

Item = tuple[Question, str | None, Language]
"""A question, its passage (None to ask without), and their language."""


def read(
    model: Any,
    renderer: Renderer,
    items: Sequence[Item],
    *,
    tokens_per_batch: int = 4096,
    rotations: int = ROTATIONS,
) -> list[dict[Letter, float]]:
    """Each option's mean probability over the rotations, for every item in order."""
    asked = [
        Asked(p.prompt, p.prefix, CHOICES)
        for question, context, language in items
        for p in reader_prompts(question, context, language, rotations)
    ]
    with bare(model):
        scores = choice_scores(model, renderer, asked, tokens_per_batch=tokens_per_batch)
    return [
        option_probabilities(scores[start : start + rotations])
        for start in range(0, len(scores), rotations)
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, the beginning of its answer, and what may come next."""

    prompt: Prompt
    prefix: str
    choices: Sequence[str]


def choice_scores(
    model: Any, renderer: Renderer, asked: Sequence[Asked], *, tokens_per_batch: int = 4096
) -> list[list[float]]:
    """Log-probability of the first token of each choice, for every prompt in order."""
    import torch

    rows = prompts_of([a.prompt for a in asked], renderer, [a.prefix for a in asked])
    scores: list[list[float]] = [[] for _ in rows]
    with evaluating(model), torch.inference_mode():
        for chosen in batches_by_tokens(rows, tokens_per_batch):
            batch = pad_left([rows[i] for i in chosen], renderer, model.device)
            logits = model(**batch, use_cache=False, logits_to_keep=1).logits[:, -1]
            likely = torch.log_softmax(logits.float(), -1)
            for i, values in zip(chosen, likely, strict=True):
                ids = [_first_token(renderer, choice) for choice in asked[i].choices]
                scores[i] = values[ids].tolist()
    return scores


def batches_by_tokens(rows: Sequence[list[int]], limit: int) -> list[list[int]]:
    """Indices in batches of similar length whose padded size stays within `limit` tokens."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches: list[list[int]] = []
    for i in order:
        if batches and len(rows[i]) * (len(batches[-1]) + 1) <= limit:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _first_token(renderer: Renderer, choice: str) -> int:
    return int(renderer.tokenizer(choice, add_special_tokens=False)["input_ids"][0])
