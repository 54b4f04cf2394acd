"""What a row teaches: the service's prompt, the completion, and where it ends."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcq.prompts import CHAT_TEMPLATE_ARGUMENTS, prompt_format
from training.cleaning import load_examples
from training.config import DataConfig, TrainingConfig
from training.errors import SupervisionError
from training.model import load_tokenizer
from training.rows import (
    IGNORED,
    Renderer,
    TokenRow,
    balance_keys,
    key_positions,
    make_rows,
    with_siblings,
)
from training.supervision import check_supervision, show_row


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


@pytest.fixture
def examples(few_rows: Path) -> Any:
    config = DataConfig.model_validate({"train": [{"path": str(few_rows)}], "validation_share": 0})
    return load_examples(config).train


@pytest.mark.parametrize("name", ["chat/1", "instruct-vi/1"])
def test_a_row_is_the_prompt_of_the_service_then_the_completion(
    tokenizer: Any, examples: Any, name: str
) -> None:
    renderer = Renderer(tokenizer, name)
    row = renderer.row(examples[0])
    prompt = prompt_format(name).render(examples[0].context, "vi")
    text = prompt.to_text(
        lambda turns: tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **CHAT_TEMPLATE_ARGUMENTS
        )
    )
    masked = row.labels.count(IGNORED)
    assert tokenizer.decode(row.input_ids[:masked]) == text
    taught = tokenizer.decode(row.labels[masked:])
    completion = prompt_format(name).render_completion(examples[0].question, "vi")
    assert taught == completion + renderer.end_token
    assert row.labels[-1] == renderer.end_token_id


def test_the_end_token_is_that_of_the_chat_template(tokenizer: Any) -> None:
    assert Renderer(tokenizer, "chat/1").end_token == "<|im_end|>"


def test_a_chat_format_needs_a_chat_template(tokenizer: Any) -> None:
    bare = type("Bare", (), {"chat_template": None, "eos_token": "</s>"})()
    with pytest.raises(SupervisionError, match="no chat template"):
        Renderer(bare, "chat/1")


def test_keys_are_balanced_and_questions_stay_the_same(examples: Any) -> None:
    shuffled = balance_keys(examples, random.Random(0))
    assert set(key_positions(shuffled).values()) == {3}
    for before, after in zip(examples, shuffled, strict=True):
        assert after.question.key_text == before.question.key_text
        assert sorted(after.question.options.values()) == sorted(before.question.options.values())


@pytest.mark.parametrize(("mode", "rows"), [("none", 12), ("second", 18), ("both", 24)])
def test_siblings_are_avoided_as_configured(examples: Any, mode: str, rows: int) -> None:
    pairs = list(with_siblings(examples, mode))
    assert len(pairs) == rows
    for example, avoid in pairs:
        assert example.question.question not in avoid


def test_long_rows_are_dropped_and_counted(
    tokenizer: Any, few_rows: Path, make_config: Callable[..., TrainingConfig]
) -> None:
    renderer = Renderer(tokenizer, "chat/1")
    every = load_examples(make_config(data={"validation_share": 0}).data).train
    lengths = sorted(len(renderer.row(example).input_ids) for example in every)
    config = make_config(data={"max_length": lengths[6], "validation_share": 0}).data
    split = load_examples(config)
    rows = make_rows(split.train, renderer, config, split.report)
    assert split.report.dropped["too_long"] == 12 - len(rows) > 0


def test_a_window_keeps_the_evidence(
    tokenizer: Any, make_config: Callable[..., TrainingConfig]
) -> None:
    from training.cleaning import CleaningReport

    example = load_examples(make_config(data={"validation_share": 0}).data).train[0]
    limit = len(Renderer(tokenizer, "chat/1").row(example).input_ids) - 60
    config = make_config(data={"max_length": limit, "too_long": "window"}).data
    sentence = example.context.rsplit(". ", 2)[-1]
    long = replace(example, context=example.context.replace("\n", " "), evidence=sentence)
    rows = make_rows([long], Renderer(tokenizer, "chat/1"), config, CleaningReport())
    text = tokenizer.decode(rows[0].input_ids)
    assert len(rows[0].input_ids) <= limit
    assert sentence in text
    assert example.context not in text


def test_padding_that_ends_a_turn_is_refused(tokenizer: Any, examples: Any) -> None:
    renderer = Renderer(tokenizer, "chat/1")
    rows = [renderer.row(examples[0])]
    check_supervision(rows, renderer, tokenizer.pad_token_id)
    with pytest.raises(SupervisionError, match="never stop"):
        check_supervision(rows, renderer, renderer.end_token_id)


def test_rows_that_teach_nothing_or_no_end_are_refused(tokenizer: Any, examples: Any) -> None:
    renderer = Renderer(tokenizer, "chat/1")
    good = renderer.row(examples[0])
    masked = TokenRow(good.input_ids, [IGNORED] * len(good.labels), "x:1")
    endless = TokenRow(good.input_ids[:-1], good.labels[:-1], "x:2")
    with pytest.raises(SupervisionError, match="x:1: every label is masked"):
        check_supervision([masked], renderer, tokenizer.pad_token_id)
    with pytest.raises(SupervisionError, match="x:2: the end token"):
        check_supervision([endless], renderer, tokenizer.pad_token_id)


def test_a_shown_row_marks_what_is_masked(tokenizer: Any, examples: Any) -> None:
    renderer = Renderer(tokenizer, "chat/1")
    shown = show_row(renderer.row(examples[0]), tokenizer, colour=False)
    before, after = shown.split("⟧")
    assert before.startswith("⟦")
    assert after.startswith("Câu hỏi:")
