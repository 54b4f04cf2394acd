# pyright: basic
# drives torch and peft, which are typed too loosely for strict checking
"""Trains several recipes, judges each on the held-out passages, and keeps candidate items.

    python -m benchmarks.training_recipes train  OUT [--base DIR] [--set fit.max_steps=4] RECIPE …
    python -m benchmarks.training_recipes judge  OUT [--base DIR] [--limit N] RECIPE …

`train` writes OUT/RECIPE (a run's folder); `judge` may run beside it on the same GPU, since
generation leaves most of one idle: it takes each recipe as soon as it is finished, writes
OUT/RECIPE/evaluation.json and items.jsonl, and then OUT/candidates-*.jsonl for the passages that
are to be read by people. `RECIPE:r8` is RECIPE cut to rank 8 by singular values.
"""

import argparse
import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig, TrainingConfig, load_config
from training.evaluate import (
    Evaluation,
    Passage,
    add_reader,
    load_passages,
    write_evaluation,
    write_items,
)
from training.metrics import JudgedItem, summarize

CONFIGS = Path("training/configs")
HELD_OUT = "benchmarks/data/held_out.jsonl"
_STARTED = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("role", choices=("train", "judge"))
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--base", default=None, help="another source for the base model")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--limit", type=int, default=None, help="passages for each use")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=65536, help="reader's tokens in a batch")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--final-from", nargs="+", default=[], help="recipes fit to be shipped")
    parser.add_argument(
        "--candidates",
        choices=("all", "ruler", "final", "none"),
        default="all",
        help="items to be read; `final` samples the first recipe and judges nothing",
    )
    parser.add_argument("--then", nargs="+", default=[], help="judged after the candidates")
    options = parser.parse_args()
    train_all(options) if options.role == "train" else Judge(options).run()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {text}", flush=True)


def configure(options: Any, recipe: str) -> TrainingConfig:
    overrides = [f"output_dir={options.out / recipe}", "registry=null", *options.set]
    if options.base:
        overrides.append(f"base={options.base}")
    return load_config(CONFIGS / f"{recipe}.yaml", tuple(overrides))


def train_all(options: Any) -> None:
    import torch

    from training.run import train

    for recipe in options.recipes:
        if ":" in recipe:
            cut(options, recipe)
            continue
        config = configure(options, recipe)
        begun = time.monotonic()
        try:
            outcome = train(_without_evaluation(config))
        except Exception as error:  # one recipe's failure must not cost the others
            say(f"{recipe} FAILED: {type(error).__name__}: {error}")
            (options.out / recipe / "FAILED").write_text(str(error))
            continue
        card = outcome.card
        say(
            f"{recipe}: {time.monotonic() - begun:.1f} s in all, peak {card['peak_memory_gib']} GiB"
        )
        del outcome
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        (options.out / recipe / "DONE").write_text("")


def _without_evaluation(config: TrainingConfig) -> TrainingConfig:
    """It is judged by the other process."""
    evaluation = config.evaluation.model_copy(update={"enabled": False})
    return config.model_copy(update={"evaluation": evaluation})


def cut(options: Any, recipe: str) -> None:
    from training.truncate import truncate

    source, _, rank = recipe.partition(":r")
    target = options.out / recipe.replace(":", "-")
    kept = truncate(options.out / source / "adapter", target / "adapter", int(rank))
    card = json.loads((options.out / source / "run.json").read_text())
    card["method"] |= {"truncated_to_rank": int(rank), "energy_kept": round(kept, 4)}
    (target / "run.json").write_text(json.dumps(card, ensure_ascii=False, indent=2))
    (target / "DONE").write_text("")
    say(f"{recipe}: keeps {kept:.1%} of the energy")


