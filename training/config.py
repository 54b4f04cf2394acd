"""One run's configuration: a YAML file, read once, refused with the line and the field.

Names of TRL, PEFT and transformers are kept where they have one.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from mcq.language import Language
from mcq.prompts import PROMPT_FORMATS
from mcq.verdict import VERDICT_FORMAT
from training.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Objective = Literal["mcq", "text", "preference", "verdict"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]


class MethodConfig(_Section):
    """What is trained: an adapter, or for tiny models everything."""

    kind: Literal["lora", "full"] = "lora"
    r: PositiveInt = 16
    """Rank: the capacity of the adapter."""
    lora_alpha: PositiveInt = 32
    """With `use_rslora` the update is scaled by alpha/sqrt(r), else by alpha/r."""
    use_rslora: bool = False
    use_dora: bool = False
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    modules_to_save: tuple[str, ...] = ()
    """Modules trained in full beside the adapter: `embed_tokens`, `lm_head`."""
    init_lora_weights: bool | str = True
    """`true`, `pissa`, `pissa_niter_16`, `loftq`, `orthogonal`, …"""
    quantization: Literal["nf4"] | None = None
    """Hold the frozen base in 4 bits (QLoRA)."""
    store_as: Literal["fp32", "fp16", "bf16"] = "fp16"
    """Numbers of the saved adapter. Trained in 32 bits and rounded before the evaluation."""

    @property
    def scale(self) -> float:
        """The factor before B·A."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


class SourceConfig(_Section):
    """One data set."""

    path: str
    """A .jsonl, .csv or .parquet file, or `hf:ORG/NAME[:SPLIT]` on the Hub."""
    columns: str | dict[str, str] = "own"
    """A preset (`own`, `tong_hop_trac_nghiem`, `tin_hoc`) or a mapping of our names to theirs."""
    weight: PositiveFloat = 1.0
    """Rows of this set are drawn this often: 0.5 takes half of them, 2 takes each twice."""
    language: Language | Literal["auto"] = "auto"
    """For rows that do not say."""


class DataConfig(_Section):
    """Where the questions come from and what is done to them."""

    train: tuple[SourceConfig, ...] = Field(min_length=1)
    validation: tuple[SourceConfig, ...] = ()
    """For the held-out loss. If empty, `validation_share` of the passages is set aside."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.05
    questions: Literal["all", "recall"] = "all"
    """`recall`: only questions in one sentence whose key the passage gives in its own words. A
    small model writes these rightly, while those that ask it to conclude are beyond it."""
    balance_keys: bool = True
    """Shuffle the options so that the key stands at A, B, C, D equally often."""
    avoid: Literal["none", "second", "both"] = "none"
    """Repeat passages with two questions, one of them named in the prompt as already asked:
    `second` asks for the second one so, `both` for either."""
    max_length: PositiveInt = 1024
    """Tokens of prompt and completion together."""
    too_long: Literal["drop", "window"] = "drop"
    """Rows over `max_length`: dropped and counted, or their passage cut to the sentences around
    the key's evidence. Nothing is ever cut without saying so."""
    shuffle_seed: int = 13


class FitConfig(_Section):
    """The optimisation."""

    learning_rate: PositiveFloat = 2e-4
    embedding_learning_rate: PositiveFloat | None = None
    """For `modules_to_save`; a tenth of `learning_rate` if left out."""
    num_train_epochs: PositiveFloat = 3
    max_steps: int = -1
    """Stop after so many steps, whatever the epochs; -1 is no limit."""
    per_device_train_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 2
    per_device_eval_batch_size: PositiveInt = 8
    lr_scheduler_type: str = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the steps."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    optim: str = "auto"
    """`auto` is fused AdamW, or 8-bit paged AdamW from 100 million trained weights on CUDA."""
    precision: Precision = "auto"
    """`auto`: bf16 where the hardware computes in it, fp16 on older GPUs, fp32 on the CPU."""
    packing: bool = False
    """Several rows in one sequence, without attention between them."""
    group_by_length: bool = True
    activation_checkpointing: bool = False
    attn_implementation: str = "sdpa"
    torch_compile: bool = False
    fused_lora: bool = True
    """Adapted linear layers as one function: faster and smaller, with the same gradients."""
    fused_layers: bool = True
    """With `fused_lora`, decoder layers of the Llama kind as one function that keeps little: twice
    as fast. Its gradients are as exact as PEFT's on the CPU and on an H100 (`pytest -m gpu`)."""
    liger: bool = False
    """Layer kernels of liger-kernel (CUDA)."""
    seed: int = 3407
    eval_steps: Annotated[float, Field(gt=0)] = 0.25
    """Below 1: share of the run between two evaluations and checkpoints, else steps."""
    save_total_limit: PositiveInt = 2
    logging_steps: PositiveInt = 5
    report_to: tuple[str, ...] = ("tensorboard",)
    """`tensorboard`, `wandb`, `mlflow`; empty for none."""


