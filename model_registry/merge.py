# pyright: basic
# torch and bitsandbytes are typed too loosely for strict checking.
"""An adapter added into the weights of its base, straight from file to file.

Per module: read W, turn it through NF4 and back when the adapter was trained on that, add s·B·A in
fp32, round once to the output's dtype. There is no loaded model that could have been changed by a
forward pass, only one tensor is in memory at a time, and nothing is ever rounded into 4 bits again
(which would erase the adapter: docs/merging.md).
"""

import importlib.metadata
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry.errors import MergeError
from model_registry.peft_config import pattern_value, read_peft_config, target_matches
from model_registry.safetensors_header import TensorInfo, read_header
from model_registry.shards import (
    PlannedTensor,
    ShardWriter,
    plan_shards,
    rows_per_chunk,
    write_index,
)
from model_registry.staging import CONFIG, WEIGHTS
from model_registry.variants import MergeDtype, Onto

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_FLOATS = ("F16", "BF16", "F32")
_NAMES = {"fp16": "F16", "bf16": "BF16"}
_FP16_MAX = 65504.0
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MergeResult:
    """What a merge did."""

    modules: int
    relative_change: float
    seconds: float
    made_with: dict[str, str]


@dataclass(frozen=True)
class _Source:
    """A tensor in a file."""

    path: Path
    info: TensorInfo


