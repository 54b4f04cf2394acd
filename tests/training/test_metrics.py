"""Figures from completions; pure arithmetic."""

import pytest

from mcq.question import Question
from training.metrics import Rate, judge, key_balance, longest_copy, summarize, wilson

CONTEXT = (
    "Nước sôi ở 100 độ C khi áp suất là một atmôtphe. Khi lên núi cao, áp suất giảm nên nước sôi "
    "ở nhiệt độ thấp hơn."
)
GOOD = (
    "Câu hỏi: Ở áp suất một atmôtphe, nước sôi ở nhiệt độ nào?\nA. 100 độ C\nB. 90 độ C\n"
    "C. 80 độ C\nD. 70 độ C\nĐáp án: A"
)


def item(text: str, *, stopped: bool = True):  # type: ignore[no-untyped-def]
    return judge("1", CONTEXT, "vi", text, format_name="chat/1", stopped=stopped, tokens=40)


def test_wilson_is_sound_at_the_ends() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(200, 200)
    assert high == 1.0
    assert low == pytest.approx(0.981, abs=1e-3)


def test_a_good_completion_is_judged_good() -> None:
    good = item(GOOD)
    assert good.question is not None
    assert good.has_evidence
    assert good.language_ok


@pytest.mark.parametrize(
    ("text", "stopped", "reason"),
    [(GOOD, False, "never_stops"), (GOOD + " và", True, "no_key"), ("", True, "empty")],
)
def test_a_bad_completion_has_a_reason(text: str, stopped: bool, reason: str) -> None:
    assert item(text, stopped=stopped).malformed == reason


def test_shares_are_over_the_right_items() -> None:
    repeated = GOOD.replace("90 độ C", "100 độ C")
    figures = summarize([item(GOOD), item(GOOD), item(repeated), item("")])
    assert figures["valid_format"].count == 2
    assert figures["well_formed"].count == 3
    assert figures["distinct_options"].count == 3
    assert figures["near_duplicate_stems"].count == 1
    assert figures["evidence_found"] == Rate.over([True, True])
    assert figures["key_positions"] == {"A": 2}


def test_stems_learned_by_heart_are_seen() -> None:
    stem = "ở áp suất một atmôtphe, nước sôi ở nhiệt độ nào"
    assert summarize([item(GOOD)], [stem])["repeats_training_stem"].count == 1


def test_key_balance_tells_even_from_uneven() -> None:
    def with_key(key: str) -> Question:
        options = {"A": "một", "B": "hai", "C": "ba", "D": "bốn"}
        return Question.model_validate({"question": "Mấy?", "options": options, "key": key})

    even = [with_key(k) for k in "ABCD" * 10]
    uneven = [with_key("A") for _ in range(40)]
    assert key_balance(even) == pytest.approx(1.0)
    assert key_balance(uneven) < 1e-10


def test_copied_words_are_counted_in_a_row() -> None:
    assert longest_copy("Tại sao nước sôi ở 100 độ C?", CONTEXT) == 6
