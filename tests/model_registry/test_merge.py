# pyright: basic
# torch, transformers and peft are typed too loosely for strict checking.
"""Merged weights against PEFT's own arithmetic on a tiny random model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model

from model_registry import ModelRegistry
from model_registry.bases import fingerprint_of
from model_registry.bases.tiny import write_tiny_model
from model_registry.errors import (
    BaseMismatchError,
    InvalidAdapterError,
    MergeError,
    VariantNotFoundError,
)
from model_registry.merge import merge_adapter, quantized_modules, require_unpacked
from model_registry.nf4 import Nf4RoundTrip
from model_registry.probe import probe_logit_change

# PEFT asks transformers for an attribute that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random base model."""
    return write_tiny_model(tmp_path_factory.mktemp("base") / "tiny", hidden=64, layers=2)


def write_lora(
    base: Path, directory: Path, seed: int = 0, std: float = 0.05, **settings: Any
) -> Path:
    """A random adapter that changes something."""
    torch.manual_seed(seed)
    model = _load(base)
    options = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **settings}
    peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    peft_model.save_pretrained(str(directory))
    return directory


def _load(directory: Path, **options: Any) -> Any:
    options.setdefault("dtype", torch.float32)
    return transformers.AutoModelForCausalLM.from_pretrained(directory, **options)


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 105)[None]).logits.float().log_softmax(-1)


