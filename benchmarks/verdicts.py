# pyright: basic
# drives torch and peft, which are typed too loosely for strict checking
"""Lets a verifier adapter judge candidate items, each with every option in turn as the right one.

    python -m benchmarks.verdicts VERIFIER_RUN CANDIDATES.jsonl … [--base DIR]

Writes CANDIDATES.verdicts.jsonl beside each file: a row for each item in order, with the verifier's
probability that the question is sound if A, B, C or D were the right option (`mcq.verdict`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

from mcq.language import Language
from mcq.question import LETTERS, Letter, Question
from mcq.verdict import CHOICES, probability_of_yes, verdict_prompt


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("verifier", type=Path, help="a run's or an adapter's folder")
    parser.add_argument("candidates", type=Path, nargs="+")
    parser.add_argument("--base", default="embedded:qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--contexts", type=Path, default=Path("benchmarks/data/held_out.jsonl"))
    parser.add_argument("--tokens", type=int, default=4096, help="in a batch")
    options = parser.parse_args()

    import peft

    from training.compare import base_config
    from training.model import load_base
    from training.rows import Renderer

    base = load_base(base_config(options.base, False, "chat/1"))
    folder = options.verifier
    folder = folder / "adapter" if (folder / "adapter").is_dir() else folder
    model = peft.PeftModel.from_pretrained(base.model, folder).eval()
    renderer = Renderer(base.tokenizer, "chat/1")
    contexts = {row["id"]: row for row in map(json.loads, options.contexts.open(encoding="utf-8"))}
    for path in options.candidates:
        rows = judge(model, renderer, path, contexts, options.tokens)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.with_suffix(".verdicts.jsonl").write_text(text, encoding="utf-8")
        print(f"{path}: {len(rows)} items")


def judge(
    model: Any, renderer: Any, path: Path, contexts: dict[str, Any], tokens: int
) -> list[dict[Letter, float] | None]:
    """For each item, the verifier's yes to each option; None where there is no question."""
    from training.answerability import Asked, choice_scores

    asked: list[Asked] = []
    items = [json.loads(line) for line in path.open(encoding="utf-8")]
    for item in items:
        if item["question"] is None:
            continue
        question = Question.model_validate(item["question"])
        language: Language = item["language"]
        context = item.get("context") or contexts[item["id"]]["context"]
        for letter in LETTERS:
            prompt = verdict_prompt(question, context, language, letter)
            asked.append(Asked(prompt.prompt, prompt.prefix, CHOICES[language]))
    scores = iter(choice_scores(model, renderer, asked, tokens_per_batch=tokens))
    return [
        None
        if item["question"] is None
        else {letter: round(probability_of_yes(next(scores)), 5) for letter in LETTERS}
        for item in items
    ]


if __name__ == "__main__":
    main()
