"""How often `find_evidence` finds the proof that an item's author marked.

python -m benchmarks.evidence
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcq.evidence import find_evidence
from mcq.question import LETTERS, Question

DATA = Path("training/data")


def rows() -> Iterator[dict[str, Any]]:
    """The authored items that carry a marked proof."""
    for path in sorted(DATA.glob("*/composed_*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("evidence"):
                yield row


def question_of(row: dict[str, Any]) -> Question:
    """The question of one row."""
    return Question(
        question=row["question"],
        options={letter: row[f"answer_{letter.lower()}"] for letter in LETTERS},
        key=row["correct_answer"],
    )


def main() -> None:
    """Print the three shares that the module's thresholds were chosen by."""
    items = list(rows())
    rng = random.Random(0)
    found = covered = foreign = 0
    for row in items:
        question = question_of(row)
        evidence = find_evidence(row["context"], question)
        other = rng.choice(items)
        foreign += find_evidence(other["context"], question) is not None
        if evidence is None:
            continue
        found += 1
        start = row["context"].find(row["evidence"])
        end = start + len(row["evidence"])
        overlap = min(evidence.end, end) - max(evidence.start, start)
        covered += overlap > 0.5 * min(end - start, evidence.end - evidence.start)
    print(f"items                              {len(items)}")
    print(f"evidence found                     {found / len(items):.1%}")
    print(f"  … that covers the author's       {covered / found:.1%}")
    print(f"evidence found in a foreign text   {foreign / len(items):.1%}")


if __name__ == "__main__":
    main()