def merge_adapter(
    base_directory: Path,
    adapter_directory: Path,
    output: Path,
    *,
    dtype: MergeDtype = "fp16",
    onto: Onto = "original",
    quantization: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Write the merged model into an empty directory, loadable by transformers and vLLM.

    `onto="dequantized"` takes the base's weights as an NF4 load shows them to the adapter;
    `quantization` is the manifest's record of that load.

    Raises:
        MergeError: The base is itself quantised, a tensor has no place, or fp16 cannot hold a
        value.
    """
    import torch

    started = time.monotonic()
    config = _base_config(base_directory)
    base = _sources(base_directory)
    adapter = _Adapter(adapter_directory)
    adapter.check_places(base)
    load = nf4_round_trip(base_directory, quantization) if onto == "dequantized" else None
    planned = [
        PlannedTensor(name, _NAMES[dtype], source.info.shape) for name, source in base.items()
    ]
    shards = plan_shards(planned)
    total, done = sum(tensor.size for tensor in planned), 0
    change = _Change()
    target = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for shard in shards:
        writer = ShardWriter(output, shard)
        try:
            for tensor in shard.tensors:
                for part in _merged(tensor.name, base[tensor.name], adapter, load, change):
                    writer.write(_bytes(_rounded(part, target, tensor.name)))
                done += tensor.size
                if progress is not None:
                    progress(done, total)
            writer.close()
        except BaseException:
            writer.abort()
            raise
    write_index(output, shards)
    _write_settings(base_directory, output, config, dtype)
    return MergeResult(
        modules=change.modules,
        relative_change=change.relative(),
        seconds=time.monotonic() - started,
        made_with=_versions(onto),
    )


def require_unpacked(model: Any) -> None:
    """Refuse a loaded model whose 4-bit weights were laid out anew for a CPU.

    bitsandbytes does so at the first forward pass in eval mode on CPUs with AVX512-BF16;
    dequantising or merging such a model returns garbage without an exception.

    Raises:
        MergeError: Load the model afresh and run nothing through it before.
    """
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            raise MergeError(
                "repacked", f"{name} was repacked by a forward pass on a CPU; load it afresh"
            )


class _Change:
    """How much the merge changed, summed over modules."""

    def __init__(self) -> None:
        self.modules = 0
        self._delta = 0.0
        self._weight = 0.0

    def add(self, delta: "torch.Tensor", weight: "torch.Tensor") -> None:
        # A dot product with itself: no squared copy of a matrix of millions.
        self._delta += float(delta.view(-1).dot(delta.view(-1)))
        self._weight += float(weight.reshape(-1).dot(weight.reshape(-1)))

    def relative(self) -> float:
        return (self._delta / self._weight) ** 0.5 if self._weight else 0.0


class _Adapter:
    """The tensors of an adapter by the parameter of the base that they belong to."""

    def __init__(self, directory: Path) -> None:
        self._config = read_peft_config((directory / CONFIG).read_bytes())
        path = directory / WEIGHTS
        saved = self._config.get("modules_to_save") or []
        self._low_rank: dict[str, dict[str, _Source]] = {}
        self._whole: dict[str, _Source] = {}
        for key, info in read_header(path).items():
            name = key.removeprefix(_PREFIX)
            for side in "AB":
                module = name.removesuffix(f".lora_{side}.weight")
                if module != name:
                    pair = self._low_rank.setdefault(f"{module}.weight", {})
                    pair[side] = _Source(path, info)
                    break
            else:
                if not target_matches(saved, name.rpartition(".")[0]):
                    raise MergeError("unknown_tensor", f"{key} belongs to no module")
                self._whole[name] = _Source(path, info)

    def check_places(self, base: Mapping[str, _Source]) -> None:
        """Every tensor has a parameter of the same shape to go to."""
        for name, pair in self._low_rank.items():
            shape = (pair["B"].info.shape[0], pair["A"].info.shape[1])
            if name not in base or base[name].info.shape != shape:
                raise MergeError("unknown_tensor", f"the base has no {name} of shape {shape}")
        for name, source in self._whole.items():
            if name in base and base[name].info.shape == source.info.shape:
                continue
            # A tied output matrix has no tensor in the base; its twin carries the change.
            if name != "lm_head.weight" or "model.embed_tokens.weight" not in self._whole:
                raise MergeError("unknown_tensor", f"the base has no {name} to replace")

    def whole(self, name: str) -> _Source | None:
        return self._whole.get(name)

    def low_rank(self, name: str) -> "tuple[torch.Tensor, torch.Tensor, float] | None":
        """A, B and the scale of a parameter's change."""
        pair = self._low_rank.get(name)
        if pair is None:
            return None
        module = name.removesuffix(".weight")
        rank = pair["A"].info.shape[0]
        alpha = pattern_value(
            self._config.get("alpha_pattern") or {}, module, self._config["lora_alpha"]
        )
        scale = alpha / (rank**0.5 if self._config.get("use_rslora") else rank)
        return _read(pair["A"]).float(), _read(pair["B"]).float(), scale


def _merged(
    name: str,
    source: _Source,
    adapter: _Adapter,
    load: "Callable[[str, torch.Tensor], torch.Tensor] | None",
    change: _Change,
) -> "Iterator[torch.Tensor]":
    """The new values of one parameter in fp32, in chunks of rows."""
    replaced = adapter.whole(name)
    pair = adapter.low_rank(name)
    if replaced is not None or (pair is None and load is None):
        origin = replaced or source
        for rows in rows_per_chunk(origin.info.shape):
            yield _read(origin, rows).float()
        return
    # Double quantisation takes the mean over a whole matrix, so here the matrix comes whole.
    weight = _read(source)
    if load is not None:
        weight = load(name, weight)
    if pair is not None:
        change.modules += 1
    for start, end in rows_per_chunk(source.info.shape):
        part = weight[start:end].float() if weight.dim() else weight.float()
        if pair is not None:
            a, b, scale = pair
            delta = (b[start:end] @ a).mul_(scale)
            change.add(delta, part)
            part = delta.add_(part)
        yield part


def nf4_round_trip(
    base_directory: Path, quantization: Mapping[str, Any] | None
) -> "Callable[[str, torch.Tensor], torch.Tensor]":
    """What a parameter looks like through an NF4 load: a function of its name and values."""
    import torch

    from model_registry.nf4 import Nf4RoundTrip

    record = dict(quantization or {})
    kind = record.get("bnb_4bit_quant_type", "nf4")
    seen = str(record.get("bnb_4bit_compute_dtype", "bfloat16")).removeprefix("torch.")
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if kind != "nf4" or seen not in dtypes:
        raise MergeError("bad_record", f"quantisation {kind} with {seen} is not known")
    turn = Nf4RoundTrip(dtypes[seen], nested=bool(record.get("bnb_4bit_use_double_quant", True)))
    linear = quantized_modules(base_directory)

    def load(name: str, weight: "torch.Tensor") -> "torch.Tensor":
        return turn(weight) if name.removesuffix(".weight") in linear else weight

    return load


def quantized_modules(base_directory: Path) -> frozenset[str]:
    """The modules that transformers quantises when it loads this base in 4 bits."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.quantizers.base import get_keys_to_not_convert

    config = AutoConfig.from_pretrained(base_directory, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    skipped = get_keys_to_not_convert(model)
    return frozenset(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not any(name == key or name.startswith(f"{key}.") for key in skipped)
    )


def _read(source: _Source, rows: tuple[int, int] | None = None) -> "torch.Tensor":
    """A tensor, or some of its rows, by plain reads: mapped pages would pile up in memory."""
    import torch

    info = source.info
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[info.dtype]
    start, end, shape = info.start, info.end, info.shape
    if rows is not None and shape:
        stride = (info.end - info.start) // max(1, shape[0])
        start, end = info.start + rows[0] * stride, info.start + rows[1] * stride
        shape = (rows[1] - rows[0], *shape[1:])
    data = bytearray(end - start)
    with source.path.open("rb", buffering=0) as file:
        file.seek(start)
        view = memoryview(data)
        while view:
            count = file.readinto(view)
            if not count:
                raise MergeError("bad_base", f"{source.path.name} ended early")
            view = view[count:]
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(shape)


def _rounded(values: "torch.Tensor", dtype: "torch.dtype", name: str) -> "torch.Tensor":
    import torch

    low, high = values.aminmax() if values.numel() else (values.new_zeros(()),) * 2
    largest = max(-float(low), float(high))
    if not math.isfinite(float(low)) or not math.isfinite(float(high)):
        raise MergeError("not_finite", f"{name} is not finite")
    if dtype == torch.float16 and largest > _FP16_MAX:
        raise MergeError("fp16_range", f"{name} reaches {largest:.0f}, too much for fp16; use bf16")
    return values.to(dtype)


def _bytes(values: "torch.Tensor") -> memoryview:
    import torch

    array: Any = values.contiguous().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _sources(directory: Path) -> dict[str, _Source]:
    result: dict[str, _Source] = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, info in read_header(path).items():
            if info.dtype not in _FLOATS:
                raise MergeError("quantized_base", f"{name} is {info.dtype}; take 16-bit weights")
            result[name] = _Source(path, info)
    if not result:
        raise MergeError("bad_base", f"{directory} holds no safetensors file")
    return result


def _base_config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise MergeError("bad_base", f"{directory} holds no readable config.json") from error
    if config.get("quantization_config"):
        raise MergeError(
            "quantized_base",
            f"{directory} holds quantised weights; merging into them would erase the adapter",
        )
    return config


def _write_settings(
    base_directory: Path, output: Path, config: dict[str, Any], dtype: MergeDtype
) -> None:
    config = {key: value for key, value in config.items() if key != "torch_dtype"}
    config["dtype"] = {"fp16": "float16", "bf16": "bfloat16"}[dtype]
    (output / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for name in _COPIED:
        if (base_directory / name).is_file():
            shutil.copyfile(base_directory / name, output / name)


def _versions(onto: Onto) -> dict[str, str]:
    names = ["torch", "bitsandbytes", "transformers"] if onto == "dequantized" else ["torch"]
    return {name: importlib.metadata.version(name) for name in names}