def _divergence(model: torch.Tensor, reference: torch.Tensor) -> float:
    """KL divergence per token."""
    return float((reference.exp() * (reference - model)).sum(-1).mean())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 32}},
        {"target_modules": ["v_proj"]},
    ],
)
def test_a_merge_onto_the_original_is_the_adapter(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = write_lora(base, tmp_path / "adapter", **settings)
    (tmp_path / "merged").mkdir()
    result = merge_adapter(base, adapter, tmp_path / "merged", dtype="fp16")
    expected = _logits(PeftModel.from_pretrained(_load(base), str(adapter)))
    merged = _logits(_load(tmp_path / "merged"))
    assert _divergence(merged, expected) < 1e-4
    assert _divergence(_logits(_load(base)), expected) > 0.01
    assert result.modules == (2 if settings.get("target_modules") else 14)
    assert 0 < result.relative_change < 1
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "float16"
    transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")


def test_a_merge_onto_dequantized_weights_is_the_adapter_on_nf4(base: Path, tmp_path: Path) -> None:
    adapter = write_lora(base, tmp_path / "adapter", seed=1)
    record = {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float32",
    }
    for onto in ("dequantized", "original"):
        (tmp_path / onto).mkdir()
        merge_adapter(base, adapter, tmp_path / onto, onto=onto, quantization=record)
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    on_nf4 = _load(base, quantization_config=config, device_map={"": "cpu"})
    expected = _logits(PeftModel.from_pretrained(on_nf4, str(adapter)).train())
    exact = _divergence(_logits(_load(tmp_path / "dequantized")), expected)
    other = _divergence(_logits(_load(tmp_path / "original")), expected)
    assert exact < 1e-4
    assert other > 0.001


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("nested", [True, False])
def test_the_table_is_bitsandbytes_bit_for_bit(dtype: torch.dtype, nested: bool) -> None:
    torch.manual_seed(0)
    bounds, _ = _get_4bit_quantize_bounds("nf4", torch.device("cpu"))
    # Values at the boundaries and one step beside them, in blocks whose largest value is 1.
    edges = torch.cat([torch.nextafter(bounds, bounds - side) for side in (-1, 0, 1)] + [bounds])
    edges = torch.nn.functional.pad(edges, (0, 63 - len(edges) % 64), value=0.3)
    edges = torch.cat([torch.ones(1), edges])
    matrices = [
        torch.randn(512, 640) * 0.02,
        torch.randn(3, 64) * torch.tensor([[1e-30], [1.0], [1e4]]),
        torch.zeros(2, 64),
        edges.view(-1, 64),
        torch.randn(5, 13),
    ]
    for matrix in matrices:
        weight = matrix.to(dtype).clamp(-6e4, 6e4)
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
        expected = dequantize_4bit(packed, state)
        assert torch.equal(Nf4RoundTrip(dtype, nested=nested)(weight), expected)


def test_a_model_repacked_by_a_forward_pass_is_refused(base: Path) -> None:
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = _load(base, quantization_config=config, device_map={"": "cpu"})
    require_unpacked(model)
    # What bitsandbytes does on CPUs with AVX512-BF16; done by hand, so that every CPU tests it.
    weight = model.model.layers[0].self_attn.q_proj.weight
    weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(MergeError, match="repacked"):
        require_unpacked(model)


def test_the_output_matrix_is_not_quantised(base: Path) -> None:
    modules = quantized_modules(base)
    assert "lm_head" not in modules
    assert len(modules) == 14


def test_a_quantised_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = write_lora(base, tmp_path / "adapter")
    copy = tmp_path / "quantised"
    copy.mkdir()
    for file in base.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    (tmp_path / "out").mkdir()
    with pytest.raises(MergeError, match="quantized_base"):
        merge_adapter(copy, adapter, tmp_path / "out")


def test_values_beyond_fp16_are_refused_and_fit_bf16(base: Path, tmp_path: Path) -> None:
    adapter = write_lora(base, tmp_path / "adapter", std=100, lora_alpha=99_999)
    for name in ("fp16", "bf16"):
        (tmp_path / name).mkdir()
    with pytest.raises(MergeError, match="fp16_range"):
        merge_adapter(base, adapter, tmp_path / "fp16", dtype="fp16")
    merge_adapter(base, adapter, tmp_path / "bf16", dtype="bf16")


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other", hidden=32, layers=2)
    adapter = write_lora(other, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    with pytest.raises(MergeError, match="unknown_tensor"):
        merge_adapter(base, adapter, tmp_path / "out")


def test_a_probe_sees_whether_an_adapter_acts(base: Path, tmp_path: Path) -> None:
    adapter = write_lora(base, tmp_path / "adapter")
    assert probe_logit_change(base, adapter) > 0.01
    idle = write_lora(base, tmp_path / "idle", std=0.0)
    with pytest.raises(InvalidAdapterError, match="no_effect"):
        probe_logit_change(base, idle)


def test_a_replaced_module_replaces_its_weights(base: Path, tmp_path: Path) -> None:
    adapter = write_lora(base, tmp_path / "adapter", modules_to_save=["up_proj"],
                         target_modules=["q_proj"])  # fmt: skip
    (tmp_path / "out").mkdir()
    merge_adapter(base, adapter, tmp_path / "out")
    expected = _logits(PeftModel.from_pretrained(_load(base), str(adapter)))
    assert _divergence(_logits(_load(tmp_path / "out")), expected) < 1e-4


def test_a_variant_lies_beside_its_version(base: Path, tmp_path: Path) -> None:
    registry = ModelRegistry.open(tmp_path / "registry")
    adapter = write_lora(base, tmp_path / "adapter")
    version = registry.publish(
        "mcq",
        adapter,
        prompt_format="chat/1",
        base=fingerprint_of(base),
        precision="bf16",
        base_directory=base,
    )
    with pytest.raises(VariantNotFoundError):
        registry.variant("mcq/1")
    variant = registry.merge("mcq/1", base)
    assert variant.kind == "original-fp16"
    assert registry.merge("mcq/1", base).digest == variant.digest
    assert registry.merge("mcq/1", base, dtype="bf16").kind == "original-bf16"
    assert registry.variant("mcq/1") == variant
    directory = registry.fetch_variant(variant)
    reference = _logits(PeftModel.from_pretrained(_load(base), str(registry.fetch(version))))
    assert _divergence(_logits(_load(directory)), reference) < 1e-4
    measured = registry.record_fidelity("mcq/1", "original-fp16", {"kl": 0.0001})
    assert measured.digest != variant.digest
    assert registry.variant("mcq/1").manifest.fidelity == {"kl": 0.0001}
    assert registry.snapshot().variants["mcq", 1]["original-fp16"].digest == measured.digest
    with pytest.raises(MergeError, match="wrong_base"):
        registry.merge("mcq/1", base, onto="dequantized")
    other = write_tiny_model(tmp_path / "other", seed=3)
    with pytest.raises(BaseMismatchError):
        registry.merge("mcq/1", other)
