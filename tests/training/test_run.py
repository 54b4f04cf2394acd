# pyright: basic
# touches libraries that are typed too loosely for strict checking
"""Whole runs on a tiny random model: every recipe, registration, resumption, two processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

from model_registry import ModelRegistry
from training.config import TrainingConfig
from training.errors import ModelSetupError, RunFailedError
from training.run import train

Make = Callable[..., TrainingConfig]
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries warn each other of the future

RECIPES: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora-r256": {"method": {"r": 32, "lora_alpha": 32, "use_rslora": True}},
    "qlora": {"method": {"quantization": "nf4"}},
    "qlora-rslora": {"method": {"quantization": "nf4", "r": 16, "use_rslora": True}},
    "dora": {"method": {"use_dora": True}},
    "packed": {"fit": {"packing": True}},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_leaves_a_registered_adapter(make_config: Make, recipe: str) -> None:
    config = make_config(
        **{**RECIPES[recipe], "fit": {"max_steps": 2, **RECIPES[recipe].get("fit", {})}}
    )
    outcome = train(config, quiet=True)
    if recipe == "dora":
        assert outcome.version is None, "the registry serves plain LoRA only"
        return
    assert outcome.version is not None
    assert outcome.version.manifest.precision == ("nf4" if "qlora" in recipe else "fp32")
    assert outcome.version.manifest.prompt_format == "chat/1"
    assert outcome.version.manifest.evaluation is not None
    with ModelRegistry.open(str(config.registry)) as registry:
        registry.verify("tiny/1")


@pytest.mark.slow
def test_pissa_is_saved_as_an_adapter_of_the_original_weights(make_config: Make) -> None:
    outcome = train(make_config(method={"init_lora_weights": "pissa"}), quiet=True)
    saved = json.loads((outcome.adapter / "adapter_config.json").read_text())
    assert saved["r"] == 8, "the difference to the first B·A takes twice the rank"
    assert saved["init_lora_weights"] is True


@pytest.mark.slow
def test_continued_pretraining_learns_embeddings_at_their_own_rate(make_config: Make) -> None:
    config = make_config(
        objective="text",
        registry=None,
        method={"modules_to_save": ["embed_tokens"]},
        fit={"packing": True, "max_steps": 2, "embedding_learning_rate": 1e-6},
        data={"max_length": 512},
    )
    outcome = train(config, quiet=True)
    from safetensors.torch import load_file

    names = load_file(outcome.adapter / "adapter_model.safetensors").keys()
    assert any("embed_tokens" in name for name in names)
    assert outcome.evaluation is None


@pytest.mark.slow
def test_full_fine_tuning_moves_all_weights(make_config: Make) -> None:
    outcome = train(make_config(method={"kind": "full"}, fit={"max_steps": 2}), quiet=True)
    assert outcome.card["method"]["trained_weights"] > 100_000
    assert outcome.version is None


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3"])
def test_other_architectures_train(make_config: Make, tmp_path: Path, architecture: Any) -> None:
    from model_registry.bases.tiny import write_tiny_model

    base = write_tiny_model(tmp_path / architecture, architecture=architecture)
    outcome = train(make_config(base=str(base), fit={"max_steps": 1, "warmup": 0}), quiet=True)
    assert outcome.version is not None


@pytest.mark.slow
def test_a_run_learns_and_ends_the_same_way_twice(make_config: Make, tmp_path: Path) -> None:
    curves = []
    for name in ("a", "b"):
        config = make_config(
            registry=None,
            output_dir=str(tmp_path / name),
            fit={"max_steps": 8, "learning_rate": 5e-3, "eval_steps": 4},
            evaluation={"enabled": False},
        )
        card = train(config, quiet=True).card
        curves.append([entry.get("loss", entry.get("eval_loss")) for entry in card["curve"]])
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0]


@pytest.mark.slow
def test_a_run_killed_half_way_resumes_on_the_same_curve(make_config: Make, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    class KillAt(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 5:
                raise KilledError

    common = {"registry": None, "evaluation": {"enabled": False}}
    fit = {"max_steps": 6, "eval_steps": 2}
    whole = train(make_config(output_dir=str(tmp_path / "whole"), fit=fit, **common), quiet=True)
    broken = make_config(output_dir=str(tmp_path / "broken"), fit=fit, **common)
    with pytest.raises(KilledError):
        train(broken, quiet=True, callbacks=[KillAt()])
    (tmp_path / "broken" / "checkpoints" / "checkpoint-9").mkdir()  # one cut short while writing
    resumed = train(broken, quiet=True, resume=True)
    losses = {e["step"]: e["loss"] for e in resumed.card["curve"] if "loss" in e}
    for entry in whole.card["curve"]:
        if "loss" in entry and entry["step"] > 4:
            assert losses[entry["step"]] == pytest.approx(entry["loss"], rel=1e-5)


class BreakGradients(transformers.TrainerCallback):
    """Puts a NaN into one weight's gradient at the end of chosen backward passes."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps
        self.at = 0

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        self.at = state.global_step + 1
        weight = next(p for p in model.parameters() if p.requires_grad)
        if self.at == 1:
            weight.register_hook(lambda g: g * float("nan") if self.at in self.steps else g)


