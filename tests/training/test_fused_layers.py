# pyright: basic
# touches libraries that are typed too loosely for strict checking
"""Layers trained in halves compute what transformers and PEFT compute, forward and backward."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import training.fused_layers as fused_layers
from training.fused_layers import fuse_layers
from training.fused_lora import fuse

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns peft of its own future


def adapted_model(directory: Path, architecture: str, dtype: Any, **settings: Any) -> Any:
    import peft
    import transformers

    from model_registry.bases.tiny import write_tiny_model

    path = write_tiny_model(directory / architecture, architecture=architecture)  # type: ignore[arg-type]
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    values = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **settings}
    torch.manual_seed(0)
    result = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **values))
    for name, parameter in result.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "norm.weight" in name or "layernorm.weight" in name or "proj.bias" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
        if parameter.requires_grad and dtype is not torch.float64:
            parameter.data = parameter.data.float()
    result.config.use_cache = False
    return result.train()


def step(model: Any, ids: Any, mask: Any = None, *, autocast: bool = False) -> tuple[float, Any]:
    labels = ids if mask is None else ids.masked_fill(mask == 0, -100)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), grads


def relative_error(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("matrices", [fused_layers.Matrices, fused_layers.JoinedMatrices])
def test_loss_and_gradients_are_those_of_peft(
    architecture: str,
    checkpointing: bool,
    matrices: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_layers, "matrices", matrices)
    monkeypatch.setattr(fused_layers, "TOKENS_AT_ONCE", 16)  # 51 tokens: four slices
    theirs = adapted_model(tmp_path, architecture, torch.float64)
    ours = copy.deepcopy(theirs)
    fuse(ours)
    assert fuse_layers(ours) == ours.config.num_hidden_layers
    ids = torch.randint(0, 500, (3, 17))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    if checkpointing:
        for model in (ours, theirs):
            model.enable_input_require_grads()
            model.activation_checkpointing_enable()
    taken = []
    monkeypatch.setattr(
        fused_layers,
        "after_attention",
        lambda *args, after=fused_layers.after_attention, **kw: (
            taken.append(1) or after(*args, **kw)
        ),
    )
    loss, grads = step(ours, ids, mask)
    assert len(taken) == ours.config.num_hidden_layers
    expected, expected_grads = step(theirs, ids, mask)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert grads.keys() == expected_grads.keys()
    assert len(grads) == 14 * ours.config.num_hidden_layers
    for name, grad in grads.items():
        assert relative_error(grad, expected_grads[name]) < 1e-5, name


@pytest.mark.parametrize("checkpointing", [True, False])
def test_under_bf16_autocast_the_error_is_no_larger_than_pefts(
    checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 adapters on a 16-bit base, as on a GPU; the truth is the same model in 64 bits."""
    monkeypatch.setattr(fused_layers, "TOKENS_AT_ONCE", 40)
    theirs = adapted_model(tmp_path, "qwen2", torch.bfloat16)
    ours, linear, truth = (copy.deepcopy(theirs) for _ in range(3))
    truth = truth.double()
    fuse(linear)
    fuse(ours)
    fuse_layers(ours)
    if checkpointing:
        for model in (ours, linear, theirs):
            model.enable_input_require_grads()
            model.activation_checkpointing_enable()
    ids = torch.randint(0, 500, (3, 33), generator=torch.Generator().manual_seed(0))
    right_loss, right = step(truth, ids)
    errors = {}
    for kind, model in {"peft": theirs, "linear": linear, "halves": ours}.items():
        loss, grads = step(model, ids, autocast=True)
        assert loss == pytest.approx(right_loss, rel=1e-2)
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
        errors[kind] = sum(relative_error(g, right[n]) for n, g in grads.items()) / len(grads)
    assert errors["peft"] < 0.1
    assert errors["linear"] < errors["peft"] * 1.1
    assert errors["halves"] < errors["peft"] * 1.1


def test_the_functions_pass_a_numerical_check_of_their_gradients() -> None:
    from training.fused_lora import Adapted, linears

    torch.manual_seed(0)

    def layer(inputs: int, outputs: int, rank: int) -> Adapted:
        base = torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
        base.requires_grad_(False)
        a, b = (
            torch.randn(*size, dtype=torch.float64) for size in ((rank, inputs), (outputs, rank))
        )
        return Adapted(base, a.requires_grad_(), b.requires_grad_(), 0.7)

    norm = torch.nn.RMSNorm(6, eps=1e-5, dtype=torch.float64).requires_grad_(False)
    setattr(norm, "variance_epsilon", 1e-5)  # noqa: B010 as transformers names it
    norm.weight.copy_(torch.rand(6, dtype=torch.float64) + 0.5)
    layers = [layer(4, 6, 2), layer(6, 10, 2), layer(6, 10, 3), layer(10, 6, 2)]
    adapters = [tensor for la in layers for tensor in (la.a, la.b)]
    attended = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    half = lambda attended, residual, *_: fused_layers.after_attention(  # noqa: E731 one call
        attended, residual, norm, layers, keep=False
    )
    assert torch.autograd.gradcheck(half, (attended, residual, *adapters))
    open_pair = layers[1:3]
    assert torch.autograd.gradcheck(lambda x, *_: linears(x, open_pair), (residual, *adapters[2:6]))


def test_evaluation_and_generation_take_transformers_own_layers(tmp_path: Path) -> None:
    model = adapted_model(tmp_path, "qwen2", torch.float32)
    ids = torch.randint(3, 500, (2, 9))
    before = model.eval()(input_ids=ids).logits
    assert fuse_layers(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert model.generate(input_ids=ids, max_new_tokens=3, do_sample=False).shape == (2, 12)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("gemma3", {}),
        ("qwen2", {"target_modules": ["q_proj", "v_proj"]}),
    ],
)
def test_layers_of_another_kind_are_left_alone(
    architecture: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert fuse_layers(adapted_model(tmp_path, architecture, torch.float32, **settings)) == 0


def test_dropout_and_dora_take_pefts_path(tmp_path: Path) -> None:
    ids = torch.randint(3, 500, (2, 9))
    for settings in ({"lora_dropout": 0.1}, {"use_dora": True}):
        theirs = adapted_model(tmp_path, "qwen2", torch.float32, **settings)
        ours = copy.deepcopy(theirs)
        fuse(ours)
        fuse_layers(ours)
        results = []
        for model in (ours, theirs):
            torch.manual_seed(1)
            results.append(step(model, ids))
        assert results[0][0] == results[1][0]
        for name, grad in results[0][1].items():
            torch.testing.assert_close(grad, results[1][1][name])
