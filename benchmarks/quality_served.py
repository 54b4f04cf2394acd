"""What the service answers for passages that were set aside, one JSON line for each request.

    python -m benchmarks.quality_served OUT.jsonl --url http://127.0.0.1:8000 \\
        --use final final_en --quality fast balanced best

One question is asked for each passage. The whole answer is kept: the question with its checks, or
the reasons for which it was withheld, and what it cost. Goes on where it was stopped.
"""

import argparse
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from training.config import EvaluationConfig
from training.evaluate import Passage, load_passages


def main() -> None:
    """Ask for everything that the file does not have yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--contexts", default="benchmarks/data/held_out.jsonl")
    parser.add_argument("--use", nargs="+", default=["final", "final_en"])
    parser.add_argument("--limit", type=int, help="passages of each use")
    parser.add_argument("--quality", nargs="+", default=["balanced", "best"])
    parser.add_argument("--adapter", help="the service's default if left out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1)
    options = parser.parse_args()
    done = _done(options.out)
    qualities: list[str] = options.quality
    uses: list[str] = options.use
    waiting = [
        (passage, quality)
        for quality in qualities
        for use in uses
        for passage in load_passages(
            EvaluationConfig(contexts=options.contexts, use=use, limit=options.limit)
        )
        if (passage.id, quality) not in done
    ]
    begun = time.monotonic()
    with (
        ThreadPoolExecutor(options.at_once) as pool,
        options.out.open("a", encoding="utf-8") as out,
    ):
        asked = [pool.submit(_ask, options, passage, quality) for passage, quality in waiting]
        for number, future in enumerate(asked, 1):
            answer = future.result()
            out.write(json.dumps(answer, ensure_ascii=False) + "\n")
            out.flush()
            left = (time.monotonic() - begun) * (len(waiting) / number - 1)
            print(f"{number} of {len(waiting)}, {left:.0f} s left", end="\r", flush=True)
    print()
    summarize(options.out)


def _done(path: Path) -> set[tuple[str, str]]:
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {(row["id"], row["quality"]) for row in rows}


def _ask(options: argparse.Namespace, passage: Passage, quality: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "context": passage.context,
        "language": passage.language,
        "n": 1,
        "quality": quality,
        "seed": options.seed,
    }
    if options.adapter:
        body["adapter"] = options.adapter
    request = urllib.request.Request(
        f"{options.url}/generate",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Accept": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        answer = json.load(response)
    return {**answer, "id": passage.id, "quality": quality}


def summarize(path: Path) -> None:
    """A line for each quality: how many came, and what one passage cost."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for quality in sorted({row["quality"] for row in rows}):
        mine = [row for row in rows if row["quality"] == quality]
        came = sum(bool(row["questions"]) for row in mine)
        tokens = sum(row["usage"]["completion_tokens"] for row in mine) / len(mine)
        seconds = sum(row["usage"]["seconds"] for row in mine) / len(mine)
        print(
            f"{quality}: {came} of {len(mine)} passages answered, "
            f"{tokens:.0f} tokens and {seconds:.1f} s each"
        )


if __name__ == "__main__":
    main()
