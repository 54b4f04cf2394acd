"""Settings that are known to ruin runs: refused, or warned about, each with its source.

A refusal can be crossed by naming the guard under `allow` in the configuration.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from training.config import TrainingConfig
from training.errors import GuardRailError


@dataclass(frozen=True, slots=True)
class Finding:
    """What a guard has to say about a configuration."""

    name: str
    severity: Literal["warn", "refuse"]
    reason: str
    source: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} [{self.source}]"


_Guard = Callable[[TrainingConfig], tuple[Literal["warn", "refuse"], str] | None]


def check_config(config: TrainingConfig) -> list[str]:
    """Warnings of a configuration.

    Raises:
        GuardRailError: A guard refuses it and is not named under `allow`.
    """
    found = findings(config)
    refused = [f for f in found if f.severity == "refuse" and f.name not in config.allow]
    if refused:
        allow = ", ".join(finding.name for finding in refused)
        raise GuardRailError([*map(str, refused), f"to do it anyway: allow: [{allow}]"])
    return [str(finding) for finding in found]


def findings(config: TrainingConfig) -> list[Finding]:
    """Everything that the guards see, allowed or not."""
    result: list[Finding] = []
    for name, (guard, source) in GUARDS.items():
        verdict = guard(config)
        if verdict is not None:
            result.append(Finding(name, verdict[0], verdict[1], source))
    return result


def _weak_scale(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    method = config.method
    if method.kind == "lora" and method.use_rslora and method.scale < 1:
        return "warn", (
            f"alpha/sqrt(r) is {method.scale:.2f}: below 1 the adapter hardly moves; "
            f"lora_alpha of at least {round(method.r**0.5)} for r={method.r}"
        )
    return None


def _rank_collapse(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    method = config.method
    if (
        method.kind == "lora"
        and not method.use_rslora
        and method.r >= 64
        and method.lora_alpha < method.r
    ):
        return "refuse", (
            f"plain LoRA with r={method.r} and alpha={method.lora_alpha} scales by "
            f"{method.scale:.3f}: the high rank learns less than a low one would; "
            "use_rslora: true, or lora_alpha: 2r"
        )
    return None


def _hot_scale(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    method = config.method
    if method.kind != "lora":
        return None
    step = method.scale * config.fit.learning_rate * method.r**0.5
    if step > 2e-2:
        return "warn", (
            f"scale*lr*sqrt(r) is {step:.1e}, above 2e-2: expect forgetting or divergence; "
            "lower learning_rate or lora_alpha"
        )
    if step < 5e-4:
        return "warn", f"scale*lr*sqrt(r) is {step:.1e}, below 5e-4: the run will learn little"
    return None


def _dropout(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    if config.method.lora_dropout > 0:
        return "warn", (
            f"lora_dropout {config.method.lora_dropout}: no gain is known at a few epochs, and "
            "fused kernels need 0"
        )
    return None


def _head_target(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    targets = config.method.target_modules
    named = {"lm_head", "embed_tokens"} & set(() if isinstance(targets, str) else targets)
    if named:
        return "refuse", (
            f"LoRA on {', '.join(sorted(named))}: a tied model merges wrongly and TRL's fused loss "
            "cannot see it; train them in full under modules_to_save, or leave them"
        )
    return None


def _full_head_at_high_rank(
    config: TrainingConfig,
) -> tuple[Literal["warn", "refuse"], str] | None:
    if config.method.modules_to_save and config.method.r >= 256 and config.fit.optim == "auto":
        return "warn", (
            "embeddings in full beside r >= 256: weights, gradients and Adam in fp32 take 16 bytes "
            "for each of them; look at `python -m training plan`"
        )
    return None


def _learning_rate(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    rate = config.fit.learning_rate
    low, high = (1e-6, 1e-4) if config.method.kind == "full" else (1e-5, 2e-3)
    if config.base.startswith("tiny:"):
        return None
    if rate > 10 * high:
        return "refuse", f"learning_rate {rate:g} is far above {high:g}: the run would diverge"
    if not low <= rate <= high:
        kind = "full fine-tuning" if config.method.kind == "full" else "an adapter"
        return "warn", f"learning_rate {rate:g} is outside {low:g} – {high:g}, usual for {kind}"
    return None


def _fast_embeddings(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    rate = config.fit.embedding_learning_rate
    if rate is not None and config.method.modules_to_save and rate > config.fit.learning_rate / 2:
        return "warn", (
            f"embedding_learning_rate {rate:g} is more than half of learning_rate: embeddings "
            "forget first; a half to a tenth is usual"
        )
    return None


def _half_precision(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    if config.fit.precision == "fp16":
        family = next((f for f in ("gemma", "qwen") if f in config.base.lower()), None)
        if family is not None:
            return "warn", (
                f"fp16 overflows in {family.capitalize()} models: the gradient norm turns NaN; "
                "bf16, or fp32 on old GPUs"
            )
        return "warn", "fp16 needs loss scaling (on here) and can overflow; bf16 where there is any"
    return None


def _quantized_again(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    name = config.base.lower()
    marks = ("bnb-4bit", "4bit", "-awq", "gptq", "-int4", "nf4")
    mark = next((mark for mark in marks if mark in name), None)
    if mark is not None and not name.startswith("tiny:"):
        return "refuse", (
            f"the base is itself a quantised copy ({mark!r} in its name): its adapter fits no "
            "other weights and cannot be merged cleanly; name the original model and let "
            "quantization: nf4 quantise it"
        )
    return None


def _needless_quantization(
    config: TrainingConfig,
) -> tuple[Literal["warn", "refuse"], str] | None:
    method = config.method
    small = any(
        size in config.base.lower() for size in ("0.5b", "0.6b", "135m", "1b", "1.5b", "1.7b")
    )
    if method.quantization and small:
        return "warn", (
            "QLoRA on a model this small saves about 2 GB and costs quality and speed; "
            "plain bf16 LoRA fits a 12 GB card"
        )
    return None


def _many_epochs(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    if config.fit.num_train_epochs > 5 and config.fit.max_steps < 0:
        return "warn", f"{config.fit.num_train_epochs:g} epochs: expect stems learned by heart"
    return None


def _layers_alone(config: TrainingConfig) -> tuple[Literal["warn", "refuse"], str] | None:
    asked = "fused_layers" in config.fit.model_fields_set and config.fit.fused_layers
    if asked and not config.fit.fused_lora:
        return "refuse", (
            "fused_layers is built on fused_lora and would be left out without a word; "
            "set fused_lora: true, or fused_layers: false"
        )
    return None


GUARDS: Mapping[str, tuple[_Guard, str]] = {
    "weak_scale": (_weak_scale, "rsLoRA, arXiv 2312.03732"),
    "rank_collapse": (_rank_collapse, "rsLoRA, arXiv 2312.03732; docs/training.md"),
    "effective_step": (_hot_scale, "docs/training.md, effective step"),
    "dropout": (_dropout, "Unsloth and axolotl documentation"),
    "head_target": (_head_target, "peft #2018, #2777; TRL 1.16"),
    "full_head_at_high_rank": (_full_head_at_high_rank, "docs/training.md, memory"),
    "learning_rate": (_learning_rate, "LoRA Without Regret, thinkingmachines.ai/blog/lora"),
    "fast_embeddings": (_fast_embeddings, "unsloth.ai/blog/contpretraining"),
    "half_precision": (_half_precision, "Qwen3 #670; unsloth-zoo PR #866"),
    "quantized_again": (_quantized_again, "unsloth #416, #880; docs/training.md, merging"),
    "needless_quantization": (_needless_quantization, "H2O LLM Studio figures; open-instruct #109"),
    "many_epochs": (_many_epochs, "docs/training.md"),
    "layers_alone": (_layers_alone, "training/fit.py"),
}
"""Name to guard and where its claim comes from."""
