# pyright: basic
# transformers and gguf have partial types, which strict mode refuses.
"""A GGUF file to a safetensors directory in bf16, once, a tensor at a time.

transformers can load a GGUF file, but holds the whole model in 32 bits while it does, at every
start. This reads the same file through its name map and its tensor processors, and writes shards,
so that the peak is one shard. torch and transformers are imported when it is called.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from model_registry.bases.errors import ConversionError
from model_registry.bases.files import end_token_ids
from model_registry.bases.gguf_file import open_gguf, shared_with_transformers, text_field

if TYPE_CHECKING:
    import torch

CONVERSION = "c1"
"""Part of the names of converted models: a change of the result below makes them anew."""

_SHARD_BYTES = 800_000_000
_CHUNK_VALUES = 200_000
_EMBEDDING, _OUTPUT, _ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"


def convert_gguf(path: Path, directory: Path, *, progress: bool = True) -> None:
    """Write the model, its tokenizer, and its generation config into an empty directory.

    Raises:
        ConversionError: The file is damaged, or of an architecture that cannot be converted.
    """
    reader = open_gguf(path)
    with shared_with_transformers(reader):
        _convert(reader, path, directory, progress)


def _convert(reader: Any, path: Path, directory: Path, progress: bool) -> None:
    from transformers import AutoConfig, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor
    from transformers.utils import logging

    logging.set_verbosity_error()
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    try:
        architecture = text_field(reader, "general.architecture")
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ValueError, KeyError, NotImplementedError, OSError) as error:
        raise ConversionError(path, f"transformers cannot read it: {_one_line(error)}") from error

    _restore_rope_scaling(config, tensors)
    unused = {_ROPE} | _tie_output_matrix(config, tensors)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    names, shapes = _names_and_shapes(config, processor)
    plan: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name not in unused:
            target = names.get(name)
            if target not in shapes:
                raise ConversionError(path, f"its tensor {name} has no place in {architecture}")
            plan[target] = tensor
    if missing := sorted(set(shapes) - set(plan)):
        raise ConversionError(path, f"it has no tensor for {missing[0]} ({len(missing)} missing)")

    _write_shards(path, directory, plan, shapes, processor, progress)
    _write_settings(directory, config, tokenizer)


def _names_and_shapes(
    config: Any, processor: Any
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Our name of each GGUF tensor, and the shape of each parameter that is to be filled."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        for tied in model._tied_weights_keys or ():
            shapes.pop(tied, None)
    return get_gguf_hf_weights_map(model, processor), shapes


def _restore_rope_scaling(config: Any, tensors: dict[str, Any]) -> None:
    """Llama 3.1 and later: GGUF keeps the scaling as a tensor, which transformers ignores."""
    if _ROPE not in tensors or config.model_type != "llama":
        return
    config.rope_parameters = {
        **(getattr(config, "rope_parameters", None) or {}),
        "rope_type": "llama3",
        "factor": float(tensors[_ROPE].data.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _tie_output_matrix(config: Any, tensors: dict[str, Any]) -> set[str]:
    """Find out whether the output matrix is the token embedding in another quantisation.

    Then one matrix serves as both, the finer of the two copies, which saves its memory; the other
    copy's name is returned. `tensors` is changed so that the embedding holds the finer one.
    """
    if _OUTPUT not in tensors:
        config.tie_word_embeddings = True
        return set()
    embedding, output = tensors[_EMBEDDING], tensors[_OUTPUT]
    config.tie_word_embeddings = _are_alike(embedding, output)
    if not config.tie_word_embeddings:
        return set()
    if output.n_bytes > embedding.n_bytes:
        tensors[_EMBEDDING] = output
    return {_OUTPUT}


def _are_alike(one: Any, other: Any) -> bool:
    if tuple(one.shape) != tuple(other.shape):
        return False
    rows = one.data.shape[0]
    sample = range(0, rows, max(1, rows // 256))
    a, b = (_dequantize(tensor, list(sample)).flatten().double() for tensor in (one, other))
    # Two quantisations of one matrix differ by a few percent; two matrices by 140 %.
    return bool((a - b).norm() < 0.3 * b.norm())


def _dequantize(tensor: Any, rows: Any) -> "torch.Tensor":
    import torch
    from gguf import dequantize

    return torch.from_numpy(dequantize(tensor.data[rows], tensor.tensor_type).copy())


def _to_bf16(tensor: Any, processor: Any, path: Path) -> "torch.Tensor":
    import torch

    rows, width = tensor.data.shape[0], int(tensor.shape[0])
    if tensor.data.ndim == 1:
        values = _dequantize(tensor, slice(None))
    else:
        # By rows: numpy makes many temporaries, which should fit the processor's cache. The
        # vocabulary matrices, a gigabyte in 32 bits, are rounded on the way; nothing reorders them.
        whole = tensor.name in (_EMBEDDING, _OUTPUT)
        shape = (*tensor.data.shape[:-1], width)
        values = torch.empty(shape, dtype=torch.bfloat16 if whole else torch.float32)
        step = max(1, _CHUNK_VALUES // width)
        for start in range(0, rows, step):
            values[start : start + step] = _dequantize(tensor, slice(start, start + step))
        if whole:
            return values
    processed = processor.process(weights=values.numpy(), name=tensor.name)
    if processed.weights is None:
        raise ConversionError(path, "mixture-of-experts files are not supported")
    return torch.from_numpy(processed.weights.copy()).to(torch.bfloat16)


def _write_shards(
    path: Path,
    directory: Path,
    plan: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    processor: Any,
    progress: bool,
) -> None:
    import math

    from safetensors.torch import save_file

    shards: list[list[str]] = [[]]
    filled = 0
    for name in sorted(plan):
        size = 2 * math.prod(shapes[name])
        if filled and filled + size > _SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size

    def convert(name: str) -> "torch.Tensor":
        tensor = _to_bf16(plan[name], processor, path)
        if tuple(tensor.shape) != shapes[name]:
            raise ConversionError(path, f"{name} is {tuple(tensor.shape)}, not {shapes[name]}")
        bar.update()
        return tensor

    weight_map: dict[str, str] = {}
    with (
        tqdm(
            desc=f"Converting {path.stem}", total=len(plan), unit="tensor", disable=not progress
        ) as bar,
        ThreadPoolExecutor(2) as pool,  # numpy releases the interpreter; more threads, more memory
    ):
        for number, names in enumerate(shards, start=1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
            name = "model.safetensors" if len(shards) == 1 else name
            content = dict(zip(names, pool.map(convert, names), strict=True))
            save_file(content, directory / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(names, name))
    if len(shards) > 1:
        total = sum(2 * math.prod(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _write_settings(directory: Path, config: Any, tokenizer: Any) -> None:
    import torch

    tokenizer.save_pretrained(directory)
    config.dtype = torch.bfloat16
    vars(config).pop("_model_name_or_path", None)  # of whoever made the file; says nothing here
    config.save_pretrained(directory)
    ends = end_token_ids(directory)
    vocabulary = tokenizer.get_vocab()
    if ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
        # A pad that is also the end would teach a fine-tuned model never to stop.
        padding = next(
            (
                token
                for token in (tokenizer.pad_token, "<|endoftext|>", "<pad>", tokenizer.unk_token)
                if token in vocabulary and vocabulary[token] != ends[0]
            ),
            tokenizer.pad_token,
        )
        tokenizer.pad_token = padding
        tokenizer.save_pretrained(directory)
    config.eos_token_id = list(ends) if len(ends) > 1 else next(iter(ends), None)
    config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(directory)
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    content = {key: value for key, value in generation.items() if value is not None}
    _write_json(directory / "generation_config.json", content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
