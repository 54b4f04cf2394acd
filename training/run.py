"""One run, top to bottom: data → model → fit → evaluate → register."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.card import run_card, write_card
from training.cleaning import Split, load_examples
from training.config import TrainingConfig
from training.errors import RunFailedError, SupervisionError
from training.evaluate import Evaluation, Passage, evaluate, load_passages, write_evaluation
from training.examples import Example
from training.guards import check_config
from training.rows import Renderer, TokenRow, make_rows
from training.supervision import check_supervision, show_row, supervised_share


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that is known before a model is loaded."""

    split: Split
    passages: list[Passage]


@dataclass
class Outcome:
    """What a run produced."""

    adapter: Path
    card: dict[str, Any]
    evaluation: Evaluation | None
    version: Any | None
    """`model_registry.AdapterVersion`, or None if the run was not to register."""


def prepare_data(config: TrainingConfig) -> Prepared:
    """Read and clean the data; drop what the evaluation will ask about."""
    split = load_examples(config.data, held_out_contexts(config))
    otherwise = [Passage(e.place, e.context, e.language) for e in split.validation]
    passages = load_passages(config.evaluation, otherwise) if config.evaluation.enabled else []
    return Prepared(split, passages)


def held_out_contexts(config: TrainingConfig) -> list[str]:
    """Every passage of the file that the evaluation asks about: not to be trained on."""
    if not config.evaluation.enabled or config.evaluation.contexts is None:
        return []
    everything = config.evaluation.model_copy(update={"use": None, "limit": None})
    return [passage.context for passage in load_passages(everything)]


def opened(config: TrainingConfig, *, resume: bool, quiet: bool) -> Callable[[str], None]:
    """Check the configuration and make the run's folder; returns how to speak to people."""
    say = _say_nothing if quiet else _say_to_main
    for warning in check_config(config):
        say(f"warning: {warning}")
    _prepare_folder(config, resume)
    return say


def watching(config: TrainingConfig, quiet: bool, callbacks: Sequence[Any]) -> list[Any]:
    """What stands by while a trainer runs: progress, signals, and what the caller adds."""
    from training.progress import Progress, SaveOnSignal

    return [Progress(config.run_dir / "log.jsonl", quiet=quiet), SaveOnSignal(), *callbacks]


def train(
    config: TrainingConfig,
    *,
    resume: bool = False,
    show_batch: bool = False,
    quiet: bool = False,
    callbacks: Sequence[Any] = (),
) -> Outcome:
    """The whole run.

    Raises:
        TrainingError: What is wrong and what to do about it.
    """
    if config.objective == "preference":
        from training.preference_run import tune

        return tune(config, resume=resume, quiet=quiet, callbacks=callbacks)
    if config.objective == "verdict":
        from training.verdict_run import teach

        return teach(config, resume=resume, quiet=quiet, callbacks=callbacks)
    started = time.time()
    say = opened(config, resume=resume, quiet=quiet)
    prepared = prepare_data(config)
    report = prepared.split.report
    say(report.to_markdown())

    import transformers  # from here on a model is needed; before, errors come within a second

    from training.fit import fit
    from training.memory import remedies_for
    from training.model import load_base

    transformers.set_seed(config.fit.seed)
    base = load_base(config)
    renderer = Renderer(base.tokenizer, config.prompt_format)
    rows = _rows(config, prepared.split.train, renderer, report)
    validation = (
        _rows(config, prepared.split.validation, renderer, report)
        if prepared.split.validation
        else []
    )
    if config.objective == "mcq":
        check_supervision([*rows, *validation], renderer, base.tokenizer.pad_token_id)
    say(
        f"{len(rows)} rows, {sum(len(row.input_ids) for row in rows):,} tokens, the longest "
        f"{max(len(row.input_ids) for row in rows)}; the loss covers {supervised_share(rows):.0%}"
    )
    if show_batch:
        for row in rows[: config.fit.per_device_train_batch_size]:
            print(show_row(row, base.tokenizer, colour=sys.stdout.isatty()), end="\n\n")

    fitted = fit(
        config,
        base,
        rows,
        validation,
        resume=resume,
        callbacks=watching(config, quiet, callbacks),
        remedies=lambda: remedies_for(config, base),
    )
    return finish(config, base, prepared, rows, fitted, time.time() - started, say)


def finish(
    config: TrainingConfig,
    base: Any,
    prepared: Prepared,
    rows: Sequence[TokenRow],
    fitted: Any,
    seconds: float,
    say: Callable[[str], None],
) -> Outcome:
    """Judge, write the card, register: the end of every run that has fitted an adapter."""
    from training.fit import changes_base, held_out_loss

    if not is_main_process():
        return Outcome(fitted.directory, {}, None, None)
    evaluation = None
    if config.evaluation.enabled and prepared.passages and config.objective != "text":
        say(f"writing questions about {len(prepared.passages)} held-out passages")
        judging = config.evaluation
        if changes_base(config.method):
            say("the reader is left out: with this start the base's weights are no longer its own")
            judging = judging.model_copy(update={"reader": False})
        evaluation = evaluate(
            fitted.model,
            Renderer(base.tokenizer, config.prompt_format),
            prepared.passages,
            judging,
            label=config.name,
            known_stems=[example.question.question for example in prepared.split.train],
        )
        evaluation.metrics["held_out_loss"] = held_out_loss(fitted.history)
        write_evaluation(evaluation, config.run_dir)
        say(json.dumps(evaluation.to_json()["unconstrained"], ensure_ascii=False, indent=1))
    card = run_card(config, base, prepared.split, rows, fitted, seconds)
    return record(config, card, fitted.directory, evaluation, say)


def record(
    config: TrainingConfig,
    card: dict[str, Any],
    adapter: Path,
    evaluation: Evaluation | None,
    say: Callable[[str], None],
) -> Outcome:
    """Write the card beside the adapter, and register both."""
    write_card(card, config.run_dir)
    version = None
    servable = config.method.kind == "lora" and not config.method.use_dora
    if config.registry is not None and servable:
        from training.register import register

        version = register(config.run_dir, config.registry)
        say(f"registered {version.name}/{version.number} ({version.digest[:19]}…)")
    return Outcome(adapter, card, evaluation, version)


def _rows(
    config: TrainingConfig, examples: Sequence[Example], renderer: Renderer, report: Any
) -> list[TokenRow]:
    if config.objective == "mcq":
        return make_rows(examples, renderer, config.data, report)
    passages = dict.fromkeys(example.context for example in examples)
    return [renderer.text_row(passage) for passage in passages]


def _prepare_folder(config: TrainingConfig, resume: bool) -> None:
    folder = config.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
        if not resume:
            for stale in ("checkpoints", "adapter", "tensorboard"):
                shutil.rmtree(folder / stale, ignore_errors=True)
            (folder / "log.jsonl").unlink(missing_ok=True)
    except OSError as error:
        raise RunFailedError(f"{folder} cannot be written: {error.strerror}") from error


def is_main_process() -> bool:
    """Whether this process writes files and speaks."""
    import os

    return os.environ.get("RANK", "0") == "0"


def _say_to_main(text: str) -> None:
    if is_main_process():
        print(text, file=sys.stderr, flush=True)


def _say_nothing(text: str) -> None:
    pass


__all__ = ["Outcome", "Prepared", "SupervisionError", "prepare_data", "train"]
