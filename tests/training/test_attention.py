# pyright: basic
# drives torch and trl, which are typed too loosely for strict checking
"""Leaving masks away changes neither loss nor gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config import TrainingConfig
from training.fit import build_trainer
from training.model import load_base
from training.rows import IGNORED, TokenRow

Make = Callable[..., TrainingConfig]
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries warn each other of the future

LENGTHS = (9, 30, 17, 24, 5, 12)


def rows() -> list[TokenRow]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for length in LENGTHS:
        ids = torch.randint(3, 500, (length,), generator=generator).tolist()
        made.append(TokenRow(ids, [IGNORED] * (length // 2) + ids[length // 2 :]))
    return made


def first_step(trainer: Any) -> tuple[float, dict[str, Any], Any]:
    """Loss, gradients and the batch, with adapters that are not zero."""
    torch.manual_seed(0)
    model = trainer.model.train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(model, dict(batch))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, batch


def without_any_shortcut(make_config: Make, batch: Any, packing: bool) -> tuple[float, Any]:
    """The same from transformers and PEFT alone."""
    config = make_config(fit={"packing": packing, "fused_lora": False})
    base = load_base(config, device="cpu")
    trainer = build_trainer(config, base, rows(), [])
    model = trainer.model.train()
    model._forward_pre_hooks.clear()
    base.model.config._attn_implementation = "eager"
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    inputs = {
        n: v for n, v in batch.items() if n in ("input_ids", "attention_mask", "position_ids")
    }
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_gradients_are_those_with_masks(
    make_config: Make, packing: bool, fused: bool
) -> None:
    settings = {
        "packing": packing,
        "per_device_train_batch_size": 3,
        "fused_layers": fused,
        "activation_checkpointing": fused,
    }
    config = make_config(fit=settings, data={"max_length": 40})
    trainer = build_trainer(config, load_base(config, device="cpu"), rows(), [])
    found, grads, batch = first_step(trainer)
    if packing:
        assert batch["input_ids"].shape[0] == 1
        assert trainer.model.config._attn_implementation == "packed_sdpa"
    else:
        assert not batch["attention_mask"].all()
    expected, right = without_any_shortcut(make_config, batch, packing)
    assert found == pytest.approx(expected, rel=1e-5)
    for name, grad in grads.items():
        assert (grad - right[name]).norm() < 1e-4 * right[name].norm(), name


def test_left_padded_prompts_keep_their_mask(make_config: Make, tiny_base: Path) -> None:
    config = make_config(fit={"packing": True})
    base = load_base(config, device="cpu")
    prompts = [row.input_ids for row in rows()[:3]]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    model = base.model.eval()
    before = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    trainer = build_trainer(config, base, rows(), [])
    model = trainer.model.eval()
    after = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(before, after)
