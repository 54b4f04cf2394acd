# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""The reference backend over a real model: the embedded one of half a billion parameters."""

import asyncio
import warnings
from pathlib import Path

import pytest

from mcq.grammar import passage_characters
from mcq.prompts import prompt_format
from model_registry.bases import BaseModel, prepare_base
from model_registry.bases.errors import BaseModelError
from service.backends.base import AdapterFiles, CompletionRequest, Sampling
from service.backends.reference import ReferenceBackend
from tests.service.reference_driving import files, texts, write_adapter

pytestmark = [
    pytest.mark.slow,
    # PEFT asks transformers under an old name whether activations are checkpointed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.fixture
def base() -> BaseModel:
    try:
        return prepare_base("embedded:qwen2.5-coder-0.5b-instruct", progress=False)
    except BaseModelError as error:
        warnings.warn(pytest.PytestWarning(f"NOT TESTED on a real model: {error}"), stacklevel=1)
        pytest.skip(str(error))


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default::pytest.PytestWarning")
async def test_a_real_model_answers_for_each_adapter_as_it_does_alone(
    base: BaseModel, tmp_path: Path, context_vi: str
) -> None:
    adapters = [
        files(write_adapter(base.path, tmp_path / name, seed, std=0.02), letter)
        for name, seed, letter in (("first", 1, "a"), ("second", 2, "b"))
    ]
    chat = prompt_format("chat/1")

    def asked(adapter: AdapterFiles | None) -> CompletionRequest:
        return CompletionRequest(
            chat.render(context_vi, "vi"),
            Sampling(max_tokens=24),
            adapter,
            chat.grammar("vi"),
            passage_characters(context_vi),
        )

    backend = ReferenceBackend.open(base, device="cpu")
    choices = [None, *adapters]
    alone = [await texts(backend, asked(adapter)) for adapter in choices]
    assert len({text for (text,) in alone}) == 3
    mixed = [*choices, *reversed(choices)]
    together = await asyncio.gather(*(texts(backend, asked(adapter)) for adapter in mixed))
    assert together == [*alone, *reversed(alone)]
    for (text,) in alone:
        assert text.startswith("Câu hỏi: ")
    await backend.close()
