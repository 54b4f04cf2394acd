# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""Whether a GPU's kernels give the logits of plain torch operators, in bf16, within rounding.

python -m benchmarks.engine_check --size 0.5b
"""

import argparse
import math
from dataclasses import replace
from typing import Any, cast

import torch

from benchmarks.engine_workload import Structure, prompts, random_adapter, random_model
from service.engine.device_state import POSITION, TOKEN
from service.engine.gpu_runner import GpuRunner, _lora_table, _ranks_of
from service.engine.loading import GPU
from service.engine.lora_slots import LoraSlots
from service.engine.model import prepare_model
from service.engine.runner import Part, Runner
from service.engine.triton_lora import DECODE_BLOCK


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative; bf16 operands give between 0.001 and 0.02."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


@torch.inference_mode()
def check(size: str) -> dict[str, float]:
    """Distances of prompts and decode steps, with and without adapters, from plain operators."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    prompt = prompts(3, 0)
    model = random_model(size, device, dtype)
    plain = torch.stack([model(torch.tensor([p], device=device)).logits[0, -1] for p in prompt])
    config = replace(GPU, max_sequences=8, max_context=1024, max_adapters=4, max_ranks=96)
    config = replace(config, compile_layers=False)
    structure = Structure()
    prepared = prepare_model(model, config)
    lora = LoraSlots(prepared.linears, config.max_adapters, config.max_ranks)
    shapes = {n: (m.base.out_features, m.base.in_features) for n, m in prepared.linears.items()}
    ranks = (16, 32)
    slots = [
        lora.acquire(str(r), random_adapter(r, r, shapes, dtype, pinned=on_gpu)) for r in ranks
    ]
    parts = [Part(i, 0, p, (None, *slots)[i]) for i, p in enumerate(prompt)]
    bare = [replace(part, lora=None) for part in parts]
    reference = Runner(prepared, config, structure.compiler.vocabulary)
    adapted = reference._forward(parts).clone()
    result = {"plain operators": distance(reference._forward(bare), plain)}
    result["adapters change"] = distance(adapted[1:], plain[1:])
    runner = GpuRunner(prepared, config, structure.compiler.vocabulary)
    result["prompt"] = distance(runner._forward(bare), plain)
    result["prompt, adapters"] = distance(runner._forward(parts), adapted)
    order = sorted(range(3), key=lambda i: parts[i].lora_number)
    assert order == [0, 1, 2]
    for form, table in (("base", bare), ("adapters", parts)):
        runner._forward([replace(part, tokens=part.tokens[:-1]) for part in table])
        for part in table:
            runner.state.integers[part.slot] = 0
            runner.state.integers[part.slot, TOKEN] = part.tokens[-1]
            runner.state.integers[part.slot, POSITION] = len(part.tokens) - 1
        runner._slots[:3] = torch.arange(3, device=device)
        seen = {}
        blocks = _lora_table([_ranks_of(part) for part in table], [1] * 3, DECODE_BLOCK)
        runner._lora_blocks[: len(blocks)] = torch.tensor(blocks, device=device).view(-1, 4)

        def keep(logits: Any, slots: Any, sampling: Any, seen: dict[str, Any] = seen) -> None:
            seen["logits"] = logits

        cast("Any", runner)._draw = keep
        for pooled in (True, False) if form == "adapters" else (False,):
            runner._pooled_from = 0 if pooled else math.inf
            runner.state.integers[:3, POSITION] = runner.state.tensor([len(p) - 1 for p in prompt])
            runner._decode_rows(3, form != "base", False)
            expected = plain if form == "base" else adapted
            result[f"decode, {form}{', pooled' if pooled else ''}"] = distance(
                seen["logits"], expected
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="0.5b")
    args = parser.parse_args()
    for name, value in check(args.size).items():
        print(f"{name:20} {value:.5f}", flush=True)


if __name__ == "__main__":
    main()
