"""Settings that are known to ruin runs."""

from collections.abc import Callable
from typing import Any

import pytest

from training.config import TrainingConfig
from training.errors import GuardRailError
from training.guards import check_config, findings

Make = Callable[..., TrainingConfig]


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("weak_scale", {"method": {"r": 256, "lora_alpha": 8, "use_rslora": True}}),
        ("rank_collapse", {"method": {"r": 128, "lora_alpha": 16}}),
        ("dropout", {"method": {"lora_dropout": 0.1}}),
        ("head_target", {"method": {"target_modules": ["q_proj", "lm_head"]}}),
        ("effective_step", {"fit": {"learning_rate": 0.01}}),
        ("learning_rate", {"fit": {"learning_rate": 0.005}}),
        ("half_precision", {"fit": {"precision": "fp16"}}),
        ("quantized_again", {"base": "hf:someone/Qwen-7B-bnb-4bit"}),
        ("needless_quantization", {"base": "hf:x/y-0.5B", "method": {"quantization": "nf4"}}),
        ("layers_alone", {"fit": {"fused_layers": True, "fused_lora": False}}),
        ("many_epochs", {"fit": {"num_train_epochs": 12, "max_steps": -1}}),
        (
            "fast_embeddings",
            {
                "method": {"modules_to_save": ["embed_tokens"]},
                "fit": {"embedding_learning_rate": 1},
            },
        ),
    ],
)
def test_each_guard_sees_its_mistake(
    make_config: Make, name: str, sections: dict[str, Any]
) -> None:
    assert name in [finding.name for finding in findings(make_config(**sections))]


def test_the_shipped_default_is_not_warned_about(make_config: Make) -> None:
    config = make_config(method={"r": 64, "lora_alpha": 16, "use_rslora": True})
    assert check_config(config) == []


def test_a_refusal_says_why_whence_and_how_to_cross_it(make_config: Make) -> None:
    config = make_config(method={"r": 128, "lora_alpha": 16})
    with pytest.raises(GuardRailError, match=r"rank_collapse.*2312\.03732.*allow"):
        check_config(config)
    allowed = config.model_copy(update={"allow": ("rank_collapse",)})
    assert any("rank_collapse" in warning for warning in check_config(allowed))
