"""What makes a question valid."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mcq.errors import InvalidQuestionError
from mcq.question import Evidence, Letter, Question, clean_field

OPTIONS: dict[Letter, str] = {"A": "một", "B": "hai", "C": "ba", "D": "bốn"}


def test_id_depends_on_content_alone() -> None:
    first = Question(question="Bao nhiêu?", options=OPTIONS, key="A")
    again = Question(question="Bao nhiêu?", options=dict(OPTIONS), key="A")
    other = Question(question="Bao nhiêu?", options=OPTIONS, key="B")
    assert first.id == again.id != other.id


def test_text_becomes_nfc() -> None:
    decomposed = "Vi\u0323t"
    assert Question(question=decomposed, options=OPTIONS, key="A").question == "Vịt"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({**OPTIONS, "D": ""}, "option D is empty"),
        ({**OPTIONS, "D": "Ba."}, "C and D say the same"),
        ({**OPTIONS, "D": "  bốn"}, "space around"),
        ({**OPTIONS, "D": "bốn\x07"}, "not text"),
        ({**OPTIONS, "D": "b\ufffdn"}, "not text"),
        ({**OPTIONS, "D": "x" * 201}, "at most 200"),
        ({"A": "1", "B": "2", "C": "3"}, "Option D is missing"),
    ],
)
def test_options_that_are_not_four_distinct_texts_are_refused(
    options: dict[Letter, str], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        Question.model_validate({"question": "Bao nhiêu?", "options": options, "key": "A"})


@given(st.text(min_size=1, max_size=8))
def test_a_field_is_refused_for_characters_that_are_not_text_and_for_no_others(text: str) -> None:
    text = unicodedata.normalize("NFC", f"x{text}x")
    categories = {unicodedata.category(c) for c in text}
    broken = "\ufffd" in text or categories & {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
    if broken:
        with pytest.raises(InvalidQuestionError, match="not text"):
            clean_field(text, "field", 100)
    else:
        assert clean_field(text, "field", 100) == text


def test_a_rearranged_question_is_the_one_that_its_parts_would_make() -> None:
    question = Question(question="Bao nhiêu?", options=OPTIONS, key="A")
    turned: dict[Letter, str] = {"A": "hai", "B": "ba", "C": "bốn", "D": "một"}
    moved = question.rearranged(turned, "D")
    assert moved == Question(question="Bao nhiêu?", options=turned, key="D")
    assert moved.key_text == question.key_text


@pytest.mark.parametrize(
    ("left", "right"), [("-1", "1"), ("C++", "C"), ("10²", "102"), ("0,5", "05"), ("A & B", "A B")]
)
def test_signs_that_carry_meaning_tell_options_apart(left: str, right: str) -> None:
    options = {"A": left, "B": right, "C": "ba", "D": "bốn"}
    assert Question.model_validate({"question": "Nào?", "options": options, "key": "A"})


def test_key_is_one_of_the_four_letters() -> None:
    with pytest.raises(ValidationError):
        Question.model_validate({"question": "Nào?", "options": OPTIONS, "key": "E"})


def test_evidence_spans_exactly_its_text() -> None:
    assert Evidence(start=3, end=6, text="abc").end == 6
    with pytest.raises(ValidationError, match="cannot span"):
        Evidence(start=3, end=7, text="abc")
