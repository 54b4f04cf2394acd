# pyright: basic
# drives torch
"""An author's question is set against the same one with the adapter's own wrong options."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcq.prompts import prompt_format
from mcq.question import Question
from training.config import TrainingConfig
from training.contrast import OWN_OPTIONS, contrast, pair
from training.errors import DataError
from training.examples import Example
from training.generation import Ask, Completion, generate
from training.model import load_base
from training.rows import Renderer

CONTEXT = "Sông Hồng dài 1.149 km, bắt nguồn từ Trung Quốc và chảy ra vịnh Bắc Bộ của Việt Nam."
STEM = "Sông Hồng chảy ra đâu?"
OPENING = f"Câu hỏi: {STEM}\nĐúng: Vịnh Bắc Bộ\nSai:"


@pytest.fixture
def example() -> Example:
    options: Any = {"A": "Vịnh Bắc Bộ", "B": "Vịnh Thái Lan", "C": "Biển Đen", "D": "Hồ Ba Bể"}
    return Example("f:1", CONTEXT, Question(question=STEM, options=options, key="A"), "vi")


@pytest.fixture
def renderer(make_config: Callable[..., TrainingConfig]) -> Renderer:
    return Renderer(load_base(make_config()).tokenizer, "chat/3")


def drawn(*wrong: str, stopped: bool = True) -> Completion:
    return Completion(OPENING + "\nSai:".join(f" {w}" for w in wrong) + "\n", 9, stopped)


def test_the_opening_ends_where_the_first_wrong_option_is_written(example: Example):
    form: Any = prompt_format("chat/3").form
    assert form.opening(example.question, "vi") == OPENING
    assert form.render(example.question, "vi").startswith(OPENING + " ")


def test_stem_and_right_option_stay_and_wrong_ones_are_the_models(
    example: Example, renderer: Renderer
):
    row = pair(example, [drawn("Vịnh Bắc", "Vịnh Nam Bộ", "Vịnh Hồng")], renderer)
    assert row is not None
    assert row["reason"] == OWN_OPTIONS
    assert row["chosen"].startswith(OPENING)
    assert row["rejected"].startswith(OPENING)
    assert "Hồ Ba Bể" in row["chosen"]
    assert "Vịnh Nam Bộ" in row["rejected"]


def test_a_draw_that_repeats_an_option_is_taken_before_one_that_is_only_different(
    example: Example, renderer: Renderer
):
    good, repeated = (
        drawn("Sông Đà", "Sông Lô", "Biển Hồ"),
        drawn("Hồ Ba Bể", "Hồ Ba Bể", "Sông Đà"),
    )
    row = pair(example, [good, repeated], renderer)
    assert row is not None
    assert (row["reason"], row["rejected"]) == ("invalid_question", repeated.text)


def test_the_authors_own_options_in_another_order_and_unfinished_draws_give_no_pair(
    example: Example, renderer: Renderer
):
    same = drawn("Hồ Ba Bể", "Biển Đen", "Vịnh Thái Lan")
    cut = drawn("Hồ Ba Bể", "Sông Đà", "Sông", stopped=False)
    assert pair(example, [same, cut], renderer) is None


def test_generation_goes_on_from_what_has_begun(make_config: Callable[..., TrainingConfig]):
    base = load_base(make_config())
    renderer = Renderer(base.tokenizer, "chat/3")
    ask = Ask(CONTEXT, "vi", begun=OPENING)
    settings: dict[str, Any] = {"batch_size": 2, "max_new_tokens": 4}
    [[whole]] = generate(base.model, renderer, [ask], **settings)
    [[other]] = generate(base.model, renderer, [Ask(CONTEXT, "vi")], **settings)
    assert whole.text.startswith(OPENING)
    assert whole.tokens <= 4
    assert not other.text.startswith("Câu hỏi")


def test_nothing_is_written_when_no_draw_differs_and_lettered_formats_are_refused(
    make_config: Callable[..., TrainingConfig], example: Example, tmp_path: Path
):
    base = load_base(make_config())
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(DataError, match="prompt_format: chat/3"):
        contrast(base.model, Renderer(base.tokenizer, "chat/1"), [example], path)
    with pytest.raises(DataError, match="No draw"):
        contrast(base.model, Renderer(base.tokenizer, "chat/3"), [example], path, max_new_tokens=1)
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_rows_that_preference_tuning_takes(
    make_config: Callable[..., TrainingConfig], example: Example, renderer: Renderer, tmp_path: Path
):
    from training.preference import load_pairs

    row = pair(example, [drawn("Sông Đà", "Sông Lô", "Biển Hồ")], renderer)
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    config = make_config(prompt_format="chat/3", data={"train": [{"path": str(path)}]})
    split, rows = load_pairs(config)
    assert len(rows) == 1
    assert split.train[0].question.key_text == "Vịnh Bắc Bộ"
