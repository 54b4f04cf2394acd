# pyright: basic
# matplotlib has partial types, which strict mode refuses.
"""What people found in questions that they read without knowing which adapter wrote them.

    python -m benchmarks.quality_read [FILE] [--out FOLDER]

FILE has one JSON line for each passage and way of asking (benchmarks/data/read_blind.jsonl): the
question with its label, or none where it was withheld. Prints a Markdown table; writes
FOLDER/quality-read.png: of 100 passages, how many right questions each way gives, and how many
other ones.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.metrics import wilson

FILE = Path("benchmarks/data/read_blind.jsonl")
LABELS = ("bad_language", "senseless", "not_answerable", "wrong_key", "two_right", "give_away")
WITHHELD = "withheld"
LANGUAGES = {"vi": "Vietnamese", "en": "English"}


@dataclass
class Way:
    """An adapter at a quality in one language, and what was found."""

    adapter: str
    quality: str
    language: str
    found: Counter[str] = field(default_factory=Counter)

    @property
    def passages(self) -> int:
        """How many passages were asked about."""
        return self.found.total()

    @property
    def given(self) -> int:
        """How many questions came."""
        return self.passages - self.found[WITHHELD]

    @property
    def right(self) -> int:
        """How many of them are fit to be given to pupils."""
        return self.found["right"]


def ways(path: Path) -> list[Way]:
    """Every way of asking in the file, in its order."""
    result: dict[tuple[str, str, str], Way] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for quality in row["qualities"]:
            key = (row["adapter"], quality, row["language"])
            way = result.setdefault(key, Way(*key))
            way.found[row.get("label", WITHHELD)] += 1
    return list(result.values())


def to_markdown(found: Sequence[Way]) -> str:
    """A row for each way, with Wilson's interval around the right ones of those given."""
    head = "| adapter | quality | language | passages | given | right of those given | "
    lines = [head + " | ".join(label.replace("_", " ") for label in LABELS) + " |"]
    lines.append("|---" * (6 + len(LABELS)) + "|")
    for way in found:
        low, high = wilson(way.right, way.given)
        share = way.right / way.given if way.given else 0.0
        cells = [
            way.adapter,
            way.quality,
            LANGUAGES[way.language],
            str(way.passages),
            str(way.given),
            f"{way.right} = {share:.0%} [{low:.0%}, {high:.0%}]",
            *(str(way.found[label]) for label in LABELS),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: Sequence[Way], path: Path) -> None:
    """Bars of 100 passages: right, another label, withheld."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.2), sharex=True)
    for axis, (language, name) in zip(axes, LANGUAGES.items(), strict=True):
        mine = [way for way in reversed(found) if way.language == language]
        names = [f"{way.adapter}, {way.quality}" for way in mine]
        right = [100 * way.right / way.passages for way in mine]
        other = [100 * (way.given - way.right) / way.passages for way in mine]
        axis.barh(names, right, color="#3b6ea5", label="right")
        axis.barh(names, other, left=right, color="#b3261e", label="not right")
        axis.set_title(f"{name}: of 100 passages")
        axis.set_xlim(0, 100)
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    found = ways(options.file)
    print(to_markdown(found))
    options.out.mkdir(parents=True, exist_ok=True)
    plot(found, options.out / "quality-read.png")


if __name__ == "__main__":
    main()
