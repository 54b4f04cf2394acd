# pyright: basic
# touches libraries that are typed too loosely for strict checking
"""Greedy tokens equal those of transformers and PEFT, alone and mixed, for every kind of
adapter."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_registry.bases.tiny import TinyArchitecture, write_tiny_model
from service.engine.loading import OpenEngine, open_engine
from service.engine.sequence import EngineRequest
from tests.service.engine.conftest import KINDS, SIZES, linear_shapes, write_adapter
from tests.service.engine.driving import (
    generate,
    prompt_of,
    read,
    submit,
    transformers_greedy,
)

LENGTH = 12

# PEFT 0.21 reads a property that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama", "gemma3"])
def test_architectures_answer_as_transformers_does(
    tmp_path: Path, architecture: TinyArchitecture
) -> None:
    base = write_tiny_model(
        tmp_path / "base", architecture, layers=6 if architecture == "gemma3" else 2
    )
    adapter = write_adapter(tmp_path / "adapter", linear_shapes(base), seed=5)
    prompt = prompt_of(100)
    opened = open_engine(base, "fp32", SIZES)
    try:
        plain = generate(opened, EngineRequest(prompt=prompt, max_tokens=LENGTH))
        request = EngineRequest(
            prompt=prompt, max_tokens=LENGTH, digest="a", adapter=read(opened, adapter)
        )
        adapted = generate(opened, request)
    finally:
        opened.engine.close()
    assert plain == transformers_greedy(base, prompt, LENGTH)
    assert adapted == transformers_greedy(base, prompt, LENGTH, adapter)
    assert adapted != plain


def test_adapters_of_every_kind_in_one_batch_answer_as_peft_does(
    opened: OpenEngine, tiny: Path, adapters: dict[str, Path]
) -> None:
    prompts = {kind: prompt_of(30 + 7 * i, seed=i) for i, kind in enumerate(KINDS)}
    heard = {
        kind: submit(
            opened,
            EngineRequest(
                prompt=prompts[kind],
                max_tokens=LENGTH,
                digest=kind,
                adapter=read(opened, adapters[kind]),
            ),
        )
        for kind in KINDS
    }
    base = submit(opened, EngineRequest(prompt=prompts["plain"], max_tokens=LENGTH))
    for kind, answer in heard.items():
        expected = transformers_greedy(tiny, prompts[kind], LENGTH, adapters[kind])
        assert answer.wait().tokens[0] == expected, kind
    assert base.wait().tokens[0] == transformers_greedy(tiny, prompts["plain"], LENGTH)


def test_one_prompt_under_many_adapters_leaks_nothing(
    opened: OpenEngine, adapters: dict[str, Path]
) -> None:
    prompt = prompt_of(64)
    host = {kind: read(opened, path) for kind, path in adapters.items()}
    requests = [
        EngineRequest(prompt=prompt, max_tokens=LENGTH, digest=kind, adapter=adapter)
        for kind, adapter in host.items()
    ] + [EngineRequest(prompt=prompt, max_tokens=LENGTH)]
    alone = {request.digest: generate(opened, request) for request in requests}
    assert len({tuple(tokens) for tokens in alone.values()}) == len(requests)
    for order in (requests, requests[::-1], requests[1:] + requests[:1], requests * 2):
        together = [(request, submit(opened, request)) for request in order]
        for request, heard in together:
            assert heard.wait().tokens[0] == alone[request.digest]
    assert opened.engine.metrics.reused_tokens > 0


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_candidates_say_how_likely_the_model_held_them(
    opened: OpenEngine, tiny: Path, temperature: float
) -> None:
    prompt = prompt_of(40)
    request = EngineRequest(
        prompt=prompt, max_tokens=LENGTH, n=3, temperature=temperature, top_p=0.9, seed=4
    )
    heard = submit(opened, request).wait()
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for index, tokens in heard.tokens.items():
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        each = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])
        assert heard.logprobs[index] == pytest.approx(float(each.sum()), abs=1e-3)


def test_candidates_of_one_prompt_share_its_computation(opened: OpenEngine) -> None:
    prompt = prompt_of(80)
    heard = submit(opened, EngineRequest(prompt=prompt, n=4, max_tokens=LENGTH)).wait()
    assert len({tuple(tokens) for tokens in heard.tokens.values()}) == 1
    assert opened.engine.metrics.prompt_tokens == 80 + 3
    assert opened.engine.metrics.reused_tokens == 3 * 79


def test_sixteen_bit_weights_answer_nearly_as_they_do_in_transformers(
    tiny: Path, tmp_path: Path
) -> None:
    """Activations stay in fp32 on the CPU, so only the rounding of weights differs."""
    from tests.service.engine.widening import first_logits

    ours, theirs = first_logits(tiny)
    assert (ours - theirs).abs().max() < 0.05 * theirs.std()
