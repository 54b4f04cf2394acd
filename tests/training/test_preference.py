# pyright: basic
# reads weights with torch
"""Candidates are drawn, good and bad are told apart, and an adapter learns from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcq.question import Letter, Question
from training.config import TrainingConfig
from training.errors import ConfigError, DataError
from training.metrics import JudgedItem
from training.run import train
from training.sampling import read_candidates, sample, select
from training.selection import BLOCKED, MALFORMED, pairs, worth

CONTEXT = "Sông Hồng dài 1.149 km, bắt nguồn từ Trung Quốc và chảy ra vịnh Bắc Bộ của Việt Nam."


def item(stem: str = "Sông Hồng chảy ra đâu?", **changes: Any) -> JudgedItem:
    options: dict[Letter, str] = {
        "A": "Vịnh Bắc Bộ",
        "B": "Vịnh Thái Lan",
        "C": "Biển Đen",
        "D": "Hồ Ba Bể",
    }
    question = Question(question=stem, options=options, key="A")
    values: dict[str, Any] = {
        "question": question,
        "has_evidence": True,
        "language_ok": True,
        "with_context": {"A": 0.9, "B": 0.05, "C": 0.03, "D": 0.02},
        "without_context": {"A": 0.25, "B": 0.25, "C": 0.25, "D": 0.25},
    }
    text = f"Câu hỏi: {stem}\nĐúng: Vịnh Bắc Bộ\nSai: Vịnh Thái Lan\nSai: Biển Đen\nSai: Hồ Ba Bể\n"
    return JudgedItem("p1", CONTEXT, "vi", text, True, 30, **(values | changes))


def malformed() -> JudgedItem:
    return JudgedItem("p1", CONTEXT, "vi", "Câu hỏi: ?", True, 5, malformed="missing_option")


def doubted(stem: str = "Sông Hồng ở đâu?") -> JudgedItem:
    return item(stem, with_context={"A": 0.1, "B": 0.7, "C": 0.1, "D": 0.1})


def test_what_cannot_be_used_is_worth_less_than_what_can_be_doubted():
    blocked = item(flaws=("options_overlap",))
    assert worth(malformed()) == MALFORMED < worth(blocked) == BLOCKED
    assert BLOCKED < worth(doubted()) < worth(item())


def test_a_question_that_can_be_guessed_is_worth_less():
    guessed = {"A": 0.95, "B": 0.02, "C": 0.02, "D": 0.01}
    assert worth(item(without_context=guessed)) == pytest.approx(worth(item()) - 0.35, abs=0.01)


def test_a_pair_sets_the_best_against_a_malformed_one_first():
    found = pairs([doubted(), item(), malformed()])
    assert [(p.chosen.question is not None, p.reason) for p in found] == [(True, "missing_option")]


def test_two_pairs_of_a_passage_ask_different_things_and_share_no_candidate():
    options: dict[Letter, str] = {"A": "1.149 km", "B": "1.200 km", "C": "900 km", "D": "2.000 km"}
    other = Question(question="Sông Hồng dài bao nhiêu?", options=options, key="A")
    second = item()
    second.question, second.text = other, "another"
    found = pairs([item(), second, item(), malformed(), doubted()])
    assert [p.reason for p in found] == ["missing_option", "not_answerable"]
    assert {p.chosen.text for p in found} == {item().text, "another"}


def test_a_passage_with_good_candidates_only_gives_no_pair():
    assert pairs([item(), item("Sông Hồng đổ vào vịnh nào?")]) == []


@pytest.fixture
def adapter(make_config: Callable[..., TrainingConfig]) -> Path:
    """An adapter of the tiny base that knows chat/3."""
    config = make_config(prompt_format="chat/3", evaluation={"enabled": False}, registry=None)
    return train(config, quiet=True).adapter


@pytest.fixture
def pair_file(tmp_path: Path) -> Path:
    rows = [
        pair.to_json("chat/3", "made up", "CC0-1.0")
        for pair in pairs([item(), malformed()]) + pairs([item("Sông nào?"), doubted()])
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def preference(
    make_config: Callable[..., TrainingConfig], start: Path, file: Path, run: Path, **more: Any
) -> TrainingConfig:
    return make_config(
        objective="preference",
        prompt_format="chat/3",
        start_from=str(start),
        output_dir=str(run),
        data={"train": [{"path": str(file)}]},
        fit={"max_steps": 6, "learning_rate": 5e-3},
        evaluation={"enabled": False},
        **more,
    )


def test_tuning_makes_the_better_completion_likelier_and_registers_the_adapter(
    make_config: Callable[..., TrainingConfig], adapter: Path, pair_file: Path, tmp_path: Path
):
    config = preference(make_config, adapter, pair_file, tmp_path / "tuned")
    outcome = train(config, quiet=True)
    log = (tmp_path / "tuned/log.jsonl").read_text(encoding="utf-8")
    history = [json.loads(line) for line in log.splitlines()]
    margins = [entry["rewards/margins"] for entry in history if "rewards/margins" in entry]
    assert margins[0] == pytest.approx(0, abs=1e-3), "the reference is the adapter itself"
    assert margins[-1] > 0.01
    assert outcome.version is not None
    assert outcome.version.manifest.prompt_format == "chat/3"
    assert sorted(p.name for p in outcome.adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ], "the frozen reference is not saved"


def test_pairs_about_held_out_passages_are_dropped(
    make_config: Callable[..., TrainingConfig], pair_file: Path
):
    from training.preference import load_pairs

    config = preference(make_config, Path("none"), pair_file, Path("none"))
    with pytest.raises(DataError, match="No pair is left"):
        load_pairs(config, [CONTEXT.upper()])


def test_a_start_that_is_no_adapter_and_pairs_of_another_format_are_refused(
    make_config: Callable[..., TrainingConfig], adapter: Path, pair_file: Path, tmp_path: Path
):
    with pytest.raises(ConfigError, match="start_from"):
        train(preference(make_config, tmp_path, pair_file, tmp_path / "a"), quiet=True)
    wrong = pair_file.read_text().replace("chat/3", "chat/1")
    pair_file.write_text(wrong)
    with pytest.raises(DataError, match=r"pairs.jsonl:1: written for prompt_format chat/1"):
        train(preference(make_config, adapter, pair_file, tmp_path / "b"), quiet=True)


def test_sampling_goes_on_where_it_was_stopped_and_selects_nothing_from_noise(
    make_config: Callable[..., TrainingConfig], tmp_path: Path
):
    from training.evaluate import Passage
    from training.model import load_base
    from training.rows import Renderer

    base = load_base(make_config())
    renderer = Renderer(base.tokenizer, "chat/3")
    passages = [Passage(f"p{i}", f"{CONTEXT} Số {i}.", "vi") for i in range(3)]
    path = tmp_path / "candidates.jsonl"
    settings: dict[str, Any] = {"n": 2, "temperature": 1.0, "max_new_tokens": 8, "quiet": True}
    assert sample(base.model, renderer, passages[:2], path, **settings) == 4
    assert sample(base.model, renderer, passages, path, **settings) == 2
    assert [i.id for i in read_candidates(path)] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    with pytest.raises(DataError, match="sample more"):
        select(path, prompt_format="chat/3", source="x", licence="CC0-1.0")
