# pyright: basic
# drives torch and peft, which are typed too loosely for strict checking
"""One run of a verifier, top to bottom: sound and spoilt questions → fit → measure → register."""

import json
import time
from collections.abc import Sequence
from typing import Any

from training.card import run_card
from training.cleaning import load_examples
from training.config import TrainingConfig
from training.metrics import Rate, to_json
from training.rows import Renderer
from training.run import (
    Outcome,
    held_out_contexts,
    is_main_process,
    opened,
    record,
    watching,
)
from training.verdicts import Case, cases, verdict_row


def teach(
    config: TrainingConfig,
    *,
    resume: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Any] = (),
) -> Outcome:
    """The whole run; `training.run.train` calls it for the objective `verdict`.

    Raises:
        TrainingError: What is wrong and what to do about it.
    """
    started = time.time()
    say = opened(config, resume=resume, quiet=quiet)
    split = load_examples(config.data, held_out_contexts(config), faulty=True)
    say(split.report.to_markdown())

    import transformers

    from training.fit import fit
    from training.memory import remedies_for
    from training.model import load_base

    transformers.set_seed(config.fit.seed)
    base = load_base(config)
    renderer = Renderer(base.tokenizer, "chat/1")  # only its chat template and end token count
    taught = cases(split.train, config.data.shuffle_seed)
    rows = [verdict_row(case, renderer) for case in taught]
    rows = [row for row in rows if len(row.input_ids) <= config.data.max_length]
    say(f"{len(rows)} questions, {sum(case.is_sound for case in taught)} of them sound")
    asked = cases(split.validation, config.data.shuffle_seed)
    fitted = fit(
        config,
        base,
        rows,
        [verdict_row(case, renderer) for case in asked],
        resume=resume,
        callbacks=watching(config, quiet, callbacks),
        remedies=lambda: remedies_for(config, base),
    )
    seconds = time.time() - started
    if not is_main_process():
        return Outcome(fitted.directory, {}, None, None)
    if asked:
        measured = {"label": config.name, "verdicts": measure(fitted.model, renderer, asked)}
        text = json.dumps(measured, ensure_ascii=False, indent=2)
        (config.run_dir / "evaluation.json").write_text(text + "\n", encoding="utf-8")
        say(text)
    card = run_card(config, base, split, rows, fitted, seconds)
    return record(config, card, fitted.directory, None, say)


def measure(model: Any, renderer: Renderer, asked: Sequence[Case]) -> dict[str, Any]:
    """How well sound questions are told from spoilt ones, by kind of damage."""
    yes = verdicts(model, renderer, asked)
    sound = [p for case, p in zip(asked, yes, strict=True) if case.is_sound]
    spoilt = [p for case, p in zip(asked, yes, strict=True) if not case.is_sound]
    result: dict[str, Any] = {"roc_auc": roc_auc(sound, spoilt)}
    for damage in dict.fromkeys(case.damage for case in asked):
        mine = [(c, p) for c, p in zip(asked, yes, strict=True) if c.damage == damage]
        result[f"right_{damage}"] = Rate.over((p > 0.5) == c.is_sound for c, p in mine)
    return to_json(result)


def verdicts(
    model: Any, renderer: Renderer, asked: Sequence[Case], *, tokens_per_batch: int = 4096
) -> list[float]:
    """The verifier's probability that each question is sound."""
    from mcq.verdict import CHOICES, probability_of_yes
    from training.answerability import Asked, choice_scores

    prompts = [(case.prompt, CHOICES[case.example.language]) for case in asked]
    scores = choice_scores(
        model,
        renderer,
        [Asked(p.prompt, p.prefix, choices) for p, choices in prompts],
        tokens_per_batch=tokens_per_batch,
    )
    return [probability_of_yes(row) for row in scores]


def roc_auc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """The chance that one of `higher` is above one of `lower`; ties count half."""
    if not higher or not lower:
        return 0.5
    wins = sum((a > b) + 0.5 * (a == b) for a in higher for b in lower)
    return wins / (len(higher) * len(lower))
