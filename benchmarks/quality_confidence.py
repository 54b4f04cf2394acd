"""What the verifier's confidence rests on: the weights of `mcq.confidence`, and how well they do.

    python -m benchmarks.quality_confidence [FILE]

FILE (benchmarks/data/verifier.jsonl) has a JSON line for each question that was read: what the
verifier, the reader and the likelihood said of it, and its label. The validation part is of
`training/data/validation/read.jsonl`, the other of passages set aside, written by `mcq-vi/3`.
Prints areas under the ROC curve, the fitted weights, and how often questions are right at each
confidence, each passage judged by weights that were fitted on the others.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.logistic import fit_logistic
from mcq.confidence import VERIFIER_FEATURES, Signals, VerifierSignals, confidence, features, logit
from training.verdict_run import roc_auc

FILE = Path("benchmarks/data/verifier.jsonl")
_FOLDS = 10
_DECAY = 0.002
_BANDS = (0.0, 0.5, 0.6, 0.7, 0.8, 1.01)

Row = dict[str, Any]
JUDGES: Mapping[str, Callable[[Row], float]] = {
    "reader: p(key)": lambda row: row["key"],
    "likelihood of the whole text": lambda row: row["logprob"],
    "reader and likelihood, as without a verifier": lambda row: confidence(
        Signals(row["key"], 0.0, 1.0, True, row["logprob"])
    ),
    "likelihood of the stem": lambda row: row["stem_logprob"],
    "verifier: p(sound)": lambda row: logit(row["sound"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    rows: list[Row] = [json.loads(line) for line in parser.parse_args().file.open()]
    for part in ("validation", "set aside"):
        mine = [row for row in rows if row["set"] == part]
        print(f"{part}: {len(mine)} questions, {sum(map(is_right, mine))} right")
        for name, judge in JUDGES.items():
            print(f"  {area(mine, [judge(row) for row in mine]):.3f}  {name}")
    judged = cross_validated(rows)
    print(f"verifier and stem, ten-fold by passage: {area(rows, judged):.3f}")
    for low, high in pairwise(_BANDS):
        band = [is_right(row) for row, p in zip(rows, judged, strict=True) if low <= p < high]
        print(f"  from {low:.1f}: {sum(band)} of {len(band)} right")
    names = ("bias", *VERIFIER_FEATURES)
    print("weights:", dict(zip(names, fit(rows, signals), strict=True)))
    print("weights of the verifier alone:", fit(rows, lambda row: VerifierSignals(row["sound"])))


def is_right(row: Row) -> bool:
    """Fit to be given to pupils as it stands."""
    return row["label"] == "right"


def signals(row: Row) -> VerifierSignals:
    """What the service knows of a question."""
    return VerifierSignals(row["sound"], row["stem_logprob"])


def area(rows: Sequence[Row], values: Sequence[float]) -> float:
    """Under the ROC curve."""
    pairs = [(value, is_right(row)) for row, value in zip(rows, values, strict=True)]
    return roc_auc([v for v, right in pairs if right], [v for v, right in pairs if not right])


def fit(rows: Sequence[Row], known: Callable[[Row], VerifierSignals]) -> list[float]:
    """Bias and weights."""
    return fit_logistic(
        [features(known(row)) for row in rows], [is_right(row) for row in rows], decay=_DECAY
    )


def cross_validated(rows: Sequence[Row]) -> list[float]:
    """The confidence in each question by weights that no question of its passage had a part in."""
    passages = sorted({row["id"] for row in rows})
    random.Random(2).shuffle(passages)
    fold = {passage: number % _FOLDS for number, passage in enumerate(passages)}
    weights = [
        fit([row for row in rows if fold[row["id"]] != number], signals) for number in range(_FOLDS)
    ]
    return [probability(weights[fold[row["id"]]], row) for row in rows]


def probability(weights: Sequence[float], row: Row) -> float:
    """What fitted weights say."""
    terms = (1.0, *features(signals(row)))
    return 1 / (1 + math.exp(-sum(w * t for w, t in zip(weights, terms, strict=True))))


if __name__ == "__main__":
    main()
