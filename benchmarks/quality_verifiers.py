# pyright: basic
# matplotlib has partial types, which strict mode refuses.
"""How well questions can be judged without a person: each verifier against the labelled ruler.

    python -m benchmarks.quality_verifiers [--adapter mcq-vi/2] [--out FOLDER]

Prints a Markdown table (area under the ROC curve; precision and recall on the test part at the cut
chosen on the development part), fits the combination that the service uses, and writes
FOLDER/verifiers.json and verifiers.png. docs/labelling.md says what the labels mean.
"""

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.logistic import fit_logistic
from mcq.confidence import FEATURES, Signals, features, signals_of
from mcq.evidence import find_evidence
from mcq.question import Question
from training.metrics import wilson
from training.verdict_run import roc_auc

CONTEXTS = Path("benchmarks/data/held_out.jsonl")
_WANTED_PRECISION = 0.9


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item that a person has read."""

    question: Question
    context: str
    adapter: str
    label: str
    split: str
    signals: Signals
    guessed: float
    flaws: int

    @property
    def is_right(self) -> bool:
        """Fit to be given to pupils as it stands."""
        return self.label == "right"


VERIFIERS: Mapping[str, Callable[[Labelled], float]] = {
    "reader with the passage: p(key)": lambda i: i.signals.key,
    "… less the likeliest other option": lambda i: i.signals.key - i.signals.rival,
    "… less the reader without the passage": lambda i: i.signals.key - i.guessed,
    "reader without the passage does not know": lambda i: -i.guessed,
    "key in the passage's words": lambda i: i.signals.coverage,
    "one sentence, no reason asked": lambda i: float(i.signals.plain_stem),
    "evidence found": lambda i: float(i.question.evidence is not None),
    "few item-writing flaws": lambda i: -float(i.flaws),
    "likelihood of the whole text in the adapter": lambda i: i.signals.logprob or 0.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--ruler", type=Path, default=Path("benchmarks/data/ruler.jsonl"))
    parser.add_argument("--adapter", default="mcq-vi/2", help="whose questions are measured")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    everything = load(options.ruler)
    items = [item for item in everything if item.adapter == options.adapter]
    print(f"{len(items)} items: {dict(Counter(i.label for i in items).most_common())}\n")
    development = [i for i in items if i.split == "development"]
    test = [i for i in items if i.split == "test"]
    weights = fit(development)
    verifiers = dict(VERIFIERS)
    verifiers["reader and likelihood together (fitted)"] = lambda i: probability(weights, i)
    rows = [measure(name, judge, development, test) for name, judge in verifiers.items()]
    print(to_markdown(rows))
    final = fit(items)
    names = ("bias", *FEATURES)
    print("\nweights, fitted on all:", dict(zip(names, final, strict=False)))
    without = fit([replace(i, signals=replace(i.signals, logprob=None)) for i in everything])
    print("without likelihood, every adapter:", dict(zip(names, without, strict=False)))
    print("each tenth judged by the others, share right:", calibration(items))
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"items": len(items), "weights": final, "verifiers": rows}
    (options.out / "verifiers.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(verifiers, items, options.out / "verifiers.png")


def load(path: Path) -> list[Labelled]:
    """The ruler with its passages and signals."""
    contexts = {r["id"]: r["context"] for r in map(json.loads, CONTEXTS.open(encoding="utf-8"))}
    items: list[Labelled] = []
    for row in map(json.loads, path.open(encoding="utf-8")):
        context = contexts[row["id"]]
        question = Question.model_validate(row["question"])
        question = question.model_copy(update={"evidence": find_evidence(context, question)})
        signals = signals_of(question, context, row["with_context"], row.get("logprob"))
        guessed = row["without_context"][question.key]
        items.append(
            Labelled(
                question,
                context,
                row["adapter"],
                row["label"],
                row["split"],
                signals,
                guessed,
                len(row["flaws"]),
            )
        )
    return items


def fit(items: Sequence[Labelled], *, decay: float = 0.02) -> list[float]:
    """Bias and weights; `decay` keeps weights small on few items."""
    known = [features(item.signals) for item in items]
    return fit_logistic(known, [item.is_right for item in items], decay=decay)


def probability(weights: Sequence[float], item: Labelled) -> float:
    """What the fitted combination says."""
    value = sum(w * f for w, f in zip(weights, (1.0, *features(item.signals)), strict=True))
    return 1 / (1 + math.exp(-value))


def measure(
    name: str,
    judge: Callable[[Labelled], float],
    development: Sequence[Labelled],
    test: Sequence[Labelled],
) -> dict[str, Any]:
    """Area on both parts; precision and recall on the test part at the development part's cut."""
    cut = best_cut([(judge(i), i.is_right) for i in development])
    kept = [i for i in test if judge(i) >= cut]
    right = sum(i.is_right for i in kept)
    everything = [*development, *test]
    return {
        "name": name,
        "auc": roc_auc(
            [judge(i) for i in everything if i.is_right],
            [judge(i) for i in everything if not i.is_right],
        ),
        "auc_test": roc_auc(
            [judge(i) for i in test if i.is_right], [judge(i) for i in test if not i.is_right]
        ),
        "cut": cut,
        "precision": right / len(kept) if kept else None,
        "precision_interval": wilson(right, len(kept)),
        "recall": right / max(1, sum(i.is_right for i in test)),
        "kept": len(kept) / max(1, len(test)),
    }


