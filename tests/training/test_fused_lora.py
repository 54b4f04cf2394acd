# pyright: basic
# touches libraries that are typed too loosely for strict checking
"""The fused layers compute what PEFT computes, forward and backward."""

import copy
from pathlib import Path

import pytest
import torch

from training.fused_lora import fuse

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns peft of its own future


@pytest.fixture
def adapted(tiny_base: Path):  # type: ignore[no-untyped-def]
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    config = peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    result = peft.get_peft_model(model, config)
    for name, parameter in result.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return result


def test_loss_and_gradients_are_those_of_peft(adapted) -> None:  # type: ignore[no-untyped-def]
    fused = copy.deepcopy(adapted)
    assert fuse(fused) == 14
    ids = torch.randint(0, 500, (3, 17))
    losses = []
    for model in (adapted, fused):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    theirs = dict(adapted.named_parameters())
    for name, parameter in fused.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


def test_the_adapter_can_still_be_switched_off(adapted) -> None:  # type: ignore[no-untyped-def]
    fuse(adapted)
    ids = torch.randint(0, 500, (1, 9))
    with torch.no_grad(), adapted.disable_adapter():
        bare = adapted(input_ids=ids).logits
        plain = adapted.unload()(input_ids=ids).logits
    torch.testing.assert_close(bare, plain)
