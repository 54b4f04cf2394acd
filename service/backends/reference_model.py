# pyright: basic
# transformers' and PEFT's models are typed too loosely for strict mode.
"""The reference's model: a base as transformers loads it, adapters as PEFT loads them.

Adapters lie beside each other in the base; which one acts is switched between requests, never
during one. An adapter that would silently do nothing is refused.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
from transformers.utils import logging as transformers_logging

from model_registry.bases.files import stored_precision
from model_registry.errors import InvalidAdapterError
from model_registry.peft_config import read_peft_config
from service.backends.base import AdapterFiles
from service.engine.cpu_linear import widening_linear
from service.errors import AdapterRejectedError, BackendError

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "nf4", "dequantized")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_PROBE_TOKENS = 16


class WideningLinear(nn.Linear):
    """A 16-bit linear layer for fp32 activations on the CPU: it shares the weight it is made of.

    A subclass of `nn.Linear`, since PEFT wraps nothing else.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return widening_linear(input, self.weight, self.bias)


class ReferenceModel:
    """One base model and its adapters; not safe for more than one thread."""

    def __init__(self, model: Any, precision: str, end_token_ids: tuple[int, ...]) -> None:
        self.precision = precision
        self._model: Any = model.eval().requires_grad_(False)
        self._peft: PeftModel | None = None
        self._names: dict[str, str] = {}  # digest to PEFT's name
        # Nothing of what the publisher recommends for chatting, such as a repetition penalty.
        model.generation_config = GenerationConfig(
            eos_token_id=list(end_token_ids), pad_token_id=end_token_ids[0]
        )

    @classmethod
    def load(
        cls, directory: Path, precision: str, end_token_ids: tuple[int, ...], device: str
    ) -> "ReferenceModel":
        """Load a base model directory in a precision, one of `PRECISIONS`."""
        precision = stored_precision(directory) if precision == "auto" else precision
        transformers_logging.disable_progress_bar()
        quantization = None
        if precision in ("nf4", "dequantized"):
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=torch.bfloat16,
                bnb_4bit_use_double_quant=True,
            )
        model = AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=_DTYPES.get(precision, torch.bfloat16),
            device_map={"": device},
            quantization_config=quantization,
        )
        if precision == "dequantized":
            # Before the first forward: on some CPUs it repacks the weights, and what is
            # dequantized afterwards is garbage.
            model = model.dequantize(dtype=torch.bfloat16)
        if device == "cpu" and precision in ("bf16", "fp16", "dequantized"):
            _widen(model)
        return cls(model, precision, end_token_ids)

    @property
    def device(self) -> torch.device:
        return self._model.get_input_embeddings().weight.device

    @property
    def vocabulary_rows(self) -> int:
        return self._model.get_input_embeddings().weight.shape[0]

    @property
    def max_positions(self) -> int:
        return self._model.config.max_position_embeddings

    @property
    def adapters(self) -> frozenset[str]:
        """Digests of the adapters that are loaded."""
        return frozenset(self._names)

    def load_adapter(self, adapter: AdapterFiles) -> None:
        """Load an adapter and prove that it is whole and does something.

        Raises:
            AdapterRejectedError: It is not, and nothing of it stays behind.
        """
        if adapter.digest in self._names:
            return
        # Hexadecimal and of one length: PEFT finds adapters by name, and zeroes one whose name
        # begins like another's.
        name = adapter.digest.rpartition(":")[2][:32]
        try:
            keys = _tensor_names(adapter)
            self._add(adapter, name)
            self._names[adapter.digest] = name
            # By default PEFT asks the Hub about the base that the configuration names.
            loaded = set(
                get_peft_model_state_dict(
                    self._peft, adapter_name=name, save_embedding_layers=False
                )
            )
            if unused := sorted(keys - loaded):
                raise AdapterRejectedError(
                    adapter.engine_name, f"the base model has no place for {unused[0]}"
                )
            if missing := sorted(loaded - keys):
                raise AdapterRejectedError(adapter.engine_name, f"it lacks {missing[0]}")
            self._probe(adapter)
        except BaseException:
            self.unload_adapter(adapter.digest, name)
            self._clear(name)
            raise

    def unload_adapter(self, digest: str, name: str | None = None) -> None:
        """Forget an adapter; does nothing if it is unknown."""
        name = self._names.pop(digest, name)
        if name is None or self._peft is None or name not in self._peft.peft_config:
            return
        others = [other for other in self._peft.peft_config if other != name]
        if others:
            self._peft.set_adapter(others[0], inference_mode=True)  # PEFT warns of an active one
            self._peft.delete_adapter(name)
        else:
            self._model = self._peft.unload()
            self._peft = None

    @contextmanager
    def using(self, adapter: AdapterFiles | None) -> Iterator[Any]:
        """The model with one adapter, which must be loaded, or with none."""
        if self._peft is None or (adapter is None and not self._names):
            yield self._model
            return
        if adapter is not None:
            self._peft.set_adapter(self._names[adapter.digest], inference_mode=True)
        with nullcontext() if adapter is not None else self._peft.disable_adapter():
            yield self._model

    def _add(self, adapter: AdapterFiles, name: str) -> None:
        directory = str(adapter.directory)
        options = {"adapter_name": name, "is_trainable": False, "low_cpu_mem_usage": True}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of missing keys; they are an error below
                if self._peft is None:
                    config = PeftConfig.from_pretrained(directory)
                    config.inference_mode = True
                    self._peft = PeftModel(self._model, config, name, low_cpu_mem_usage=True)
                self._peft.load_adapter(directory, **options)
        except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise AdapterRejectedError(adapter.engine_name, reason) from error

    def _clear(self, name: str) -> None:
        """Undo an injection that stopped half-way, of which PEFT itself keeps no record."""
        for place, module in list(self._model.named_modules()):
            if not isinstance(module, BaseTunerLayer):
                continue
            if self._peft is None:
                self._model.set_submodule(place, module.get_base_layer())
            elif name in module._all_available_adapter_names():
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of an active adapter
                    module.delete_adapter(name)

    def _probe(self, adapter: AdapterFiles) -> None:
        step = max(1, self.vocabulary_rows // (2 * _PROBE_TOKENS))
        ids = torch.arange(1, 1 + step * _PROBE_TOKENS, step, device=self.device)[None]
        logits = []
        for acting in (None, adapter):
            with torch.inference_mode(), self.using(acting) as model:
                logits.append(model(ids, use_cache=False).logits)
        if not torch.isfinite(logits[1]).all():
            raise AdapterRejectedError(adapter.engine_name, "it makes the model's output infinite")
        if torch.equal(*logits):
            raise AdapterRejectedError(adapter.engine_name, "it does not change the output")


def _widen(model: Any) -> None:
    """Keep 16-bit matrices and compute in fp32, which is faster on most CPUs and more exact."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WideningLinear
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.data = parameter.data.float()
    model.get_input_embeddings().register_forward_hook(lambda _module, _input, out: out.float())


def _tensor_names(adapter: AdapterFiles) -> set[str]:
    try:
        config = read_peft_config((adapter.directory / "adapter_config.json").read_bytes())
        with safe_open(adapter.directory / "adapter_model.safetensors", "pt") as file:
            keys = set(file.keys())
    except (InvalidAdapterError, OSError, SafetensorError) as error:
        raise AdapterRejectedError(adapter.engine_name, str(error)) from error
    if config.get("modules_to_save"):
        raise AdapterRejectedError(
            adapter.engine_name, "it replaces whole modules; publish a merged variant of it"
        )
    return keys


def require_precision(precision: str) -> None:
    """Refuse a precision that no one can load."""
    if precision not in PRECISIONS:
        raise BackendError(
            f"{precision!r} is not a precision of a base model; known: {', '.join(PRECISIONS)}"
        )