@pytest.mark.slow
def test_one_broken_gradient_costs_one_step_and_not_the_run(make_config: Make) -> None:
    config = make_config(registry=None, evaluation={"enabled": False})
    outcome = train(config, quiet=True, callbacks=[BreakGradients({3})])
    assert outcome.card["skipped_steps"] == [3]
    from safetensors.torch import load_file

    weights = load_file(outcome.adapter / "adapter_model.safetensors").values()
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.slow
def test_gradients_that_stay_broken_stop_the_run(make_config: Make) -> None:
    config = make_config(registry=None, fit={"max_steps": 8}, evaluation={"enabled": False})
    with pytest.raises(RunFailedError, match="last checkpoint stays usable"):
        train(config, quiet=True, callbacks=[BreakGradients(set(range(1, 9)))])


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_accumulation(
    make_config: Make, tmp_path: Path
) -> None:
    losses = {}
    for processes, accumulation in ((1, 2), (2, 1)):
        folder = tmp_path / f"p{processes}"
        config = make_config(
            registry=None,
            output_dir=str(folder),
            evaluation={"enabled": False},
            fit={
                "max_steps": 2,
                "gradient_accumulation_steps": accumulation,
                "group_by_length": False,
                "eval_steps": 50,
            },
        )
        path = tmp_path / f"p{processes}.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node"]
        command += [str(processes), "--master_port", "29777", "-m", "training", str(path)]
        done = subprocess.run(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        card = json.loads((folder / "run.json").read_text())
        assert card["processes"] == processes
        losses[processes] = [entry["loss"] for entry in card["curve"] if "loss" in entry]
    assert losses[1] == pytest.approx(losses[2], rel=1e-3)


def test_unknown_target_modules_are_answered_with_those_of_the_model(make_config: Make) -> None:
    config = make_config(method={"target_modules": ["query_key_value"]})
    with pytest.raises(ModelSetupError, match=r"linear ones: down_proj, gate_proj"):
        train(config, quiet=True)


def test_an_unwritable_output_is_one_sentence(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailedError, match="cannot be written"):
        train(make_config(output_dir=str(tmp_path / "file" / "run")), quiet=True)


@pytest.mark.parametrize("verb", [[], ["data"], ["plan"], ["evaluate"], ["register"], ["push"]])
def test_help_does_not_wait_for_torch(verb: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "training", *verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "usage: python -m training" in done.stdout
    assert " torch\n" not in done.stderr


def test_a_mistake_on_the_command_line_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nbase: y\n")
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "training", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {path}:1: data: is missing\n"
    assert time.monotonic() - begun < 20


def test_a_run_goes_on_from_an_adapter(
    make_config: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    first = train(make_config(evaluation={"enabled": False}, registry=None), quiet=True)
    more = make_config(
        start_from=str(first.adapter),
        output_dir=str(tmp_path / "more"),
        evaluation={"enabled": False},
        fit={"max_steps": 3, "learning_rate": 1e-3},
        registry=None,
    )
    before = load_file(first.adapter / "adapter_model.safetensors")
    after = load_file(train(more, quiet=True).adapter / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[n] - after[n]).abs().max() < 1e-2 for n in before)
    assert any((before[n] != after[n]).any() for n in before)
