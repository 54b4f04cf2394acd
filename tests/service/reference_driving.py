# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""Random adapters written by PEFT, and requests to the reference backend."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from mcq.prompts import Message, Prompt
from service.backends.base import AdapterFiles, CompletionDelta, CompletionRequest, Sampling
from service.backends.reference import ReferenceBackend

PROMPT = Prompt(messages=(Message("user", "Sông Hồng chảy qua miền Bắc Việt Nam."),))
PLAIN = Prompt(plain="### Ngữ cảnh: nước sôi ở một trăm độ.\n\n### Phản hồi:\n")


def write_adapter(
    base: Path, directory: Path, seed: int, rank: int = 4, std: float = 0.3, **options
) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", **options)
        peft = get_peft_model(model, config)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=std)
        peft.save_pretrained(str(directory))
    return directory


def files(directory: Path, letter: str) -> AdapterFiles:
    return AdapterFiles(f"{directory.name}-v1-{letter * 12}", f"sha256:{letter * 64}", directory)


def greedy(prompt: Prompt = PROMPT, tokens: int = 24, **options) -> CompletionRequest:
    return CompletionRequest(prompt, Sampling(max_tokens=tokens), **options)


async def collect(backend: ReferenceBackend, request: CompletionRequest) -> list[CompletionDelta]:
    return [delta async for delta in backend.complete(request)]


async def texts(backend: ReferenceBackend, request: CompletionRequest) -> list[str]:
    result = [""] * request.n
    for delta in await collect(backend, request):
        result[delta.index] += delta.text
    return result
