"""Each flaw is found where it is, and a sound question has none."""

import pytest

from mcq.checks import CHECKS, run_checks
from mcq.evidence import find_evidence
from mcq.language import Language
from mcq.question import Question


def failures(question: Question, context: str, language: Language) -> dict[str, str | None]:
    """Failed checks by name."""
    question = question.model_copy(update={"evidence": find_evidence(context, question)})
    return {c.name: c.detail for c in run_checks(question, context, language) if not c.passed}


def test_a_sound_question_passes_every_check(context_vi: str, question_vi: Question) -> None:
    assert failures(question_vi, context_vi, "vi") == {}


VI_CASES = [
    ("key_is_longest", {"B": "Bị mất hết toàn bộ vì bộ nhớ này cần có điện để giữ dữ liệu"}),
    ("stem_gives_key", {"question": "RAM bị mất dữ liệu khi tắt nguồn, vậy nội dung sẽ ra sao?"}),
    (
        "options_overlap",
        {
            "A": "Được chép sang ổ đĩa cứng ngay khi tắt máy",
            "C": "Được chép sang ổ đĩa cứng ngay khi tắt nguồn máy",
        },
    ),
    ("all_or_none_of_the_above", {"D": "Tất cả các đáp án trên"}),
    ("all_or_none_of_the_above", {"D": "Không có đáp án nào đúng"}),
    ("combined_options", {"D": "Cả A và B"}),
    ("absolute_terms", {"C": "Luôn được giữ nguyên", "D": "Hoàn toàn được nén lại"}),
    ("negative_stem", {"question": "Nội dung nào sau đây không đúng với RAM khi tắt nguồn?"}),
    ("blank_in_stem", {"question": "Khi tắt nguồn, nội dung của RAM ____ ngay lập tức?"}),
    ("unfocused_stem", {"question": "Nội dung của RAM và máy tắt nguồn."}),
    ("mixed_kinds", {"A": "12 phút", "C": "Còn nguyên", "D": "Nén lại"}),
    ("only_true_false", {"A": "Đúng, còn", "B": "Sai, mất", "C": "Đúng, nén", "D": "Sai, chép"}),
    ("foreign_script", {"D": "Được nén lại 压缩"}),
    ("leftovers", {"D": "**Được nén lại**"}),
    ("names_the_passage", {"question": "Theo đoạn văn, điều gì xảy ra khi máy tắt nguồn?"}),
    ("key_not_supported", {"B": "Quang hợp", "question": "Lục lạp của cây xanh làm việc gì?"}),
    ("numbers_not_in_context", {"question": "Năm 1987, nội dung RAM ra sao khi máy tắt nguồn?"}),
    ("numbers_unsorted", {"A": "30 giây", "B": "10 giây", "C": "20 giây", "D": "40 giây"}),
]


@pytest.mark.parametrize(("name", "changes"), VI_CASES)
def test_a_flaw_is_named(
    name: str, changes: dict[str, str], context_vi: str, question_vi: Question
) -> None:
    fields = question_vi.model_dump(include={"question", "options", "key"})
    fields["question"] = changes.get("question", fields["question"])
    fields["options"] |= {k: v for k, v in changes.items() if k != "question"}
    found = failures(Question.model_validate(fields), context_vi, "vi")
    assert name in found
    assert found[name]


def test_a_vietnamese_passage_wants_vietnamese_questions(context_vi: str) -> None:
    question = Question(
        question="What happens to the contents of the memory when the power is switched off?",
        options={"A": "They are copied", "B": "They are lost", "C": "They stay", "D": "Nothing"},
        key="B",
    )
    assert failures(question, context_vi, "vi")["wrong_language"] == "en"


@pytest.mark.parametrize(
    "stem",
    [
        "Which of these gases does NOT leave through the stomata?",
        "What leaves through the stomata of the plant?",
    ],
)
def test_emphasised_negations_are_in_order(stem: str, context_en: str) -> None:
    question = Question(
        question=stem,
        options={"A": "Water", "B": "Oxygen", "C": "Light", "D": "Chlorophyll"},
        key="B",
    )
    assert "negative_stem" not in failures(question, context_en, "en")


def test_letters_of_formulas_are_at_home_everywhere(context_vi: str) -> None:
    question = Question(
        question="Điện trở ở đây là bao nhiêu?",
        options={"A": "1 Ω", "B": "2 Ω", "C": "3 Ω", "D": "4 Ω"},
        key="A",
    )
    assert "foreign_script" not in failures(question, context_vi, "vi")


def test_every_check_is_tried_by_a_case() -> None:
    tried = {name for name, _ in VI_CASES} | {"wrong_language"}
    assert tried == set(CHECKS)
