"""A verifier is taught with questions that are spoilt in known ways, and measured on others."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcq.question import LETTERS, Letter
from mcq.verdict import probability_of_yes, verdict_prompt
from training.cleaning import load_examples, passage_key
from training.config import DataConfig, SourceConfig, TrainingConfig
from training.errors import ConfigError
from training.examples import Example
from training.run import train
from training.verdict_run import roc_auc
from training.verdicts import Case, cases


@pytest.fixture
def examples(make_config: Callable[..., TrainingConfig]) -> tuple[Example, ...]:
    return load_examples(make_config().data).train


def of_kind(examples: tuple[Example, ...], damage: str) -> list[Case]:
    return [case for case in cases(examples, 3) if case.damage == damage]


def test_each_example_is_asked_once_as_it_is_and_twice_spoilt(examples: tuple[Example, ...]):
    found = cases(examples, seed=3)
    assert Counter(case.is_sound for case in found) == {
        True: len(examples),
        False: 2 * len(examples),
    }
    assert {case.damage for case in found} == {
        "none",
        "wrong_key",
        "true_distractor",
        "foreign_option",
        "other_passage",
    }
    assert cases(examples, seed=3) == found, "the same seed gives the same cases"


def test_a_wrong_key_leaves_the_right_option_among_the_wrong_ones(examples: tuple[Example, ...]):
    for case in of_kind(examples, "wrong_key"):
        question = case.example.question
        assert case.right in question.distractors
        assert question.key_text in case.wrong
        assert {case.right, *case.wrong} == set(question.options.values())


def test_damage_comes_from_other_passages_or_from_the_proof(examples: tuple[Example, ...]):
    for case in of_kind(examples, "other_passage"):
        assert passage_key(case.context) != passage_key(case.example.context)
    for case in of_kind(examples, "foreign_option"):
        assert len(set(case.wrong) - set(case.example.question.distractors)) == 1
    for case in of_kind(examples, "true_distractor"):
        strange = set(case.wrong) - set(case.example.question.distractors)
        assert len(strange) == 1
        assert strange.pop() in case.context


def test_questions_that_readers_labelled_are_taken_as_they_were_found(
    examples: tuple[Example, ...],
):
    wrong, right = examples[0], examples[1]
    found = cases([replace(wrong, label="two_right"), replace(right, label="right")], seed=3)
    assert [(case.damage, case.is_sound) for case in found] == [
        ("as_labelled", False),
        ("none", True),
        ("wrong_key", False),
    ]
    assert found[0].stem == wrong.question.question
    assert found[0].right == wrong.question.key_text
    assert set(found[0].wrong) == set(wrong.question.distractors)


@pytest.mark.parametrize(("faulty", "kept"), [(False, 1), (True, 2)])
def test_only_a_verifier_learns_from_questions_that_were_found_wrong(
    faulty: bool, kept: int, make_config: Callable[..., TrainingConfig], tmp_path: Path
):
    source = Path(make_config().data.train[0].path)
    rows = [json.loads(line) for line in source.read_text().splitlines()[:2]]
    rows[0]["label"], rows[1]["label"] = "wrong_key", "right"
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=(SourceConfig(path=str(path)),), validation_share=0)
    split = load_examples(data, faulty=faulty)
    assert len(split.train) == kept
    assert split.report.dropped["labelled_wrong"] == 2 - kept


def test_the_verifier_can_be_asked_about_every_option(examples: tuple[Example, ...]):
    example = examples[0]
    question = example.question
    other: Letter = next(letter for letter in LETTERS if letter != question.key)
    asked = verdict_prompt(question, example.context, "vi", other).prompt.messages[-1].content
    assert f"Đúng: {question.options[other]}" in asked
    assert f"Sai: {question.key_text}" in asked


def test_probabilities_of_yes_and_areas_under_curves():
    assert probability_of_yes([-1.0, -1.0]) == 0.5
    assert probability_of_yes([-2000.0, 0.0]) < 1e-9
    assert roc_auc([0.9, 0.8], [0.1, 0.8]) == pytest.approx(0.875)
    assert roc_auc([], [0.1]) == 0.5


def test_a_verifier_is_trained_measured_and_registered(
    make_config: Callable[..., TrainingConfig], tmp_path: Path
):
    config = make_config(objective="verdict", prompt_format="verdict/1")
    outcome = train(config, quiet=True)
    measured: dict[str, Any] = json.loads((config.run_dir / "evaluation.json").read_text())
    assert 0 <= measured["verdicts"]["roc_auc"] <= 1
    assert measured["verdicts"]["right_none"]["of"] > 0
    assert outcome.version is not None
    assert outcome.version.manifest.prompt_format == "verdict/1"


def test_only_a_verifier_uses_its_format(
    make_config: Callable[..., TrainingConfig], tmp_path: Path
):
    from training.config import load_config

    text = Path("training/configs/verifier-r2.yaml").read_text().replace("verdict/1", "chat/3")
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"prompt_format 'chat/3' is none of verdict/1"):
        load_config(tmp_path / "c.yaml")
