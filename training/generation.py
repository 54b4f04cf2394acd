# pyright: basic
# transformers is typed too loosely for strict checking.
"""Completions in batches, for evaluation: the service's prompts, plain `generate`."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mcq.grammar import alphabet
from mcq.language import Language
from mcq.prompts import Prompt
from training.errors import ModelSetupError
from training.rows import Renderer


@dataclass(frozen=True, slots=True)
class Ask:
    """A passage to ask about."""

    context: str
    language: Language
    avoid: tuple[str, ...] = ()
    begun: str = ""
    """How the completion begins already; what is generated goes on from there."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back for one ask."""

    text: str
    tokens: int
    stopped: bool
    """Ended by itself rather than by the token limit."""


def generate(
    model: Any,
    renderer: Renderer,
    asks: Sequence[Ask],
    *,
    batch_size: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    n: int = 1,
    seed: int = 0,
    constrained: bool = False,
) -> list[list[Completion]]:
    """`n` completions of each ask, in the order of the asks; greedy at temperature 0.

    A completion that had begun is returned whole, and counts the tokens that were added; the
    grammar knows none, so `constrained` is for completions that have not begun.
    """
    import torch

    prompts = prompts_of(
        [renderer.format.render(a.context, a.language, a.avoid) for a in asks],
        renderer,
        [a.begun for a in asks],
    )
    order = sorted(range(len(asks)), key=lambda i: len(prompts[i]))
    results: list[list[Completion]] = [[] for _ in asks]
    torch.manual_seed(seed)
    with evaluating(model), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = pad_left([prompts[i] for i in chosen], renderer, model.device)
            processors = _grammar(model, renderer, [asks[i] for i in chosen], n, constrained)
            sampling = (
                {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
                if temperature > 0
                else {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
            )
            output = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                num_return_sequences=n,
                eos_token_id=list(end_ids(renderer)),
                pad_token_id=renderer.tokenizer.pad_token_id,
                use_cache=True,
                logits_processor=processors,
                **sampling,
            )
            new = output[:, batch["input_ids"].shape[1] :].tolist()
            for place, ids in enumerate(new):
                index = chosen[place // n]
                results[index].append(_completion(ids, renderer, asks[index].begun))
    return results


def _completion(ids: list[int], renderer: Renderer, begun: str = "") -> Completion:
    ends = end_ids(renderer)
    stop = next((i for i, token in enumerate(ids) if token in ends), None)
    kept = ids if stop is None else ids[:stop]
    tokenizer: Any = renderer.tokenizer
    return Completion(begun + tokenizer.decode(kept), len(kept), stop is not None)


def end_ids(renderer: Renderer) -> tuple[int, ...]:
    """Every token that ends a completion: the format's, and the tokenizer's end of sequence."""
    own: Any = renderer.tokenizer
    ids = (renderer.end_token_id, own.eos_token_id)
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def pad_left(rows: Sequence[list[int]], renderer: Renderer, device: Any) -> dict[str, Any]:
    """A batch whose last tokens are aligned."""
    import torch

    width = max(map(len, rows))
    pad = renderer.tokenizer.pad_token_id
    ids = [[pad] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode, and back to what it was."""
    was_training = model.training
    checkpointed = getattr(model, "is_activation_checkpointing", False)
    model.eval()
    if checkpointed:
        model.gradient_checkpointing_disable()
    try:
        yield
    finally:
        model.train(was_training)
        if checkpointed:
            model.gradient_checkpointing_enable()


@contextlib.contextmanager
def bare(model: Any) -> Iterator[None]:
    """The base model without its adapter."""
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            yield
    else:
        yield


def _grammar(
    model: Any, renderer: Renderer, asks: Sequence[Ask], n: int, constrained: bool
) -> list[Any]:
    if not constrained:
        return []
    try:
        import xgrammar
        from xgrammar.contrib.hf import LogitsProcessor
    except ImportError as error:
        raise ModelSetupError("Constrained evaluation needs the package xgrammar") from error
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokenizer: Any = renderer.tokenizer
    info = xgrammar.TokenizerInfo.from_huggingface(
        tokenizer, vocab_size=vocabulary, stop_token_ids=list(end_ids(renderer))
    )
    compiler = xgrammar.GrammarCompiler(info)
    compiled = []
    for ask in asks:
        allowed = alphabet(ask.language) | {c for c in ask.context if c.isprintable()}
        pattern = renderer.format.grammar(ask.language).regex(alphabet=frozenset(allowed))
        compiled += [compiler.compile_regex(pattern)] * n
    return [LogitsProcessor(compiled)]


def prompts_of(prompts: Sequence[Prompt], renderer: Renderer, prefixes: Sequence[str]) -> Any:
    """Token rows of prompts whose answer has begun with a prefix."""
    pairs = zip(prompts, prefixes, strict=True)
    return [
        list(
            renderer.tokenizer(
                renderer.prompt_text(prompt) + prefix, add_special_tokens=prompt.is_plain
            )["input_ids"]
        )
        for prompt, prefix in pairs
    ]
