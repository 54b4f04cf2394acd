# pyright: basic
# torch and transformers are typed too loosely for strict mode.
"""What the GPU's kernels compute is what plain torch does, checked without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_registry.bases.tiny import TinyArchitecture, write_tiny_model
from service.engine.device_grammar import GrammarCompiler
from service.engine.lora import GatedMlp, gate_mlps
from service.engine.model import load_weights, prepare_model
from service.engine.runner import Part, Runner
from tests.service.engine.conftest import SIZES


@pytest.mark.parametrize(
    "check",
    [
        pytest.param("lora", id="each token gets its own adapter's change, the base's none"),
        pytest.param("gated", id="gate and up with adapters open like silu(gate) * up"),
        pytest.param("rows", id="an adapter is copied into its own rows and no others"),
        pytest.param("attention", id="prompts in pieces and new tokens see their own slot"),
    ],
)
def test_kernels(check: str) -> None:
    interpret("kernel_checks", check)


@pytest.mark.parametrize(("form", "architecture"), [("pooled", "qwen2"), ("apart", "gemma3")])
def test_the_gpu_path_answers_as_the_cpu_does_alone_and_mixed(form: str, architecture: str) -> None:
    interpret("gpu_on_cpu", form, architecture)


def test_layers_are_compiled_once_for_all_kinds_of_steps() -> None:
    interpret("gpu_on_cpu", "traces")


def interpret(module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.service.engine.{module}", *arguments],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("architecture", "joined"), [("qwen2", 2), ("gemma3", 0)])
def test_only_mlps_that_open_with_silu_get_the_kernel_for_it(
    tmp_path: Path, architecture: TinyArchitecture, joined: int
) -> None:
    directory = write_tiny_model(tmp_path / "base", architecture)
    prepared = prepare_model(load_weights(directory, torch.float32, torch.device("cpu")), SIZES)
    parts = [Part(0, 0, range(2, 12))]
    runner = Runner(prepared, SIZES, GrammarCompiler([b"a"] * prepared.vocab_size).vocabulary)
    before = runner._forward(parts).clone()
    gate_mlps(prepared.model.base_model.layers, prepared.lora_step)
    mlps = [m for m in prepared.model.modules() if isinstance(m, GatedMlp)]
    assert len(mlps) == joined
    assert torch.equal(runner._forward(parts), before)
