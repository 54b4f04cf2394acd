"""Which passages are refused, and with which word."""

import pytest

from mcq.context import check_context
from mcq.errors import InvalidContextError
from mcq.language import detect_language


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("một hai ba", "too_short"),
        ("từ " * 60, "too_long"),
        ("\x00\x01" + "từ " * 20, "not_text"),
        ("t\ufffd " * 20, "not_text"),
        ("\ud800 " + "từ " * 20, "not_text"),
    ],
)
def test_bad_contexts_are_refused_with_a_reason(context: str, reason: str) -> None:
    with pytest.raises(InvalidContextError) as caught:
        check_context(context, min_words=5, max_words=50)
    assert caught.value.reason == reason


def test_a_good_context_comes_back_in_nfc() -> None:
    assert check_context("Vie\u0323\u0302t " * 5, min_words=5, max_words=50) == "Việt " * 5


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Bộ nhớ RAM giữ dữ liệu tạm thời.", "vi"),
        ("The memory of a computer holds the data that is being processed.", "en"),
        ("Ho Chi Minh City lies on the Saigon River, which the Việt people settled.", "en"),
        ("Bo nho RAM giu du lieu tam thoi khi may dang chay", "vi"),
    ],
)
def test_language_is_detected_by_letters(text: str, language: str) -> None:
    assert detect_language(text) == language