class EvaluationConfig(_Section):
    """What the finished adapter is judged by."""

    contexts: str | None = None
    """JSON Lines of held-out passages; the distinct passages of the validation data if left out."""
    use: str | None = None
    """Only passages whose `use` field says so."""
    limit: PositiveInt | None = None
    batch_size: PositiveInt = 8
    max_new_tokens: PositiveInt = 256
    constrained: bool = False
    """Generate a second time under the format's grammar (needs xgrammar)."""
    reader: bool = True
    """Let the bare base answer the questions, with and without the passage."""
    enabled: bool = True


class PreferenceConfig(_Section):
    """How an adapter is tuned on pairs of completions."""

    beta: PositiveFloat = 0.1
    """How dear it is to leave the adapter that the run started from."""
    sft_weight: NonNegativeFloat = 0.2
    """Share of the plain loss on the better completion."""


class TrainingConfig(_Section):
    """A run: data → model → fit → evaluate → register."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
    """The adapter's name in the registry."""
    base: str
    """Source of the base model: `hf:ORG/NAME[@revision]`, a directory, a GGUF file,
    `embedded:NAME`, or `tiny:ARCHITECTURE` for a random model in tests."""
    description: str = ""
    objective: Objective = "mcq"
    """`mcq`: loss on the question only. `text`: continued pre-training on the passages.
    `preference`: the better of two completions (`training.preference`).
    `verdict`: sound questions told from spoilt ones (`training.verdicts`)."""
    start_from: str = ""
    """The folder of an adapter to go on from; `preference` needs one."""
    prompt_format: str = "chat/1"
    data: DataConfig
    method: MethodConfig = MethodConfig()
    fit: FitConfig = FitConfig()
    preference: PreferenceConfig = PreferenceConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output_dir: str = ""
    """Checkpoints, run card and report; `runs/NAME` if left out."""
    registry: str | None = "var/registry"
    """Where the adapter is registered; null to leave it in `output_dir`."""
    data_statement: str = ""
    """Whose data this is and under which licence; goes into the manifest."""
    allow: tuple[str, ...] = ()
    """Names of guard-rails that may be crossed in this run."""

    @model_validator(mode="after")
    def _known_format(self) -> "TrainingConfig":
        known = (VERDICT_FORMAT,) if self.objective == "verdict" else tuple(PROMPT_FORMATS)
        if self.prompt_format not in known:
            raise ValueError(f"prompt_format {self.prompt_format!r} is none of {', '.join(known)}")
        return self

    @property
    def run_dir(self) -> Path:
        """The folder of this run."""
        return Path(self.output_dir or f"runs/{self.name}")


def load_config(path: Path, overrides: tuple[str, ...] = ()) -> TrainingConfig:
    """Read a YAML file; `overrides` are `section.field=value` with the value in YAML.

    Raises:
        ConfigError: Names the line and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), None, "", f"cannot be read: {error}") from error
    try:
        root: Any = cast(Any, yaml).compose(text, Loader=yaml.SafeLoader)
        values: Any = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError(str(path), line, "", f"not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(str(path), None, "", f"not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(str(path), 1, "", "a mapping of settings is expected")
    _refuse_repeated(path, root)
    for override in overrides:
        _override(cast("dict[str, Any]", values), override)
    try:
        return TrainingConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        location = tuple(part for part in first["loc"] if part not in ("str", "literal"))
        field = ".".join(str(part) for part in location)
        reason = _wording(first, location)
        raise ConfigError(str(path), _line_of(root, location), field, reason) from error


def _refuse_repeated(path: Path, node: yaml.Node | None) -> None:
    """YAML lets the last of two equal settings win, which nobody who wrote both expects."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            line = key.start_mark.line + 1
            if key.value in seen:
                first = f"is there twice; the first is in line {seen[key.value]}"
                raise ConfigError(str(path), line, str(key.value), first)
            seen[key.value] = line
            _refuse_repeated(path, value)
    elif isinstance(node, yaml.SequenceNode):
        for item in cast("list[yaml.Node]", node.value):
            _refuse_repeated(path, item)


def _wording(error: Any, location: tuple[int | str, ...]) -> str:
    if error["type"] == "extra_forbidden":
        return f"no such setting; known here: {', '.join(_fields_at(location[:-1]))}"
    if error["type"] == "missing":
        return "is missing"
    return f"{error['msg'].removeprefix('Value error, ')} (found {error['input']!r})"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    model: Any = TrainingConfig
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            arguments = getattr(annotation, "__args__", ())
            model = next(
                (a for a in (annotation, *arguments) if hasattr(a, "model_fields")), TrainingConfig
            )
    return sorted(model.model_fields)


def _line_of(root: yaml.Node | None, location: tuple[int | str, ...]) -> int | None:
    """The line of the deepest node on the way to `location`."""
    node, line = root, 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _override(values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator:
        raise ConfigError("--set", None, override, "expected section.field=value")
    *sections, field = name.split(".")
    for section in sections:
        inner: Any = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError("--set", None, name, f"{section} is not a section")
        values = cast("dict[str, Any]", inner)
    try:
        values[field] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("--set", None, name, f"not YAML: {text}") from error
