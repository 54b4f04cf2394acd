# pyright: basic
# transformers and peft are typed too loosely for strict checking.
"""The base model in the precision of the run, its tokenizer, and the shape of the adapter."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import MethodConfig, TrainingConfig
from training.errors import ConfigError, ModelSetupError


@dataclass
class Base:
    """A base model ready for training or evaluation."""

    model: Any
    tokenizer: Any
    path: Path
    precision: str
    """As the registry records it: `bf16`, `fp16`, `fp32` or `nf4`."""
    fingerprint: Any
    """`model_registry.bases.BaseFingerprint`."""


def load_base(config: TrainingConfig, *, device: str | None = None) -> Base:
    """Prepare, load and quantise the base as the configuration says.

    Raises:
        BaseModelError: The source cannot be had (from model_registry).
        ModelSetupError: The hardware or the model does not allow what is asked.
    """
    import torch
    import transformers

    prepared = prepare(config.base)
    device = device or best_device()
    precision = choose_precision(config.fit.precision, device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    quantized = config.method.quantization == "nf4"
    _quiet()
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": config.fit.attn_implementation,
        "local_files_only": True,
    }
    if quantized:
        arguments["quantization_config"] = nf4_config(dtype)
        arguments["device_map"] = {"": device}
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(prepared.path), **arguments)
    except (ValueError, OSError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ModelSetupError(f"{config.base}: transformers cannot load it: {reason}") from error
    if not quantized and device != "cpu":
        model = model.to(device)  # pyright: ignore[reportArgumentType]
    model.config.use_cache = False
    return Base(
        model=model,
        tokenizer=load_tokenizer(prepared.path),
        path=prepared.path,
        precision="nf4" if quantized else precision,
        fingerprint=prepared.fingerprint,
    )


def prepare(source: str) -> Any:
    """The base on this disk; `tiny:ARCHITECTURE` is a random one for tests."""
    from model_registry.bases import prepare_base

    if source.startswith("tiny:"):
        from model_registry.bases.cache import default_cache_dir
        from model_registry.bases.tiny import write_tiny_model

        architecture = source.removeprefix("tiny:")
        directory = default_cache_dir() / "tiny" / architecture
        if not (directory / "config.json").exists():
            write_tiny_model(directory, architecture=architecture)  # pyright: ignore[reportArgumentType]
        source = str(directory)
    return prepare_base(source)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer, padding on the left, with a pad token that never ends a turn."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _other_pad_token(tokenizer)
    return tokenizer


def _other_pad_token(tokenizer: Any) -> str:
    added = tokenizer.get_added_vocab()
    preferred = ("<|finetune_right_pad_id|>", "<pad>", "<|endoftext|>", "<unk>", "<|fim_pad|>")
    for token in (*preferred, tokenizer.unk_token, *sorted(added)):
        if token and token in tokenizer.get_vocab() and token != tokenizer.eos_token:
            return str(token)
    raise ModelSetupError(
        "The tokenizer has no token for padding besides its end of sequence; add one to its files"
    )


def best_device() -> str:
    """`cuda:N` for this process, or `cpu`."""
    import os

    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def choose_precision(wanted: str, device: str) -> str:
    """What to compute in: bf16 where it is native, fp16 on older GPUs, fp32 on the CPU."""
    import torch

    if wanted != "auto":
        return wanted
    if device == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"


def nf4_config(compute_dtype: Any) -> Any:
    """The 4-bit setting of QLoRA; the library's defaults (fp4, fp32 compute) are not it."""
    import torch
    import transformers

    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        # FSDP can only flatten weights of one dtype, so the packed ones pose as 16-bit ones
        bnb_4bit_quant_storage=compute_dtype if is_sharded() else torch.uint8,
    )


def is_sharded() -> bool:
    """Whether this run was launched under FSDP, which takes weights away between uses."""
    import os

    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def load_start(config: TrainingConfig, base: Base) -> Any:
    """The adapter that the run goes on from, ready for training.

    Raises:
        ConfigError: `start_from` names no adapter.
        ModelSetupError: It does not fit the base.
    """
    import peft

    folder = Path(config.start_from)
    folder = folder / "adapter" if (folder / "run.json").is_file() else folder
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(
            config.name,
            None,
            "start_from",
            f"{config.start_from!r} is no folder of an adapter",
        )
    try:
        model = peft.PeftModel.from_pretrained(base.model, folder, is_trainable=True)
    except (ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ModelSetupError(f"{folder} does not fit this base model: {first}") from error
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def lora_config(method: MethodConfig, model: Any, tied: bool) -> Any:
    """PEFT's configuration.

    Raises:
        ModelSetupError: A target module does not exist; the message lists those that do.
    """
    import peft

    check_targets(method, model)
    arguments: dict[str, Any] = {}
    if method.modules_to_save:
        arguments["modules_to_save"] = list(method.modules_to_save)
        arguments["ensure_weight_tying"] = tied
    targets = method.target_modules
    return peft.LoraConfig(
        r=method.r,
        lora_alpha=method.lora_alpha,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        lora_dropout=method.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        init_lora_weights=method.init_lora_weights,  # pyright: ignore[reportArgumentType]
        bias="none",
        task_type="CAUSAL_LM",
        **arguments,
    )


def check_targets(method: MethodConfig, model: Any) -> None:
    """Refuse names of modules that the model does not have."""
    import torch

    linear = sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear)
        }
    )
    every = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if not isinstance(method.target_modules, str):
        unknown = [name for name in method.target_modules if name.rpartition(".")[2] not in every]
        if unknown:
            raise ModelSetupError(
                f"The model has no module {', '.join(unknown)}; linear ones: {', '.join(linear)}"
            )
    unknown = [name for name in method.modules_to_save if name not in every]
    if unknown:
        raise ModelSetupError(f"The model has no module {', '.join(unknown)} to save")


def is_tied(model: Any) -> bool:
    """Whether input and output embeddings are one tensor."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def _quiet() -> None:
    import os
    import warnings

    import transformers

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # peft still asks for the old name; users can do nothing about it.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
