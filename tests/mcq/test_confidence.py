"""Confidence grows with what the reader believes, and is nothing without it."""

from dataclasses import replace

import pytest

from mcq.confidence import VERIFIED, Signals, VerifierSignals, confidence, signals_of
from mcq.question import Letter, Question

SURE = Signals(key=0.97, rival=0.01, coverage=1.0, plain_stem=True)


def test_confidence_grows_with_the_readers_belief_in_the_key():
    levels = [
        confidence(Signals(key=p, rival=0.1, coverage=1.0, plain_stem=True))
        for p in (0.0, 0.25, 0.5, 0.8, 1.0)
    ]
    assert levels == sorted(levels)
    assert levels[0] < 0.2
    assert levels[-1] > 0.6


def test_a_stem_that_asks_for_a_reason_is_trusted_less():
    reason = Signals(key=0.97, rival=0.01, coverage=1.0, plain_stem=False)
    assert confidence(reason) < confidence(SURE)


def test_signals_are_read_off_question_passage_and_answers():
    options: dict[Letter, str] = {"A": "Tim", "B": "Gan", "C": "Phổi", "D": "Da"}
    question = Question(question="Vì sao máu chảy?", options=options, key="A")
    answers: dict[Letter, float] = {"A": 0.6, "B": 0.3, "C": 0.1, "D": 0.0}
    assert signals_of(question, "Tim đẩy máu đi.", answers) == Signals(0.6, 0.3, 1.0, False)
    assert confidence(signals_of(question, "Tim đẩy máu đi.", answers)) == pytest.approx(
        0.27, abs=0.03
    )


def test_a_text_that_its_model_held_unlikely_is_trusted_less_whatever_the_reader_says():
    likely, unlikely = replace(SURE, logprob=-8.0), replace(SURE, logprob=-40.0)
    assert confidence(likely) > 0.7
    assert confidence(unlikely) < 0.2
    assert confidence(unlikely) < confidence(SURE) < confidence(likely)


def test_confidence_grows_with_the_verifiers_belief_and_with_the_stems_likelihood():
    doubted, trusted = VerifierSignals(0.2, -12.0), VerifierSignals(0.98, -12.0)
    assert confidence(doubted) < VERIFIED < confidence(trusted)
    assert confidence(replace(trusted, stem_logprob=-25.0)) < VERIFIED
    assert confidence(replace(trusted, stem_logprob=None)) > VERIFIED
    assert confidence(VerifierSignals(0.2)) < VERIFIED
