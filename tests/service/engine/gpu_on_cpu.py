# pyright: basic
# touches libraries that are typed too loosely for strict checking
"""The whole GPU path of the engine on a CPU: Triton's interpreter, and graphs that only remember.

Run by `test_kernels.py` in a process of its own (`TRITON_INTERPRET=1`). The engine's loop, tables,
buffers, buckets and padding are the real ones; what a CUDA graph would replay is called again.
"""

import sys
import tempfile
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch

from model_registry.bases.tiny import TinyArchitecture, write_tiny_model
from service.engine.config import EngineConfig
from service.engine.device_grammar import GrammarCompiler
from service.engine.engine import Engine
from service.engine.gpu_runner import GpuRunner
from service.engine.loading import open_engine
from service.engine.lora_slots import LoraSlots
from service.engine.model import EngineModel, load_weights, prepare_model
from service.engine.runner import Launched, Part
from service.engine.sequence import EngineRequest
from tests.service.engine.conftest import SIZES, linear_shapes, write_adapter
from tests.service.engine.driving import Heard, prompt_of, read, submit

CONFIG = replace(
    SIZES, max_sequences=4, prefill_tokens=96, overlap=True, jump_forward=False, max_drafts=0
)


class Remembered:
    """In place of a CUDA graph."""

    def __init__(self, work: Callable[[], Any], result: Any) -> None:
        self._work, self._result = work, result

    def replay(self) -> None:
        """Do the work again; the result stays where it was."""
        again = self._work()
        if again is not None:
            self._result.copy_(again)


class Runner(GpuRunner):
    """The GPU's runner without CUDA."""

    def _capture(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        result = work()
        return Remembered(work, result), result

    def decode(self, parts: Items[Part], *, sampling: bool) -> Launched:
        """A GPU copies what was drawn before the next step draws."""
        launched = super().decode(parts, sampling=sampling)
        launched._drawn = cast("torch.Tensor", launched._drawn).clone()
        return launched


class Opened:
    """As much of an open engine as requests need."""

    def __init__(self, prepared: EngineModel, config: EngineConfig) -> None:
        vocabulary = GrammarCompiler([b"a"] * prepared.vocab_size).vocabulary
        lora = LoraSlots(prepared.linears, config.max_adapters, config.max_ranks)
        with patch("torch.cuda.graph_pool_handle"), patch("torch.cuda.Stream"):
            self.runner = Runner(prepared, config, vocabulary)
        self.engine = Engine(self.runner, lora, config)


def prepared_as_on_a_gpu(directory: Path, config: EngineConfig) -> EngineModel:
    """Matrices joined with the pool, MLPs gated."""
    model = load_weights(directory, torch.float32, torch.device("cpu"))
    with patch.object(torch.Tensor, "is_cuda", True):
        return prepare_model(model, config)


def answers(opened: Any, requests: list[EngineRequest]) -> list[Heard]:
    """All at once, then each alone: with what the others left behind."""
    together = [heard.wait(600) for heard in [submit(opened, r) for r in requests]]
    return together + [submit(opened, request).wait(600) for request in requests[:2]]


def check(form: str, architecture: TinyArchitecture) -> None:
    with tempfile.TemporaryDirectory() as folder:
        layers = 6 if architecture == "gemma3" else 2  # one of them sees everything
        tiny = write_tiny_model(Path(folder) / "tiny", architecture, layers=layers)
        adapters = [
            write_adapter(Path(folder) / str(r), linear_shapes(tiny), seed=r, r=r) for r in (4, 12)
        ]
        plain = open_engine(tiny, "fp32", CONFIG)
        host = [read(plain, adapter) for adapter in adapters]
        requests = [
            # Under each adapter twice, so that a beginning is copied; one longer than a step.
            EngineRequest(prompt=prompt_of(40, 1) + prompt_of(n, n), max_tokens=6, **adapter)
            for adapter in ({}, *({"digest": a.name, "adapter": a} for a in host))
            for n in (3, 60)
        ]
        requests.append(replace(requests[2], n=2, temperature=0.8, top_p=0.9, seed=3))
        expected = answers(plain, requests)
        plain.engine.close()
        opened = Opened(prepared_as_on_a_gpu(tiny, CONFIG), CONFIG)
        opened.runner._pooled_from = 0 if form == "pooled" else 3
        got = answers(opened, requests)
        reused = opened.engine.metrics.reused_tokens
        opened.engine.close()
    assert [heard.error for heard in got] == [None] * len(got)
    assert [heard.tokens for heard in got] == [heard.tokens for heard in expected]
    assert len({tuple(heard.tokens[0]) for heard in got}) > 3, "adapters must make a difference"
    assert reused > 0


def traces() -> None:
    """What is compiled serves steps with prompts and without, with adapters and without."""
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def compiled(work: Any, **options: Any) -> Any:
        is_layer = work.__name__ == "_call_impl"
        return compile_work(work, backend=count, **options) if is_layer else work

    compile_work = torch.compile
    config = replace(CONFIG, compile_layers=True)
    with tempfile.TemporaryDirectory() as folder:
        tiny = write_tiny_model(Path(folder), "qwen2", layers=3)
        model = prepared_as_on_a_gpu(tiny, config)
        with (
            patch("torch.compile", compiled),
            patch("torch.cuda.synchronize"),
        ):
            opened = Opened(model, config)
            with patch.object(opened.runner, "probe"):
                opened.runner.warm_up()
        opened.engine.close()
    assert len(graphs) == 1, f"{len(graphs)} traces"


if __name__ == "__main__":
    if sys.argv[1] == "traces":
        traces()
    else:
        check(sys.argv[1], cast("TinyArchitecture", sys.argv[2]))
