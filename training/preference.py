# pyright: basic
# trl, transformers and peft are typed too loosely for strict checking.
"""Preference tuning: an adapter learns which of two completions of a prompt is the better one.

Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) with a share of the plain
loss on the better one, which keeps it from becoming unlikely too (Pang et al. 2024,
arXiv:2404.19733). The reference is the adapter that the run starts from. TRL computes all of it;
here prompts and completions become tokens exactly as in `training.rows`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mcq.errors import MalformedCompletionError
from training.cleaning import CleaningReport, Split, passage_key
from training.config import TrainingConfig
from training.errors import DataError
from training.examples import Example
from training.fit import Fitted, run_trainer, shared_arguments
from training.model import Base, load_start
from training.rows import IGNORED, Renderer, TokenRow
from training.sources import RawRow, read_rows

REQUIRED = ("context", "lang", "prompt_format", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class PairRow:
    """One prompt with two completions, in tokens, each with its end token."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def chosen(self) -> TokenRow:
        """The better half as a row of the plain loss."""
        labels = [IGNORED] * len(self.prompt_ids) + self.chosen_ids
        return TokenRow(self.prompt_ids + self.chosen_ids, labels)


def load_pairs(config: TrainingConfig, held_out: Sequence[str] = ()) -> tuple[Split, list[RawRow]]:
    """Pairs of the configured files; those about held-out passages are dropped as leaks.

    Returns:
        The better questions as a split, and the rows they come from in the same order.

    Raises:
        DataError: A column is missing, a row is for another prompt format, or nothing is left.
    """
    from mcq.prompts import prompt_format

    parse = prompt_format(config.prompt_format).parse
    report = CleaningReport()
    held = {passage_key(context) for context in held_out}
    examples: list[Example] = []
    rows: list[RawRow] = []
    for source in config.data.train:
        report.read[source.path] += 0
        for row in read_rows(source.path):
            _require(row, config.prompt_format)
            report.read[source.path] += 1
            values = row.values
            if passage_key(values["context"]) in held:
                report.drop("leak", row.place, "its passage is in the evaluation data")
                continue
            try:
                question = parse(values["chosen"], values["lang"])
            except MalformedCompletionError as error:
                report.drop("malformed", row.place, f"the chosen one: {error}")
                continue
            if values["chosen"] == values["rejected"]:
                report.drop("same", row.place, "both completions are the same")
                continue
            origin, licence = str(values.get("source", "")), str(values.get("licence", ""))
            examples.append(
                Example(
                    row.place,
                    values["context"],
                    question,
                    values["lang"],
                    source=origin,
                    licence=licence,
                )
            )
            rows.append(row)
            report.kept[source.path] += 1
    if not rows:
        raise DataError("No pair is left to train on; make some with `python -m training select`")
    return Split(tuple(examples), (), report), rows


def _require(row: RawRow, format_name: str) -> None:
    missing = [name for name in REQUIRED if not row.values.get(name)]
    if missing:
        raise DataError(
            f"{row.place}: column {', '.join(missing)} is missing or empty; "
            f"found: {', '.join(map(str, row.values))}"
        )
    if row.values["prompt_format"] != format_name:
        raise DataError(
            f"{row.place}: written for prompt_format {row.values['prompt_format']}, this run uses "
            f"{format_name}"
        )


def pair_rows(rows: Sequence[RawRow], renderer: Renderer, max_length: int) -> list[PairRow]:
    """Pairs in tokens; those longer than `max_length` are left out."""

    def completion(text: str) -> list[int]:
        encoded = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*encoded, renderer.end_token_id]

    result: list[PairRow] = []
    for row in rows:
        values = row.values
        prompt = renderer.format.render(values["context"], values["lang"])
        pair = PairRow(
            renderer.prompt_ids(prompt),
            completion(values["chosen"]),
            completion(values["rejected"]),
        )
        longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
        if len(pair.prompt_ids) + longest <= max_length:
            result.append(pair)
    if not result:
        raise DataError(f"No pair fits into max_length {max_length}")
    return result


def fit_pairs(
    config: TrainingConfig,
    base: Base,
    rows: Sequence[PairRow],
    *,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
    remedies: Callable[[], list[str]] = list,
) -> Fitted:
    """Tune on pairs and save the adapter; raises what `fit` raises."""
    trainer = pair_trainer(config, base, rows, callbacks)
    return run_trainer(config, trainer, resume=resume, remedies=remedies)


def pair_trainer(
    config: TrainingConfig, base: Base, rows: Sequence[PairRow], callbacks: Sequence[Any] = ()
) -> Any:
    """TRL's trainer over pairs that are tokens already."""
    import datasets
    import transformers
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from training.progress import SkipBrokenSteps

    class Trainer(DPOTrainer):
        """DPOTrainer that takes the tokens as they are."""

        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    datasets.disable_progress_bars()
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    dataset = datasets.Dataset.from_dict({c: [getattr(row, c) for row in rows] for c in columns})
    trainer = Trainer(
        model=load_start(config, base),
        args=DPOConfig(
            **shared_arguments(config, base, evaluate=False),
            max_length=config.data.max_length,
            beta=config.preference.beta,
            loss_type=["sigmoid", "sft"],
            loss_weights=[1.0, config.preference.sft_weight],
        ),
        train_dataset=dataset,
        processing_class=base.tokenizer,
        callbacks=[SkipBrokenSteps(), *callbacks],
    )
    for unwanted in (transformers.PrinterCallback, transformers.ProgressCallback):
        trainer.remove_callback(unwanted)
    return trainer
