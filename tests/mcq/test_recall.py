"""Recall questions are told from those that ask the pupil to conclude."""

from mcq.question import Letter, Question
from mcq.recall import asks_for_a_reason, asks_in_one_sentence, is_verbatim, key_coverage

PASSAGE = "Tim là khối cơ rỗng. Tim đẩy máu đi khắp cơ thể, mỗi phút chừng 70 lần."


def asking(key: str) -> Question:
    options: dict[Letter, str] = {"A": key, "B": "Gan nhỏ", "C": "Hai lá phổi", "D": "Làn da"}
    return Question(question="Cơ quan nào đẩy máu?", options=options, key="A")


def test_a_stem_that_tells_a_situation_first_is_no_single_sentence():
    assert asks_in_one_sentence("Cơ quan nào đẩy máu đi khắp cơ thể?")
    assert asks_in_one_sentence("Khoảng 3.5 lít máu do cơ quan nào đẩy?")
    assert not asks_in_one_sentence("Bạn An chạy nhanh. Cơ quan nào làm việc nhiều hơn?")


def test_reasons_are_asked_for_in_both_languages():
    assert asks_for_a_reason("Vì sao tim đập?")
    assert asks_for_a_reason("Tại sao máu chảy?")
    assert asks_for_a_reason("Why does the heart beat?")
    assert not asks_for_a_reason("Cơ quan nào đẩy máu, vì sao?")


def test_coverage_is_the_share_of_the_keys_words_in_the_passage():
    assert key_coverage(asking("Khối cơ rỗng"), PASSAGE) == 1.0
    assert key_coverage(asking("Khối thịt rỗng"), PASSAGE) < 1.0
    assert key_coverage(asking("Mạch điện"), PASSAGE) == 0.0


def test_verbatim_needs_the_words_in_a_row_whatever_their_case():
    assert is_verbatim(asking("KHỐI CƠ RỖNG"), PASSAGE)
    assert is_verbatim(asking("chừng 70 lần."), PASSAGE)
    assert not is_verbatim(asking("Cơ khối rỗng"), PASSAGE)
