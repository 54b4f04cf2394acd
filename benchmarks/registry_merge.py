# pyright: basic
# torch is typed too loosely for strict checking.
"""Time and memory of merging: `python -m benchmarks.registry_merge [BASE] [--onto dequantized]`.

The adapter is random, of rank 16 on every linear layer; the arithmetic does not depend on its
values. Target: a 1.5B model in under 60 s on 2 cores, with at most twice its bf16 size in memory.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from model_registry.base_modules import linear_modules, read_base_shapes
from model_registry.bases import prepare_base
from model_registry.merge import merge_adapter

_RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", nargs="?", default="embedded:qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--onto", choices=["original", "dequantized"], default="original")
    parser.add_argument("--dtype", choices=["fp16", "bf16"], default="fp16")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    base = prepare_base(options.base).path
    scratch = Path(tempfile.mkdtemp())
    try:
        adapter = write_random_adapter(base, scratch / "adapter")
        (scratch / "merged").mkdir()
        before = _peak_mb()
        started = time.monotonic()
        result = merge_adapter(
            base, adapter, scratch / "merged", dtype=options.dtype, onto=options.onto
        )
        seconds = time.monotonic() - started
        written = sum(file.stat().st_size for file in (scratch / "merged").iterdir())
    finally:
        shutil.rmtree(scratch)
    print(
        json.dumps(
            {
                "onto": options.onto,
                "dtype": options.dtype,
                "modules": result.modules,
                "seconds": round(seconds, 1),
                "written_mb": round(written / 1e6),
                "peak_memory_mb": round(_peak_mb()),
                "peak_before_mb": round(before),
                "limit_mb": round(2 * written / 1e6),
            }
        )
    )


def write_random_adapter(base: Path, directory: Path) -> Path:
    """A LoRA adapter on every linear layer of the transformer's blocks."""
    directory.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    targets: set[str] = set()
    for module, shape in linear_modules(read_base_shapes(base)).items():
        if not module.endswith("_proj"):
            continue
        targets.add(module.rpartition(".")[2])
        prefix = f"base_model.model.{module}"
        sizes = {"A": (_RANK, shape.inputs), "B": (shape.outputs, _RANK)}
        for side, size in sizes.items():
            values = torch.randn(size, generator=generator) * 0.01
            tensors[f"{prefix}.lora_{side}.weight"] = values.to(torch.bfloat16)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": 2 * _RANK,
        "target_modules": sorted(targets),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
