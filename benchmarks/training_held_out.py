"""Sets passages aside before any training: `python benchmarks/training_held_out.py DATA_FOLDER`.

Writes benchmarks/data/held_out.jsonl. Each passage has one use: `evaluation` (200, training's
figures), `ruler` and `ruler_en` (items to be read and labelled), `final` and `final_en` (the last
word, looked at once). No passage here occurs in any training file, nor twice.
"""

import argparse
import json
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parent / "data" / "held_out.jsonl"
SEED = 20261124

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/, validation/, contexts/ …")
    data = parser.parse_args().data
    trained_on = {
        passage_key(row["context"])
        for name in ("composed_vi", "composed_en", "handwritten_vi")
        for row in read(data / "train" / f"{name}.jsonl")
    }
    rows = list(select(data, random.Random(SEED)))
    keys = [passage_key(row["context"]) for row in rows]
    assert len(set(keys)) == len(keys), "a passage has two uses"
    assert not trained_on & set(keys), "a passage is trained on"
    OUTPUT.parent.mkdir(exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    OUTPUT.write_text("".join(lines), encoding="utf-8")
    for use in dict.fromkeys(row["use"] for row in rows):
        print(f"{use:12} {sum(row['use'] == use for row in rows)}")


def select(data: Path, rng: random.Random) -> Iterator[Row]:
    """Passages in the order of the file, each with its use."""
    wikipedia = distinct(read(data / "contexts" / "wikipedia_vi.jsonl"))
    rng.shuffle(wikipedia)
    composed_en = distinct(read(data / "validation" / "composed_en.jsonl"))
    news = one_level_each(distinct(read(data / "validation" / "onestopqa_en.jsonl")))
    encyclopaedia = distinct(read(data / "extractive" / "xquad_en.jsonl"))
    encyclopaedia = [row for row in encyclopaedia if 60 <= len(row["context"].split()) <= 180]
    rng.shuffle(encyclopaedia)
    own = [
        row
        for name in ("composed_vi", "handwritten_vi")
        for row in distinct(read(data / "validation" / f"{name}.jsonl"))
    ]
    yield from used_for("evaluation", own + wikipedia[:102])
    yield from used_for("ruler", wikipedia[102:236])
    yield from used_for("final", wikipedia[236:336])
    half = len(news) // 2
    missing = 60 - len(composed_en) - half
    yield from used_for("ruler_en", composed_en + news[:half] + encyclopaedia[:missing])
    rest = 50 - (len(news) - half)
    yield from used_for("final_en", news[half:] + encyclopaedia[missing : missing + rest])


def used_for(use: str, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        kept = {name: row[name] for name in ("lang", "subject", "context", "source", "licence")}
        yield {"id": f"{use}-{row['id']}", "use": use, **kept}


def one_level_each(rows: list[Row]) -> list[Row]:
    """OneStopQA tells each paragraph at three levels, next to each other; keep one of them."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row["question"], row)
    seen: set[str] = set()
    result: list[Row] = []
    for row in kept.values():
        words = set(re.findall(r"\w{5,}", row["context"].lower()))
        if not any(len(words & set(other.split())) > 0.4 * len(words) for other in seen):
            seen.add(" ".join(words))
            result.append(row)
    return result


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The first row of each passage."""
    return list({passage_key(row["context"]): row for row in reversed(list(rows))}.values())[::-1]


def passage_key(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold()))


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


if __name__ == "__main__":
    main()