def best_cut(judged: Sequence[tuple[float, bool]]) -> float:
    """The lowest cut above which nine of ten are right; else the one with the best F1."""

    def quality(cut: float) -> tuple[float, float]:
        kept = [right for value, right in judged if value >= cut]
        precision = sum(kept) / len(kept)
        recall = sum(kept) / max(1, sum(right for _, right in judged))
        return precision, recall

    cuts = sorted({value for value, _ in judged})
    good = [c for c in cuts if quality(c)[0] >= _WANTED_PRECISION and quality(c)[1] >= 0.1]
    if good:
        return good[0]
    return max(cuts, key=lambda c: math.prod(quality(c)) / max(1e-9, sum(quality(c))))


def calibration(items: Sequence[Labelled]) -> dict[str, str]:
    """Share of right ones in bands of the probability, and from each cut on."""
    shuffled = random.Random(0).sample(list(items), len(items))
    judged: list[tuple[float, bool]] = []
    for fold in range(10):
        weights = fit([item for at, item in enumerate(shuffled) if at % 10 != fold])
        judged += [(probability(weights, item), item.is_right) for item in shuffled[fold::10]]
    result: dict[str, str] = {}
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.5), (0.5, 0.6), (0.5, 1.0), (0.6, 1.0)):
        band = [right for p, right in judged if low <= p < high]
        result[f"{low}–{high}"] = f"{sum(band)} of {len(band)}"
    return result


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of docs/quality.md."""
    lines = [
        "| verifier | AUC | AUC, test | cut | precision, test | recall, test | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["precision_interval"]
        precision = "–" if row["precision"] is None else f"{row['precision']:.0%}"
        lines.append(
            f"| {row['name']} | {row['auc']:.2f} | {row['auc_test']:.2f} | {row['cut']:.2f} | "
            f"{precision} [{low:.0%}, {high:.0%}] | {row['recall']:.0%} | {row['kept']:.0%} |"
        )
    return "\n".join(lines)


def plot(
    verifiers: Mapping[str, Callable[[Labelled], float]], items: Sequence[Labelled], path: Path
) -> None:
    """ROC curves over all items."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 6.5))
    total = sum(i.is_right for i in items)
    for name, judge in verifiers.items():
        judged = sorted(((judge(i), i.is_right) for i in items), reverse=True)
        xs, ys, hits, misses = [0.0], [0.0], 0, 0
        for at, (value, right) in enumerate(judged):
            hits, misses = hits + right, misses + (not right)
            if at + 1 == len(judged) or judged[at + 1][0] != value:
                xs.append(misses / max(1, len(items) - total))
                ys.append(hits / max(1, total))
        axis.plot(xs, ys, label=name, linewidth=2.5 if "fitted" in name else 1.2)
    axis.plot([0, 1], [0, 1], color="#999999", linestyle=":")
    axis.set_xlabel("share of the wrong items that are let through")
    axis.set_ylabel("share of the right items that are kept")
    axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
