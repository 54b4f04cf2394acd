# pyright: basic
# torch, transformers and peft are typed too loosely for strict checking.
"""What each way of merging does to an adapter, against the adapter on the base it was trained on.

    python -m benchmarks.merge_fidelity BASE ADAPTER DATA.jsonl --output results/merge_fidelity

BASE is any source of a base model, ADAPTER a PEFT directory or a version of a registry (`name/3`
with --registry), DATA rows with context, question, answer_a … and correct_answer. Writes
OUTPUT.json and OUTPUT.png. Two models are in memory at a time. Runs on one GPU, and on the CPU with
a small model.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel

from mcq.prompts import PROMPT_FORMATS
from model_registry import ModelRegistry
from model_registry.bases import prepare_base
from model_registry.merge import merge_adapter, nf4_round_trip, require_unpacked
from training.examples import Example, RejectedRowError, resolve_columns, to_example
from training.generation import Ask, generate
from training.metrics import judge
from training.model import load_tokenizer
from training.rows import IGNORED, Renderer, TokenRow
from training.sources import read_rows

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_LABELS = {
    "adapter_on_nf4": "adapter on NF4",
    "adapter_on_dequantized": "adapter on dequantised",
    "adapter_on_original": "adapter on original",
    "merged_dequantized_fp16": "merged onto dequantised, fp16",
    "merged_dequantized_bf16": "merged onto dequantised, bf16",
    "merged_original_fp16": "merged onto original, fp16",
    "merged_original_bf16": "merged onto original, bf16",
    "nf4_of_merged_original": "NF4 of merged onto original",
    "requantized_merge": "merged in NF4 (do not)",
    "base_alone": "base alone",
}


@dataclass
class Figures:
    """One way of serving the adapter, measured."""

    name: str
    seconds: float = 0.0
    loss: float = 0.0
    divergence: float = 0.0
    """KL divergence per answer token from the reference to this model, in nats."""
    agreement: float = 0.0
    """Share of answer tokens at which both models' first choice is the same."""
    tokens: int = 0
    generated: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    options = _parser().parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    bench = Bench(options)
    results: list[Figures] = []
    for name in bench.names():
        started = time.monotonic()
        model = bench.load(name)
        figures = bench.measure(name, model)
        figures.seconds = time.monotonic() - started
        results.append(figures)
        bench.forget(model)
        print(_line(figures), flush=True)
    record = {
        "base": options.base,
        "adapter": options.adapter,
        "data": options.data.name,
        "rows": len(bench.rows),
        "precision_in_training": bench.precision,
        "compute": bench.compute,
        "reference": bench.reference_name,
        "device": torch.cuda.get_device_name(0) if bench.device != "cpu" else "CPU",
        "versions": {m.__name__: m.__version__ for m in (torch, transformers)},
        "relative_change": bench.relative_change,
        "variants": {figures.name: _record(figures) for figures in results},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(
        json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    )
    plot(results, options.output.with_suffix(".png"), bench.reference_name)


class Bench:
    """The data, the reference model, and how to build every other one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.compute = options.compute or ("bf16" if self.device != "cpu" else "fp32")
        self.base = prepare_base(options.base).path
        self._scratch = tempfile.TemporaryDirectory(dir=options.scratch)
        self.scratch = Path(self._scratch.name)
        self._adapter(options)
        self.tokenizer = load_tokenizer(self.base)
        self.renderer = Renderer(self.tokenizer, self.format)
        self.examples = list(_examples(options.data, options.limit))
        if not self.examples:
            sys.exit(f"error: {options.data} holds no usable row")
        self.rows = [self.renderer.row(example) for example in self.examples]
        self.batch_size = options.batch_size
        self.to_generate = options.generate
        self.relative_change: float | None = None
        trained = self.precision == "nf4"
        self.reference_name = "adapter_on_nf4" if trained else "adapter_on_original"
        self.reference = self.load(self.reference_name)
        self._reference_texts: list[str] | None = None

    def names(self) -> list[str]:
        """The reference first, then everything that it is compared with."""
        others = [name for name in _LABELS if name != self.reference_name]
        return [self.reference_name, *others]

    def load(self, name: str) -> Any:
        """A model ready to be asked."""
        match name:
            case "adapter_on_nf4":
                model = self._with_adapter(self._on_nf4(self.base))
            case "adapter_on_dequantized":
                model = self._with_adapter(self._dequantized())
            case "adapter_on_original":
                model = self._with_adapter(self._dense(self.base))
            case "nf4_of_merged_original":
                model = self._on_nf4(self._merged("original", "fp16"))
            case "requantized_merge":
                model = self._on_nf4(self._merged("dequantized", "fp16"))
            case "base_alone":
                nf4 = self.precision == "nf4"
                model = self._on_nf4(self.base) if nf4 else self._dense(self.base)
            case _:
                _, onto, dtype = name.split("_")
                # As it would be served: in the precision that its files are stored in.
                served = self.compute if self.compute == "fp32" else dtype
                model = self._dense(self._merged(onto, dtype), served)
        return model.eval()

    def forget(self, model: Any) -> None:
        """Make room for the next one."""
        if model is not self.reference:
            del model
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()

    def measure(self, name: str, model: Any) -> Figures:
        """Compare with the reference, token by token and in what it writes."""
        figures = Figures(name)
        loss = divergence = 0.0
        agreed = count = 0
        with torch.inference_mode():
            for start in range(0, len(self.rows), self.batch_size):
                batch = self._batch(self.rows[start : start + self.batch_size])
                ours = _answer_log_probabilities(model, *batch)
                theirs = _answer_log_probabilities(self.reference, *batch)
                targets = batch[1][:, 1:][batch[1][:, 1:] != IGNORED]
                loss -= float(ours.gather(1, targets[:, None]).sum())
                divergence += float((theirs.exp() * (theirs - ours)).sum())
                agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
                count += len(targets)
        figures.tokens = count
        figures.loss, figures.divergence = loss / count, max(0.0, divergence / count)
        figures.agreement = agreed / count
        if self.to_generate:
            figures.generated = self._generated(model)
        return figures

    def _generated(self, model: Any) -> dict[str, Any]:
        chosen = self.examples[: self.to_generate]
        asks = [Ask(example.context, example.language) for example in chosen]
        completions = generate(
            model, self.renderer, asks, batch_size=self.batch_size, max_new_tokens=256
        )
        texts = [group[0].text for group in completions]
        self._reference_texts = self._reference_texts or texts
        items = [
            judge(
                str(i),
                example.context,
                example.language,
                group[0].text,
                format_name=self.format,
                stopped=group[0].stopped,
                tokens=group[0].tokens,
            )
            for i, (example, group) in enumerate(zip(chosen, completions, strict=True))
        ]
        valid = [item for item in items if item.question is not None]
        return {
            "passages": len(items),
            "valid": len(valid) / len(items),
            "with_evidence": sum(item.has_evidence for item in valid) / len(items),
            "without_flaw": sum(not item.flaws for item in valid) / len(items),
            "same_text": sum(a == b for a, b in zip(texts, self._reference_texts, strict=True))
            / len(items),
        }

    def _adapter(self, options: argparse.Namespace) -> None:
        if options.registry:
            registry = ModelRegistry.open(options.registry)
            version = registry.resolve(options.adapter)
            self.adapter = registry.fetch(version)
            self.precision = version.manifest.precision
            self.format = version.manifest.prompt_format
            record = version.manifest.quantization or {}
        else:
            self.adapter = Path(options.adapter)
            self.precision, self.format, record = options.precision, options.prompt_format, {}
        name = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[self.compute]
        # Measured in the precision of this run: what the adapter sees is rounded to that.
        self.quantization = {**record, "bnb_4bit_compute_dtype": name}

    def _dense(self, directory: Path, dtype: str | None = None) -> Any:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=_DTYPES[dtype or self.compute], local_files_only=True
        )
        return model.to(self.device)

    def _on_nf4(self, directory: Path) -> Any:
        dtype = _DTYPES[self.compute]
        nested = bool(self.quantization.get("bnb_4bit_use_double_quant", True))
        config = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=nested,
            bnb_4bit_compute_dtype=dtype,
        )
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            quantization_config=config,
            device_map={"": self.device},
            local_files_only=True,
        )

    def _dequantized(self) -> Any:
        model = self._dense(self.base)
        turn = nf4_round_trip(self.base, self.quantization)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2:
                    parameter.copy_(turn(name, parameter.data))
        return model

    def _with_adapter(self, model: Any) -> Any:
        require_unpacked(model)
        return PeftModel.from_pretrained(model, str(self.adapter))

    def _merged(self, onto: Any, dtype: Any) -> Path:
        output = self.scratch / f"{onto}-{dtype}"
        if not output.exists():
            output.mkdir()
            result = merge_adapter(
                self.base,
                self.adapter,
                output,
                dtype=dtype,
                onto=onto,
                quantization=self.quantization,
            )
            self.relative_change = result.relative_change
        return output

    def _batch(self, rows: Sequence[TokenRow]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        longest = max(len(row.input_ids) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = [row.input_ids + [pad] * (longest - len(row.input_ids)) for row in rows]
        labels = [row.labels + [IGNORED] * (longest - len(row.labels)) for row in rows]
        seen = [[1] * len(row.input_ids) + [0] * (longest - len(row.input_ids)) for row in rows]
        to = self.device
        return (
            torch.tensor(ids, device=to),
            torch.tensor(labels, device=to),
            torch.tensor(seen, device=to),
        )


def _answer_log_probabilities(
    model: Any, ids: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Log probabilities over the vocabulary at every answer token, in fp32."""
    hidden = model(input_ids=ids, attention_mask=seen).logits[:, :-1]
    return hidden[labels[:, 1:] != IGNORED].float().log_softmax(-1)


def _examples(path: Path, limit: int) -> Iterator[Example]:
    columns = resolve_columns({}, str(path))
    found = 0
    for row in read_rows(str(path)):
        if found == limit:
            return
        try:
            yield to_example(row, columns, None)
        except RejectedRowError:
            continue
        found += 1


def _record(figures: Figures) -> dict[str, Any]:
    return {
        "label": _LABELS[figures.name],
        "held_out_loss": round(figures.loss, 5),
        "kl_divergence": float(f"{figures.divergence:.4g}"),
        "top1_agreement": round(figures.agreement, 5),
        "answer_tokens": figures.tokens,
        "generated": {key: round(value, 4) for key, value in figures.generated.items()},
        "seconds": round(figures.seconds, 1),
    }


def _line(figures: Figures) -> str:
    text = (
        f"{_LABELS[figures.name]:32}  loss {figures.loss:.4f}  KL {figures.divergence:.2e}  "
        f"top-1 {figures.agreement:.2%}"
    )
    if figures.generated:
        text += (
            f"  valid {figures.generated['valid']:.0%}  same {figures.generated['same_text']:.0%}"
        )
    return text


def plot(results: Sequence[Figures], path: Path, reference: str) -> None:
    """KL divergence of every way from the reference, and the share of valid questions."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [figures for figures in results if figures.name != reference]
    labels = [_LABELS[figures.name] for figures in shown]
    has_questions = any(figures.generated for figures in shown)
    columns = 2 if has_questions else 1
    figure, axes = pyplot.subplots(1, columns, figsize=(5 + 4 * columns, 4.5), sharey=True)
    left = axes[0] if has_questions else axes
    floor = 1e-6
    values = [max(figures.divergence, floor) for figures in shown]
    left.barh(labels, values, color=["#b3261e" if v > 0.01 else "#3b6ea5" for v in values])
    left.set_xscale("log")
    left.set_xlabel(f"KL divergence per answer token from “{_LABELS[reference]}” (nats)")
    left.invert_yaxis()
    if has_questions:
        axes[1].barh(labels, [100 * f.generated["valid"] for f in shown], color="#3b6ea5")
        axes[1].set_xlabel("generated completions that are valid questions (%)")
        axes[1].set_xlim(0, 100)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", help="source of the base model")
    parser.add_argument("adapter", help="PEFT directory, or name/3 with --registry")
    parser.add_argument("data", type=Path, help="held-out questions, JSON lines")
    parser.add_argument("--registry", help="URL; its manifest says precision and format")
    parser.add_argument("--precision", default="nf4", choices=["nf4", "bf16", "fp16", "fp32"])
    parser.add_argument("--prompt-format", default="chat/1", choices=sorted(PROMPT_FORMATS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/merge_fidelity"))
    parser.add_argument("--limit", type=int, default=100, help="rows for loss and divergence")
    parser.add_argument("--generate", type=int, default=50, help="passages to ask about; 0: none")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--compute", choices=["bf16", "fp16", "fp32"], help="fp32 isolates weights")
    parser.add_argument("--device", help="cuda, cpu")
    parser.add_argument("--scratch", type=Path, help="folder for merged models of some GB")
    return parser


if __name__ == "__main__":
    main()
