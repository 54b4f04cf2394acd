# pyright: basic
# transformers' generation is typed too loosely for strict mode.
"""One candidate at a time through transformers' `generate`, told to stop and made to stream.

`generate` runs greedily; the token is drawn before, from a generator of the candidate's own, so
that a seed means the same whatever else the process draws.
"""

import copy
import hashlib
import time
from collections.abc import Callable
from threading import Event
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from service.backends.base import CompletionDelta, FinishReason, Sampling
from service.backends.reference_grammar import GrammarState

Emit = Callable[[CompletionDelta], None]


class Candidate:
    """One completion as it grows: draws each token, then looks at what was drawn."""

    def __init__(
        self,
        index: int,
        tokenizer: PreTrainedTokenizerBase,
        prompt_tokens: int,
        sampling: Sampling,
        grammar: GrammarState | None,
        end_token_ids: tuple[int, ...],
        is_over: Callable[[], bool],
        emit: Emit,
    ) -> None:
        self._index, self._tokenizer, self._prompt_tokens = index, tokenizer, prompt_tokens
        self._sampling, self._grammar = sampling, grammar
        self._ends, self._is_over, self._emit = frozenset(end_token_ids), is_over, emit
        self._random = _generator(sampling.seed, index)
        self._text = ""
        self._sent = 0
        self._unsent_tokens = 0
        self._is_first = True
        self.finish_reason: FinishReason = "length"

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores in which one token stands out: the drawn one."""
        scores = logits[0].float().cpu()
        known = len(self._tokenizer)
        scores[known:] = -torch.inf  # rows that pad the matrix have no text
        if self._grammar is not None:
            scores[~self._grammar.allowed(self._text)] = -torch.inf
        token = _drawn(scores, self._sampling, self._random)
        chosen = torch.full_like(logits, -torch.inf)
        chosen[0, token] = 0.0
        return chosen

    def look(self, ids: torch.Tensor) -> bool:
        """Take the new token, stream what it completes; whether the candidate has ended."""
        completion = ids[0, self._prompt_tokens :].tolist()
        token = completion[-1]
        self._unsent_tokens += 1
        if token in self._ends:
            self.finish_reason = "stop"
            return True
        if self._grammar is not None:
            self._grammar.accept(token)
        self._text = str(
            self._tokenizer.decode(
                completion, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        if self._grammar is not None and self._grammar.is_complete:
            self.finish_reason = "stop"
            return True
        if self._is_over():
            self.finish_reason = "cancelled"
            return True
        if len(self._text) > self._sent and not self._text.endswith("\ufffd"):
            self._send(None)
        return False

    def finish(self) -> None:
        """Send the last delta."""
        self._send(self.finish_reason)

    def _send(self, finish_reason: FinishReason | None) -> None:
        first = self._is_first and self._index == 0
        self._emit(
            CompletionDelta(
                self._index,
                self._text[self._sent :],
                tokens=self._unsent_tokens,
                finish_reason=finish_reason,
                prompt_tokens=self._prompt_tokens if first else 0,
            )
        )
        self._sent, self._unsent_tokens, self._is_first = len(self._text), 0, False


class _Draw(LogitsProcessor):
    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._candidate.draw(scores)


class _Look(StoppingCriteria):
    def __init__(self, candidate: Candidate) -> None:
        self._candidate = candidate

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        done = self._candidate.look(input_ids)
        return torch.full((input_ids.shape[0],), done, device=input_ids.device)


def generate(
    model: Any,
    prompt: torch.Tensor,
    prefix: DynamicCache | None,
    candidate: Candidate,
    max_tokens: int,
) -> None:
    """Run one candidate to its end; `prefix` is the prompt's cache, and is left as it was."""
    with torch.inference_mode():
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=copy.deepcopy(prefix),
            do_sample=False,
            max_new_tokens=max_tokens,
            logits_processor=LogitsProcessorList([_Draw(candidate)]),
            stopping_criteria=StoppingCriteriaList([_Look(candidate)]),
        )
    candidate.finish()


def read_prompt(model: Any, prompt: torch.Tensor) -> DynamicCache | None:
    """The cache of all but the last token, so that candidates of one prompt share its reading."""
    if prompt.shape[1] < 2:
        return None
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        model(prompt[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def is_over(cancelled: Event, deadline: float | None) -> Callable[[], bool]:
    """Whether there is no use in going on."""
    return lambda: cancelled.is_set() or (deadline is not None and time.monotonic() > deadline)


def _drawn(scores: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    if sampling.temperature <= 0:
        return int(scores.argmax())
    probabilities = torch.softmax(scores / sampling.temperature, dim=-1)
    likely, tokens = probabilities.sort(descending=True, stable=True)
    before = likely.cumsum(-1) - likely
    likely = torch.where(before < sampling.top_p, likely, 0.0)
    return int(tokens[torch.multinomial(likely, 1, generator=random)])


def _generator(seed: int | None, index: int) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return generator.manual_seed(int.from_bytes(digest[:7], "little"))
