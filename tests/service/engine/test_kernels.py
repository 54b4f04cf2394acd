"""What the GPU's kernels compute is what plain torch does, checked without a GPU."""

import os
import subprocess
import sys

import pytest


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
    done = subprocess.run(
        [sys.executable, "-m", "tests.service.engine.kernel_checks", check],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
