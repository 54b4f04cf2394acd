# pyright: basic
# drives peft and transformers, which are typed too loosely for strict checking
"""`python -m training evaluate` and `sample`: what named adapters, or the bare base, write."""

import json
from pathlib import Path
from typing import Any

from training.config import DataConfig, EvaluationConfig, SourceConfig, TrainingConfig
from training.errors import ModelSetupError
from training.evaluate import Evaluation, evaluate, load_passages
from training.report import to_html, to_markdown


def compare(options: Any) -> str:
    """Judge what the command line names; writes JSON, Markdown and HTML, returns the Markdown."""
    from training.model import load_base
    from training.rows import Renderer

    settings = EvaluationConfig(
        contexts=options.contexts,
        use=options.use or None,
        limit=options.limit,
        batch_size=options.batch_size,
        constrained=not options.unconstrained_only,
    )
    passages = load_passages(settings)
    bases: dict[str, Any] = {}
    evaluations: list[Evaluation] = []
    for ref in (options.adapter, *options.against):
        directory, precision, format_name = locate(ref, options)
        kind = "nf4" if precision == "nf4" else "16 bit"
        if kind not in bases:
            bases[kind] = load_base(base_config(options.base, kind == "nf4", options.prompt_format))
        base = bases[kind]
        renderer = Renderer(base.tokenizer, format_name)
        model = base.model if directory is None else attach(base, directory)
        evaluations.append(evaluate(model, renderer, passages, settings, label=ref))
        if directory is not None:
            base.model = model.unload()
    options.output.mkdir(parents=True, exist_ok=True)
    records = [evaluation.to_json() for evaluation in evaluations]
    (options.output / "comparison.json").write_text(
        json.dumps(records, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
    for evaluation in evaluations:
        name = evaluation.label.replace("/", "-").strip("-.")
        lines = (json.dumps(i.to_json(), ensure_ascii=False) + "\n" for i in evaluation.items)
        (options.output / f"items-{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    markdown = to_markdown(evaluations)
    (options.output / "report.md").write_text(markdown + "\n", encoding="utf-8")
    (options.output / "report.html").write_text(to_html(evaluations), encoding="utf-8")
    return f"{markdown}\n\nWritten to {options.output}"


def sample(options: Any) -> int:
    """Draw and judge candidates as the command line says; returns how many were written."""
    from training.sampling import sample as draw

    passages = [
        passage
        for path in options.contexts
        for passage in load_passages(EvaluationConfig(contexts=path, use=options.use))
    ]
    return draw(
        *_writer(options),
        passages,
        options.output,
        n=options.n,
        temperature=options.temperature,
        seed=options.seed,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        reader_tokens=options.reader_tokens,
        rotations=options.rotations,
    )


def contrast(options: Any) -> dict[str, int]:
    """Let an adapter write wrong options to authors' questions; returns the reasons' counts."""
    from training.cleaning import load_examples
    from training.contrast import contrast as draw

    data = DataConfig(
        train=tuple(SourceConfig(path=path) for path in options.data),
        questions=options.questions,
        validation_share=0.0,
    )
    return draw(
        *_writer(options),
        load_examples(data).train,
        options.output,
        n=options.n,
        temperature=options.temperature,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def _writer(options: Any) -> tuple[Any, Any]:
    """The model that writes with the named adapter, and its renderer."""
    from training.model import load_base
    from training.rows import Renderer

    directory, precision, format_name = locate(options.adapter, options)
    base = load_base(base_config(options.base, precision == "nf4", format_name))
    model = base.model if directory is None else attach(base, directory)
    return model, Renderer(base.tokenizer, format_name)


def locate(ref: str, options: Any) -> tuple[Path | None, str, str]:
    """Directory (None for the bare base), precision and prompt format of what a user named."""
    if ref == "base":
        return None, "16 bit", getattr(options, "prompt_format", "chat/1")
    folder = Path(ref)
    if (folder / "run.json").is_file():
        card = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return folder / "adapter", card["base"]["precision"], card["config"]["prompt_format"]
    if (folder / "manifest.json").is_file():
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return folder, manifest["precision"], manifest["prompt_format"]
    from model_registry import ModelRegistry

    with ModelRegistry.open(options.registry) as registry:
        version = registry.resolve(ref)
        directory = Path(registry.fetch(version))
    return directory, version.manifest.precision, version.manifest.prompt_format


def attach(base: Any, directory: Path) -> Any:
    import peft

    from training.fused_lora import fuse

    try:
        model = peft.PeftModel.from_pretrained(base.model, directory)
    except (ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ModelSetupError(f"{directory} does not fit this base model: {first}") from error
    fuse(model)
    return model.eval()


def base_config(base: str, quantized: bool, format_name: str) -> TrainingConfig:
    """A run that only loads a base."""
    config = TrainingConfig(
        name="evaluation",
        base=base,
        prompt_format=format_name,
        data=DataConfig(train=(SourceConfig(path="none.jsonl"),)),
    )
    if not quantized:
        return config
    method = config.method.model_copy(update={"quantization": "nf4"})
    return config.model_copy(update={"method": method})
