# pyright: basic
# drives torch and peft, which are typed too loosely for strict checking
"""`python -m training sample`: many candidates for each passage, judged, as JSON Lines.

What self-training selects from, and what people label. Passages are done in groups, each written
when it is complete; a run that was stopped goes on where it was.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mcq.question import Question
from training.config import EvaluationConfig
from training.errors import DataError
from training.evaluate import Passage, add_reader, write_items
from training.metrics import JudgedItem
from training.rows import Renderer

_GROUP = 64
"""Passages that are written, read and saved together."""


def sample(
    model: Any,
    renderer: Renderer,
    passages: Sequence[Passage],
    path: Path,
    *,
    n: int,
    temperature: float,
    seed: int = 0,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    reader_tokens: int = 4096,
    rotations: int = 4,
    quiet: bool = False,
) -> int:
    """Append `n` judged candidates of each passage to `path`; those already there are left alone.

    Returns:
        How many candidates were written now.
    """
    done = {item.id for item in read_candidates(path)} if path.exists() else set[str]()
    waiting = [passage for passage in passages if passage.id not in done]
    settings = EvaluationConfig(batch_size=max(1, batch_size // n), max_new_tokens=max_new_tokens)
    written, begun = 0, time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(waiting), _GROUP):
        group = waiting[start : start + _GROUP]
        items = write_items(
            model, renderer, group, settings, temperature=temperature, n=n, seed=seed + start
        )
        items = unlike(items)
        add_reader(model, renderer, items, tokens_per_batch=reader_tokens, rotations=rotations)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(i.to_json(), ensure_ascii=False) + "\n" for i in items)
        written += len(items)
        if not quiet:
            share = (start + len(group)) / len(waiting)
            left = (time.monotonic() - begun) * (1 / share - 1)
            print(f"{share:4.0%}  {written} candidates, {left:.0f} s left", flush=True)
    return written


def unlike(items: Sequence[JudgedItem]) -> list[JudgedItem]:
    """Each text of a passage once: a sure model writes the same again and again."""
    return list({(item.id, item.text): item for item in items}.values())


def read_candidates(path: Path) -> Iterator[JudgedItem]:
    """The candidates of a file.

    Raises:
        DataError: A line is not what `sample` writes.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
                question = values["question"] and Question.model_validate(values["question"])
                values |= {"question": question, "flaws": tuple(values["flaws"])}
                yield JudgedItem(**values)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number}: not a candidate ({error})") from error


def select(candidates: Path, *, prompt_format: str, source: str, licence: str) -> dict[str, Any]:
    """Preference pairs beside the candidates (`pairs.jsonl`), and what came of them."""
    from collections import Counter

    from training.selection import pairs

    by_passage: dict[str, list[JudgedItem]] = {}
    for item in read_candidates(candidates):
        by_passage.setdefault(item.id, []).append(item)
    found = [pair for items in by_passage.values() for pair in pairs(items)]
    if not found:
        raise DataError(
            f"{candidates}: no passage has a good and a bad candidate; sample more (--n), or hotter"
        )
    rows = [pair.to_json(prompt_format, source, licence) for pair in found]
    target = candidates.with_name("pairs.jsonl")
    aside = target.with_suffix(".partial")
    aside.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    aside.rename(target)
    return {
        "passages": len(by_passage),
        "candidates": sum(map(len, by_passage.values())),
        "pairs": len(rows),
        "rejected_for": dict(Counter(row["reason"] for row in rows).most_common()),
        "file": str(target),
    }
