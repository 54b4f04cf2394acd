# pyright: basic
# reads versions and devices off untyped libraries
"""The run card: everything needed to say how an adapter came to be, as JSON and for people."""

import hashlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.cleaning import Split
from training.config import TrainingConfig
from training.examples import Example
from training.rows import TokenRow, key_positions

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes")


def run_card(
    config: TrainingConfig,
    base: Any,
    split: Split,
    rows: Sequence[TokenRow],
    fitted: Any,
    seconds: float,
) -> dict[str, Any]:
    """What went in, what was done, and on what; plain JSON."""
    from training.progress import peak_memory_gib

    losses = [h for h in fitted.history if "loss" in h or "eval_loss" in h]
    keep = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")
    return {
        "name": config.name,
        "config": config.model_dump(mode="json"),
        "base": {
            "source": config.base,
            "fingerprint": _jsonable(base.fingerprint),
            "precision": base.precision,
            "quantization": quantization_of(base),
        },
        "data": {
            "files": {s.path: file_digest(s.path) for s in config.data.train},
            "validation_files": {s.path: file_digest(s.path) for s in config.data.validation},
            "examples": len(split.train),
            "rows": len(rows),
            "tokens": sum(len(row.input_ids) for row in rows),
            "languages": dict(Counter(example.language for example in split.train)),
            "licences": dict(Counter(example.licence for example in split.train)),
            "key_positions": key_positions(split.train),
            "dropped": dict(split.report.dropped),
        },
        "method": {"scale": round(config.method.scale, 4), "trained_weights": _trained(fitted)},
        "versions": {name: _version(name) for name in _LIBRARIES}
        | {"python": platform.python_version()},
        "hardware": hardware(),
        "processes": int(__import__("os").environ.get("WORLD_SIZE", "1")),
        "skipped_steps": fitted.summary.get("skipped_steps", []),
        "seconds": round(seconds, 1),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "curve": [{k: _short(h[k]) for k in keep if k in h} for h in losses],
        "data_statement": config.data_statement or statement(split.train),
    }


def write_card(card: dict[str, Any], directory: Path) -> None:
    """`run.json` for programs."""
    text = json.dumps(card, ensure_ascii=False, indent=2)
    (directory / "run.json").write_text(text + "\n", encoding="utf-8")


def statement(examples: Sequence[Example]) -> str:
    """Whose data it was, from the rows' own source and licence fields."""
    counts = Counter(
        (e.source or "unknown source", e.licence or "unknown licence") for e in examples
    )
    parts = [
        f"{count} questions: {source} ({licence})" for (source, licence), count in counts.items()
    ]
    return "; ".join(parts)


def file_digest(path: str) -> str:
    """sha256 of a file; of a Hub data set only its name is known."""
    if path.startswith("hf:"):
        return path
    return "sha256:" + hashlib.sha256(Path(path).read_bytes()).hexdigest()


def hardware() -> str:
    """The device in words."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU, {platform.machine()}"


def quantization_of(base: Any) -> dict[str, Any] | None:
    """How the base was quantised, in the names of bitsandbytes."""
    config = getattr(base.model.config, "quantization_config", None)
    if config is None:
        return None
    keep = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    values = config if isinstance(config, dict) else config.to_dict()
    dtype = str(values.get("bnb_4bit_compute_dtype")).removeprefix("torch.")
    return {name: values.get(name) for name in keep} | {"bnb_4bit_compute_dtype": dtype}


def _trained(fitted: Any) -> int:
    return sum(p.numel() for p in fitted.model.parameters() if p.requires_grad)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _jsonable(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return json.loads(json.dumps(value, default=vars))
