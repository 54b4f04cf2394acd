# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""Logits of a 16-bit model by the engine, and of the same weights widened by transformers."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from service.engine.loading import open_engine
from service.engine.runner import Part
from tests.service.engine.conftest import SIZES
from tests.service.engine.driving import prompt_of


def first_logits(base: Path) -> tuple[torch.Tensor, torch.Tensor]:
    prompt = prompt_of(20)
    opened = open_engine(base, "bf16", SIZES)
    runner = opened.engine._runner
    with torch.inference_mode():
        ours = opened.engine.call(lambda: runner._forward([Part(0, 0, prompt)])).result()[0]
    opened.engine.close()
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).float()
    with torch.inference_mode():
        theirs = model(torch.tensor([prompt])).logits[0, -1]
    return ours, theirs
