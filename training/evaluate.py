"""Judges a model by the questions that it writes about passages it has not seen."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcq.language import Language, detect_language
from mcq.prompts import normalize_context
from training.answerability import Item, read
from training.config import EvaluationConfig
from training.errors import DataError
from training.generation import Ask, generate
from training.metrics import JudgedItem, judge, summarize, to_json
from training.rows import Renderer
from training.sources import read_rows


@dataclass(frozen=True, slots=True)
class Passage:
    """A held-out passage."""

    id: str
    context: str
    language: Language


@dataclass
class Evaluation:
    """The figures of one model, and the items behind them."""

    label: str
    metrics: dict[str, Any]
    items: list[JudgedItem]
    constrained: dict[str, Any] | None = None
    by_language: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def to_json(self) -> dict[str, Any]:
        """The record that goes into the manifest: figures, no items."""
        record: dict[str, Any] = {"label": self.label, "unconstrained": to_json(self.metrics)}
        if self.constrained is not None:
            record["constrained"] = to_json(self.constrained)
        if len(self.by_language) > 1:
            record["by_language"] = {k: to_json(v) for k, v in self.by_language.items()}
        return record


def load_passages(config: EvaluationConfig, otherwise: Sequence[Passage] = ()) -> list[Passage]:
    """The passages of a configuration, each once; `otherwise` if it names no file.

    Raises:
        DataError: The file is broken or has no column `context`.
    """
    if config.contexts is None:
        passages = list(otherwise)
    else:
        passages = list[Passage]()
        for row in read_rows(config.contexts):
            if "context" not in row.values:
                raise DataError(
                    f"{row.place}: column context is missing; found: {', '.join(row.values)}"
                )
            if config.use is not None and row.values.get("use") != config.use:
                continue
            context = normalize_context(str(row.values["context"]))
            said = row.values.get("lang")
            language: Language = said if said in ("vi", "en") else detect_language(context)
            passages.append(Passage(str(row.values.get("id", row.place)), context, language))
        if not passages:
            use = f" with use {config.use!r}" if config.use else ""
            raise DataError(f"{config.contexts}: holds no passage{use}")
    unique = list({passage.context: passage for passage in passages}.values())
    return unique[: config.limit]


def evaluate(
    model: Any,
    renderer: Renderer,
    passages: Sequence[Passage],
    config: EvaluationConfig,
    *,
    label: str,
    known_stems: Sequence[str] = (),
) -> Evaluation:
    """Generate greedily, parse, check, and let the bare base answer."""
    items = write_items(model, renderer, passages, config)
    if config.reader and renderer.tokenizer.chat_template:
        add_reader(model, renderer, items)
    constrained = None
    if config.constrained:
        bound = write_items(model, renderer, passages, config, constrained=True)
        if config.reader and renderer.tokenizer.chat_template:
            add_reader(model, renderer, bound)
        constrained = summarize(bound, known_stems)
    languages = sorted({passage.language for passage in passages})
    by_language = {
        language: summarize([i for i in items if i.language == language], known_stems)
        for language in languages
    }
    return Evaluation(label, summarize(items, known_stems), items, constrained, by_language)


def write_items(
    model: Any,
    renderer: Renderer,
    passages: Sequence[Passage],
    config: EvaluationConfig,
    *,
    constrained: bool = False,
    temperature: float = 0.0,
    n: int = 1,
    seed: int = 0,
) -> list[JudgedItem]:
    """Judged completions, `n` for each passage."""
    completions = generate(
        model,
        renderer,
        [Ask(passage.context, passage.language) for passage in passages],
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        constrained=constrained,
        temperature=temperature,
        n=n,
        seed=seed,
    )
    return [
        judge(
            passage.id,
            passage.context,
            passage.language,
            completion.text,
            format_name=renderer.format.name,
            stopped=completion.stopped,
            tokens=completion.tokens,
        )
        for passage, group in zip(passages, completions, strict=True)
        for completion in group
    ]


def add_reader(
    model: Any,
    renderer: Renderer,
    items: Sequence[JudgedItem],
    *,
    tokens_per_batch: int = 4096,
    without_passage: bool = True,
    rotations: int = 4,
) -> None:
    """Let the bare base answer every valid item, with its passage and without."""
    valid = [item for item in items if item.question is not None]
    asked: list[Item] = []
    for item in valid:
        assert item.question is not None
        asked.append((item.question, item.context, item.language))
    answers = read(model, renderer, asked, tokens_per_batch=tokens_per_batch, rotations=rotations)
    for item, answer in zip(valid, answers, strict=True):
        item.with_context = answer
    if not without_passage:
        return
    alone: list[Item] = [(question, None, language) for question, _, language in asked]
    answers = read(model, renderer, alone, tokens_per_batch=tokens_per_batch, rotations=rotations)
    for item, answer in zip(valid, answers, strict=True):
        item.without_context = answer


def write_evaluation(evaluation: Evaluation, directory: Path) -> None:
    """Figures as JSON and every item as JSON Lines."""
    directory.mkdir(parents=True, exist_ok=True)
    record = json.dumps(evaluation.to_json(), ensure_ascii=False, indent=2)
    (directory / "evaluation.json").write_text(record + "\n", encoding="utf-8")
    lines = (json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in evaluation.items)
    (directory / "items.jsonl").write_text("".join(lines), encoding="utf-8")