class Judge:
    """Holds one base model in 16 bits (and one in NF4 when needed) and judges adapters on it."""

    def __init__(self, options: Any) -> None:
        from training.model import load_base
        from training.rows import Renderer

        self.options = options
        first = next(r for r in options.recipes if r != "base" and ":" not in r)
        self.config = configure(options, first)
        self.base = load_base(self.config)
        self.renderer = Renderer(self.base.tokenizer, self.config.prompt_format)
        self.model: Any = self.base.model
        self.evaluation = EvaluationConfig(
            contexts=HELD_OUT,
            use="evaluation",
            limit=options.limit,
            batch_size=options.batch,
            max_new_tokens=options.new_tokens,
        )
        self.scores: dict[str, float] = {}
        say("judge is ready")

    def run(self) -> None:
        if self.options.candidates == "final":
            self.final(self.options.recipes[0].replace(":", "-"))
            return
        for recipe in self.options.recipes:
            self.judge(recipe)
        if self.options.candidates != "none":
            self.candidates()
        for recipe in self.options.then:
            self.judge(recipe)
        (self.options.out / "JUDGED").write_text("")

    def judge(self, recipe: str) -> None:
        label = recipe.replace(":", "-")
        if not self.wait_for(label):
            say(f"{label}: no adapter")
            return
        writer = self.attach(label)
        passages = self.passages("evaluation")
        begun = time.monotonic()
        items = write_items(writer, self.renderer, passages, self.evaluation)
        say(f"{label}: {len(items)} items in {time.monotonic() - begun:.1f} s")
        add_reader(self.model, self.renderer, items, tokens_per_batch=self.options.tokens)
        by_source = {
            "composed": [i for i in items if "-ctxvi-" not in i.id],
            "wikipedia": [i for i in items if "-ctxvi-" in i.id],
        }
        evaluation = Evaluation(label, summarize(items), items)
        evaluation.by_language = {name: summarize(part) for name, part in by_source.items()}
        write_evaluation(evaluation, self.options.out / label)
        m = evaluation.metrics
        self.scores[label] = sum(i.reader_right for i in items) / len(items)
        say(
            f"{label}: valid {m['valid_format']}, reader {m.get('reader_with_passage')} v "
            f"{m.get('reader_without_passage')}, longest {m['key_strictly_longest']}, "
            f"evidence {m['evidence_found']}, malformed {m['malformed']}"
        )
        self.release(writer)

    def wait_for(self, label: str) -> bool:
        if label == "base":
            return True
        folder = self.options.out / label
        while not (folder / "DONE").exists():
            if (folder / "FAILED").exists():
                return False
            time.sleep(0.5)
        return True

    def attach(self, label: str) -> Any:
        """The model that writes with this adapter; the 16-bit one, unless it learned on NF4."""
        import peft

        if isinstance(self.model, peft.PeftModel):  # the bare base may come after an adapter
            layers: Any = self.model.base_model
            layers.disable_adapter_layers() if label == "base" else layers.enable_adapter_layers()
        if label == "base":
            return self.model
        folder = self.options.out / label
        card = json.loads((folder / "run.json").read_text())
        if card["base"]["precision"] == "nf4":
            from training.model import load_base

            quantized = load_base(configure(self.options, label)).model
            return peft.PeftModel.from_pretrained(quantized, folder / "adapter").eval()
        if not isinstance(self.model, peft.PeftModel):
            self.model = peft.PeftModel.from_pretrained(
                self.model, folder / "adapter", adapter_name=label
            ).eval()
        elif label not in self.model.peft_config:
            self.model.load_adapter(folder / "adapter", adapter_name=label)
        self.model.set_adapter(label)
        return self.model

    def release(self, writer: Any) -> None:
        import torch

        if writer is not self.model:
            del writer
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def passages(self, use: str) -> list[Passage]:
        return load_passages(self.evaluation.model_copy(update={"use": use}))

    def candidates(self) -> None:
        """Items for people to label, and sixteen samples each for the final passages."""
        ranked = sorted(
            (label for label in self.scores if label != "base" and "qlora" not in label),
            key=lambda label: -self.scores[label],
        )
        shippable = [r.replace(":", "-") for r in self.options.final_from]
        best = next((label for label in ranked if label in shippable), ranked[0])
        say(f"ranked: {[(r, round(self.scores[r], 3)) for r in ranked]}; to be shipped: {best}")
        (self.options.out / "best.txt").write_text(best)
        ruler = [*self.passages("ruler"), *self.passages("ruler_en")]
        others = [label for label in ranked if label != best][:2]
        self.sample(best, "ruler", ruler, ((0.0, 1), (0.7, 2), (0.8, 1)))
        for label in others:
            self.sample(label, "ruler", ruler, ((0.0, 1), (0.8, 1)))
        if self.options.candidates == "all":
            self.final(best)

    def final(self, label: str) -> None:
        """A greedy item and sixteen samples for each passage that was set aside first."""
        passages = [*self.passages("final"), *self.passages("final_en")]
        self.sample(label, "final", passages, ((0.0, 1), (0.8, 16)))

    def sample(
        self,
        label: str,
        use: str,
        passages: Sequence[Passage],
        settings: Sequence[tuple[float, int]],
    ) -> None:
        import torch

        path = self.options.out / f"candidates-{use}-{label}.jsonl"
        writer = self.attach(label)
        for temperature, n in settings:
            begun = time.monotonic()
            config = self.evaluation.model_copy(
                update={"batch_size": max(1, self.options.batch * 2 // n)}
            )
            items = write_items(
                writer, self.renderer, passages, config, temperature=temperature, n=n, seed=7
            )
            written = time.monotonic()
            add_reader(
                self.model,
                self.renderer,
                items,
                tokens_per_batch=self.options.tokens,
                without_passage=temperature == 0,
            )
            self.keep(path, label, temperature, items)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            say(
                f"{label} {use} T={temperature} x{n}: {len(items)} items, "
                f"{written - begun:.1f} s written, {time.monotonic() - written:.1f} s read"
            )

    def keep(self, path: Path, label: str, temperature: float, items: Sequence[JudgedItem]) -> None:
        with path.open("a", encoding="utf-8") as file:
            for item in items:
                values = item.to_json()
                del values["context"], values["extra"]
                values |= {"adapter": label, "temperature": temperature}
                for name in ("with_context", "without_context"):
                    if values[name]:
                        values[name] = {k: round(v, 4) for k, v in values[name].items()}
                file.write(json.dumps(values, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
