"""adapter_config.json: what is accepted, and its one canonical spelling.

PEFT writes sets in random order and the path of the base on the machine that trained. Both would
make equal adapters unequal (and tell strangers about that machine), so the file is rewritten at
publish.
"""

import json
import re
from pathlib import PurePath
from typing import Any

from model_registry.errors import InvalidAdapterError
from model_registry.json_values import as_array, as_object

_LITERAL = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# Features that change the base's weights, or what an adapter computes, in ways nothing here serves.
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "lora_bias": "a bias on B",
    "fan_in_fan_out": "transposed weights",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "trainable_token_indices": "trained single tokens",
    "target_parameters": "bare parameters as targets",
    "megatron_config": "Megatron layers",
    "arrow_config": "Arrow routing",
    "use_bdlora": "block-diagonal LoRA",
    "monteclora_config": "MonteCLoRA",
}
# These start from the base's own singular vectors or errors and change the base to match.
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read_peft_config(raw: bytes) -> dict[str, Any]:
    """The configuration as a checked mapping.

    Raises:
        InvalidAdapterError: Not JSON, not LoRA, or with a feature that is not served.
    """
    try:
        value: object = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _bad("adapter_config.json is not JSON") from error
    config = as_object(value)
    if config is None:
        raise _bad("adapter_config.json is not a JSON object")
    if config.get("peft_type") != "LORA":
        raise _bad(f"peft_type is {config.get('peft_type')!r}, only LORA is served")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise _bad(f"it uses {what} ({key}), which is not served")
    if config.get("bias", "none") != "none":
        raise _bad("it trains biases; train with bias: none")
    start = str(config.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_THE_BASE):
        raise _bad(
            f"it starts from {start}, which changes the base model; convert it to plain LoRA"
        )
    _check_numbers(config)
    return config


def canonical_config(config: dict[str, Any], modules: list[str]) -> dict[str, Any]:
    """The same configuration spelt in the one way: sorted sets, no paths, explicit targets."""
    result = dict(config)
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        names = as_array(result.get(key))
        if names is not None:
            result[key] = sorted(set(names))
    if isinstance(result.get("target_modules"), str):
        # A regular expression; what it matched is known exactly, so nobody has to run it again.
        result["target_modules"] = modules
        result["exclude_modules"] = None
    base = result.get("base_model_name_or_path")
    if isinstance(base, str) and PurePath(base).is_absolute():
        result["base_model_name_or_path"] = PurePath(base).name
    result["inference_mode"] = True
    return result


def target_matches(targets: list[str], module: str) -> bool:
    """PEFT's rule for a list of targets: the whole name or its last parts."""
    return any(module == target or module.endswith(f".{target}") for target in targets)


def pattern_value(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule for rank_pattern and alpha_pattern: the first key that ends the module's name."""
    for key, value in pattern.items():
        if module == key or module.endswith(f".{key}"):
            return value
    return default


def _check_numbers(config: dict[str, Any]) -> None:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= 4096:
        raise _bad(f"r is {rank!r}, it must be a whole number from 1 to 4096")
    if type(alpha) not in (int, float) or not 0 < float(alpha or 0) < 1e6:
        raise _bad(f"lora_alpha is {alpha!r}, it must be a positive number")
    for name, kinds in (("rank_pattern", (int,)), ("alpha_pattern", (int, float))):
        entries = as_object(config.get(name) or {})
        if entries is None:
            raise _bad(f"{name} is not a map")
        for key, value in entries.items():
            # PEFT reads keys as regular expressions; only plain names are sure to mean one thing.
            if not _LITERAL.fullmatch(key):
                raise _bad(f"{name} has the key {key!r}; write plain module names")
            if type(value) not in kinds or not 0 < value < 1e6:
                raise _bad(f"{name}[{key!r}] is {value!r}")
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        names = config.get(name)
        items = as_array(names)
        if items is not None:
            if not all(isinstance(item, str) and len(item) < 256 for item in items):
                raise _bad(f"{name} is not a list of names")
        elif names is not None and not (isinstance(names, str) and len(names) < 4096):
            raise _bad(f"{name} is not a list of names")


def _bad(detail: str) -> InvalidAdapterError:
    return InvalidAdapterError("bad_config", detail)
