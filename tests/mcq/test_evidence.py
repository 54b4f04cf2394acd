"""The sentence that proves the key, with exact offsets."""

import itertools
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from mcq.evidence import find_evidence
from mcq.question import Letter, Question
from mcq.words import fold, sentences, words

CONTEXT = (
    "Bộ nhớ RAM là nơi máy tính giữ tạm chương trình và dữ liệu đang được xử lí. RAM có tốc "
    "độ đọc, ghi nhanh hơn ổ đĩa rất nhiều, nhưng nội dung của nó bị mất khi máy tắt nguồn. "
    "Ngược lại, ổ đĩa cứng HDD hoặc ổ thể rắn SSD lưu dữ liệu lâu dài, kể cả khi không có "
    "điện, song tốc độ truy cập chậm hơn. Khi người dùng mở một tệp văn bản, hệ điều hành "
    "chép nội dung tệp từ ổ đĩa vào RAM để chỉnh sửa. Nếu mất điện trước khi lưu, những thay "
    "đổi mới nhất chỉ nằm trong RAM nên sẽ không còn."
)


def about(key: str, stem: str = "Điều gì đúng?") -> Question:
    """A question with this key."""
    return Question(question=stem, options={"A": key, "B": "x1", "C": "x2", "D": "x3"}, key="A")


def test_the_proving_sentence_is_found_with_exact_offsets(
    context_vi: str, question_vi: Question
) -> None:
    evidence = find_evidence(context_vi, question_vi)
    assert evidence is not None
    assert context_vi[evidence.start : evidence.end] == evidence.text
    assert evidence.text.startswith("RAM có tốc độ")
    assert evidence.text.endswith("tắt nguồn.")


def test_a_key_from_elsewhere_has_no_evidence(context_vi: str) -> None:
    assert find_evidence(context_vi, about("Quang hợp ở thực vật", "Lục lạp chứa gì?")) is None


def test_tone_marks_may_stand_on_either_vowel() -> None:
    context = "Năm đó nước Nhật kí hoà ước với phe thắng trận. Sau này kinh tế mới phục hồi."
    evidence = find_evidence(context, about("Kí hòa ước", "Nước Nhật làm gì năm đó?"))
    assert evidence is not None
    assert "hoà ước" in evidence.text
    assert fold("hòa") == fold("hoà")


def test_decomposed_text_is_measured_after_nfc(question_vi: Question, context_vi: str) -> None:
    evidence = find_evidence(unicodedata.normalize("NFD", context_vi), question_vi)
    assert evidence is not None
    assert context_vi[evidence.start : evidence.end] == evidence.text


@given(st.text(alphabet='ab. A!?\n…"”1TP,', max_size=120))
def test_sentences_lie_in_order_and_cover_every_word(text: str) -> None:
    found = sentences(text)
    assert all(text[s.start : s.end] == s.text == s.text.strip() for s in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert "".join("".join(s.text.split()) for s in found) == "".join(text.split())


@given(st.text(alphabet='ab. A!?\n…"”1TP,\u0301\u00a0-', max_size=120))
def test_neighbours_together_hold_the_words_of_both(text: str) -> None:
    for left, right in itertools.pairwise(sentences(text)):
        together = text[left.start : right.end]
        assert words(together) == words(left.text) + words(right.text)


def test_abbreviations_and_initials_do_not_end_a_sentence() -> None:
    text = "Ông sống ở TP. Hồ Chí Minh. GS. Nguyễn Văn A. dạy toán. Năm 1990 ông nghỉ."
    assert [s.text for s in sentences(text)] == [
        "Ông sống ở TP. Hồ Chí Minh.", "GS. Nguyễn Văn A. dạy toán.", "Năm 1990 ông nghỉ.",
    ]  # fmt: skip


def test_a_sentence_that_only_names_the_key_gives_way_to_the_one_that_says_it() -> None:
    options: dict[Letter, str] = {
        "A": "Vào bộ nhớ SSD",
        "B": "Vào bộ nhớ RAM",
        "C": "Vào ổ đĩa cứng",
        "D": "Vào ổ thể rắn",
    }
    stem = "Khi người dùng mở một tệp văn bản, nội dung tệp được chép vào đâu?"
    evidence = find_evidence(CONTEXT, Question(question=stem, options=options, key="B"))
    assert evidence is not None
    assert evidence.text.startswith("Khi người dùng")
