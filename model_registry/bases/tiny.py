# pyright: basic
# transformers has partial types, which strict mode refuses.
"""Write a base model that is random, tiny and otherwise real, for tests.

Real architecture, real files, real byte-level BPE tokenizer (Vietnamese and English), ChatML chat
template. torch and transformers are imported when it is called.
"""

import functools
import json
from pathlib import Path
from typing import Any, Literal

from model_registry.bases.tiny_text import SENTENCES

TinyArchitecture = Literal["qwen2", "qwen3", "llama", "gemma3"]

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(
    directory: Path | str,
    architecture: TinyArchitecture = "qwen2",
    layers: int = 2,
    hidden: int = 64,
    seed: int = 0,
    vocab: int = 1024,
    dtype: str = "float32",
) -> Path:
    """Write a random model of that architecture; the same arguments give the same bytes.

    Its rows of the embedding are a few more than the tokenizer's tokens, as in real models.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GenerationConfig

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokens, tokenizer_json = _tokenizer(vocab)
    _write_tokenizer(directory, tokenizer_json)

    config = _config(architecture, layers, hidden, rows=-(-(tokens + 1) // 64) * 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _make_opinionated(model)
    config.architectures = [type(model).__name__]
    config.dtype = getattr(torch, dtype)
    config.save_pretrained(directory)
    GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(directory)
    weights = {
        name: tensor.to(config.dtype).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def _make_opinionated(model: Any) -> None:
    """Draw weights that give varied, clear choices: the usual small ones make every token a tie."""
    import torch

    # Gemma multiplies embeddings by the root of the width, and its norms by one more than stored.
    is_gemma = model.config.model_type == "gemma3_text"
    root = model.config.hidden_size**0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.4 / (root if is_gemma else 1.0))
            elif parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 1.5 * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.1)
        if is_gemma:
            model.model.norm.weight.fill_(root - 1.0)


def _config(architecture: TinyArchitecture, layers: int, hidden: int, rows: int) -> Any:
    from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config

    sizes: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    match architecture:
        case "qwen2":
            return Qwen2Config(**sizes)
        case "qwen3":
            return Qwen3Config(**sizes, head_dim=hidden // 4)
        case "llama":
            return LlamaConfig(**sizes)
        case "gemma3":
            kinds = ["sliding_attention", "full_attention"]
            return Gemma3TextConfig(
                **sizes,
                head_dim=hidden // 4,
                query_pre_attn_scalar=hidden // 4,
                sliding_window=64,
                layer_types=[kinds[layer % 2] for layer in range(layers)],
            )
        case _:
            raise ValueError(f"no tiny model of architecture {architecture!r}")


@functools.cache
def _tokenizer(vocab: int) -> tuple[int, str]:
    """Number of tokens, and the content of tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[PAD, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SENTENCES, "\n".join(SENTENCES)], trainer)
    return tokenizer.get_vocab_size(), tokenizer.to_str(pretty=True)


def _write_tokenizer(directory: Path, tokenizer_json: str) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": PAD,
        "model_max_length": 4096,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
