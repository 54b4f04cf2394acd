"""The files of a model directory, read as JSON and bytes: no torch, no transformers.

What a base model must bring: `config.json`, weights as safetensors, `tokenizer.json`.
"""

import json
from pathlib import Path
from typing import Any, Literal, cast

from model_registry.bases.errors import IncompleteBaseModelError

# How chat templates end a turn, by family: Qwen and SmolLM, Llama 3, Gemma, Phi, Mistral.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|endofturn|>")


def stored_precision(directory: Path) -> Literal["fp16", "bf16"]:
    """The 16-bit precision that loses least of the files' own: `fp16` if they are that."""
    config = read_optional_json(directory, "config.json")
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    return "fp16" if dtype.endswith("float16") and not dtype.endswith("bfloat16") else "bf16"


def require_complete(directory: Path) -> None:
    """Check that the directory is a base model.

    Raises:
        IncompleteBaseModelError: A file is missing; the error names it.
    """
    read_json(directory, "config.json", "point at the directory of a Hugging Face model")
    if not weight_files(directory):
        raise IncompleteBaseModelError(
            directory, "*.safetensors", "convert its weights: pickled ones (.bin) are not loaded"
        )
    read_json(
        directory,
        "tokenizer.json",
        "save one beside the weights with AutoTokenizer.from_pretrained(...).save_pretrained(...)",
    )


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of the model; an index, where there is one, says which."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(directory.glob("*.safetensors"))
    names = set(read_json(directory, index.name, "")["weight_map"].values())
    for name in sorted(names):
        if not (directory / name).is_file():
            raise IncompleteBaseModelError(directory, name, "its download was cut short: repeat it")
    return [directory / name for name in sorted(names)]


def read_json(directory: Path, name: str, remedy: str) -> dict[str, Any]:
    """A JSON file of the model that must be there."""
    try:
        content: object = json.loads((directory / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IncompleteBaseModelError(directory, name, remedy) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise IncompleteBaseModelError(directory, f"readable {name} ({error})", remedy) from error
    if not isinstance(content, dict):
        raise IncompleteBaseModelError(directory, f"readable {name} (no JSON object)", remedy)
    return cast("dict[str, Any]", content)


def read_optional_json(directory: Path, name: str) -> dict[str, Any]:
    """A JSON file of the model that may be missing; then it is empty."""
    return read_json(directory, name, "repair it") if (directory / name).is_file() else {}


def chat_template(directory: Path) -> str | None:
    """The default chat template, from wherever this model keeps it."""
    template_file = directory / "chat_template.jinja"
    if template_file.is_file():
        return template_file.read_text(encoding="utf-8")
    template: Any = read_optional_json(directory, "tokenizer_config.json").get("chat_template")
    if not isinstance(template, list):
        return template
    # Several named ones, of which transformers takes `default`.
    entries = cast("list[dict[str, str]]", template)
    return {entry["name"]: entry["template"] for entry in entries}.get("default")


def end_token_ids(directory: Path) -> tuple[int, ...]:
    """Every token that ends a completion: the tokenizer's, the template's, the model's own.

    The end of a turn comes first. Generation runs on if only one of them is known: a GGUF file
    carries no generation config, and many tokenizers name an end that the template never writes.
    """
    vocabulary = _special_ids(directory)
    template = chat_template(directory) or ""
    ids = [vocabulary[end] for end in _TURN_ENDS if end in template and end in vocabulary]
    eos: Any = read_optional_json(directory, "tokenizer_config.json").get("eos_token")
    if isinstance(eos, dict):
        eos = cast("dict[str, Any]", eos).get("content")
    if eos in vocabulary:
        ids.append(vocabulary[eos])
    for name in ("generation_config.json", "config.json"):
        known = read_optional_json(directory, name).get("eos_token_id")
        ids += known if isinstance(known, list) else [known] if isinstance(known, int) else []
    return tuple(dict.fromkeys(ids))


def _special_ids(directory: Path) -> dict[str, int]:
    tokenizer = read_json(directory, "tokenizer.json", "")
    return {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
