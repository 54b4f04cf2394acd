# pyright: basic
# touches libraries that are typed too loosely for strict checking
"""Layers trained in halves compute what transformers and PEFT compute, forward and backward."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import training.fused_mlp as fused_mlp
from training.fused_layers import FusedLayer, fuse_layers
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
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), grads


def spy(function: Any, taken: list[int]) -> Any:
    def call(*arguments: Any) -> Any:
        taken.append(1)
        return function(*arguments)

    return call


def relative_error(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("matrices", [fused_mlp.Matrices, fused_mlp.JoinedMatrices])
def test_loss_and_gradients_are_those_of_peft(
    architecture: str,
    checkpointing: bool,
    padded: bool,
    matrices: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_mlp, "matrices", matrices)
    monkeypatch.setattr(fused_mlp, "TOKENS_AT_ONCE", 16)  # 51 tokens: four slices
    theirs = adapted_model(tmp_path, architecture, torch.float64)
    ours = copy.deepcopy(theirs)
    fuse(ours)
    assert fuse_layers(ours) == ours.config.num_hidden_layers
    ids = torch.randint(0, 500, (3, 17))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 11:] = 0
    if checkpointing:
        for model in (ours, theirs):
            model.enable_input_require_grads()
            model.activation_checkpointing_enable()
    taken = []
    monkeypatch.setattr(FusedLayer, "apply", spy(FusedLayer.apply, taken))
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
    monkeypatch.setattr(fused_mlp, "TOKENS_AT_ONCE", 40)
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


def test_the_gradients_pass_a_numerical_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.fused_attention import Norm, UntilAttention
    from training.fused_lora import Adapted, linears
    from training.fused_mlp import AfterAttention

    monkeypatch.setattr(fused_mlp, "TOKENS_AT_ONCE", 4)  # of 10 tokens
    torch.manual_seed(0)
    wide: dict[str, Any] = {"dtype": torch.float64}

    def layer(inputs: int, outputs: int, rank: int, bias: bool = False) -> Adapted:
        base = torch.nn.Linear(inputs, outputs, bias=bias, **wide).requires_grad_(False)
        a, b = torch.randn(rank, inputs, **wide), torch.randn(outputs, rank, **wide)
        return Adapted(base, a.requires_grad_(), b.requires_grad_(), 0.7)

    def norm(size: int) -> Norm:
        return Norm(torch.rand(size, **wide) + 0.5, 1e-5)

    def attend(query: Any, key: Any, value: Any) -> Any:
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)

    before = [layer(6, 8, 2, True), layer(6, 4, 3, True), layer(6, 4, 2, True)]
    after = [layer(8, 6, 2), layer(6, 10, 2), layer(6, 10, 3), layer(10, 6, 2)]
    adapters = [tensor for la in (*before, *after) for tensor in (la.a, la.b)]
    hidden = torch.randn(2, 5, 6, **wide, requires_grad=True)
    cos, sin = torch.randn(2, 1, 1, 5, 4, **wide)
    for keeps_graph in (True, False):
        heads = [norm(4), norm(4)]
        until = UntilAttention(before, norm(6), heads, 4, cos, sin, attend, keeps_graph)
        second = norm(6)
        rest = AfterAttention(after, second.weight, second.eps)

        def whole(hidden: Any, *adapters: Any, until: Any = until, rest: Any = rest) -> Any:
            return FusedLayer.apply(hidden, until, rest, False, *adapters)

        # each backward pass needs a forward pass of its own
        out = whole(hidden, *adapters)
        direction = torch.randn_like(out)
        grads = torch.autograd.grad(out, (hidden, *adapters), direction)
        for tensor, grad in zip((hidden, *adapters), grads, strict=True):
            step_along = torch.randn_like(tensor)
            with torch.no_grad():
                tensor.add_(step_along, alpha=1e-6)
                above = (whole(hidden, *adapters) * direction).sum()
                tensor.sub_(step_along, alpha=2e-6)
                below = (whole(hidden, *adapters) * direction).sum()
                tensor.add_(step_along, alpha=1e-6)
            slope = float((above - below) / 2e-6)
            assert slope == pytest.approx(float((grad * step_along).sum()), rel=1e-5, abs=1e-7)
    pair = after[1:3]
    assert torch.autograd.gradcheck(lambda x, *_: linears(x, pair), (hidden, *adapters[8:12]))


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


def test_four_bit_bases_are_read_as_bitsandbytes_reads_them(tmp_path: Path) -> None:
    import peft
    import transformers

    from model_registry.bases.tiny import write_tiny_model
    from training.model import nf4_config

    loader: Any = transformers.AutoModelForCausalLM
    path = write_tiny_model(tmp_path / "base", architecture="qwen2")
    results = []
    for fused in (False, True):
        quantized = loader.from_pretrained(
            path, dtype=torch.float32, quantization_config=nf4_config(torch.float32)
        )
        torch.manual_seed(0)
        config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        adapt: Any = peft.get_peft_model
        model: Any = adapt(quantized, config).train()
        model.config.use_cache = False
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        if fused:
            assert fuse(model) == 14
            assert fuse_layers(model) == 2
            model.base_model.model.activation_checkpointing_enable()
        ids = torch.randint(3, 500, (2, 15), generator=torch.Generator().manual_seed(1))
        results.append(step(model, ids))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    assert results[0][1].keys() == results[1][1].keys()
    for name, grad in results[1][1].items():
        assert relative_error(grad, results[0][1][name]) < 1e-4, name


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_compiled_kernels_and_flash_attention_are_as_exact_as_peft(
    architecture: str, checkpointing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_mlp, "TOKENS_AT_ONCE", 128)
    theirs = adapted_model(tmp_path, architecture, torch.bfloat16).cuda()
    ours, truth = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    fuse(ours)
    fuse_layers(ours)
    if checkpointing:
        for model in (ours, theirs):
            model.enable_input_require_grads()
            model.activation_checkpointing_enable()
    for length in (96, 130, 57):  # the second makes the compiled kernels take any length
        ids = torch.randint(0, 500, (3, length), device="cuda")
        right = step(truth, ids)[1]
        errors = []
        for model in (ours, theirs):
            grads = step(model, ids, autocast=True)[1]
            assert all(bool(torch.isfinite(grad).all()) for grad in grads.values())
            errors.append(sum(relative_error(g, right[n]) for n, g in grads.items()) / len(grads))
        assert errors[0] < errors[1] * 1.1
        for model in (ours, theirs, truth):
            model.zero_grad()
