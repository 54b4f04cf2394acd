"""Prompts are frozen; completions survive the round trip and every kind of damage is named."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mcq.errors import MalformedCompletionError, UnknownPromptFormatError
from mcq.forms import Lettered
from mcq.grammar import alphabet
from mcq.language import LANGUAGES, Language
from mcq.prompts import PROMPT_FORMATS, normalize_context, prompt_format
from mcq.question import LETTERS, Question
from mcq.shuffling import arranged

COMPLETION = "Câu hỏi: Số nào?\nA. một\nB. hai\nC. ba\nD. bốn\nĐáp án: B"


def test_instruct_prompt_is_frozen() -> None:
    prompt = prompt_format("instruct-vi/1").render("Một  đoạn\n\nvăn.", "vi", ["Cũ?"])
    assert prompt.is_plain
    assert prompt.plain == (
        "Hãy viết một câu hỏi trắc nghiệm dựa vào ngữ cảnh dưới đây. Câu hỏi có bốn phương án "
        "A, B, C, D, trong đó chỉ một phương án đúng.\n\n"
        "Hỏi về ý khác với các câu đã có:\n- Cũ?\n\n"
        "### Ngữ cảnh:\nMột đoạn\nvăn.\n\n"
        "### Phản hồi:\n"
    )


def test_chat_prompt_is_frozen() -> None:
    prompt = prompt_format("chat/1").render("Một đoạn văn.", "vi")
    assert [(m.role, m.content) for m in prompt.messages] == [
        (
            "system",
            "Hãy viết một câu hỏi trắc nghiệm dựa vào ngữ cảnh dưới đây. Câu hỏi có bốn phương án "
            "A, B, C, D, trong đó chỉ một phương án đúng. Trả lời đúng theo mẫu:\n"
            "Câu hỏi: …\nA. …\nB. …\nC. …\nD. …\nĐáp án: (A, B, C hoặc D)",
        ),
        ("user", "Một đoạn văn."),
    ]


@pytest.mark.parametrize(
    ("name", "task", "lines"),
    [
        ("chat/2", "Hãy chép lại phần ngữ cảnh nêu một ý đáng hỏi, rồi viết một câu hỏi trắc "
         "nghiệm về ý đó: một phương án đúng, ba phương án sai cùng loại với nó.", "Trích: …\n"),
        ("chat/3", "Hãy viết một câu hỏi trắc nghiệm dựa vào ngữ cảnh dưới đây: một phương án "
         "đúng, ba phương án sai cùng loại với nó.", ""),
    ],
)  # fmt: skip
def test_prompts_that_name_the_right_option_first_are_frozen(
    name: str, task: str, lines: str
) -> None:
    prompt = prompt_format(name).render("Một đoạn văn.", "vi")
    form = f"{lines}Câu hỏi: …\nĐúng: …\nSai: …\nSai: …\nSai: …"
    assert prompt.messages[0].content == f"{task} Trả lời đúng theo mẫu:\n{form}"
    assert prompt.messages[1].content == "Một đoạn văn."


def test_prompt_that_asks_for_the_answer_before_the_stem_is_frozen() -> None:
    prompt = prompt_format("chat/4").render("Một đoạn văn.", "vi")
    assert prompt.messages[0].content == (
        "Hãy chọn một chi tiết mà ngữ cảnh dưới đây nêu rõ, rồi viết một câu hỏi trắc nghiệm mà "
        "chi tiết đó là phương án đúng, kèm ba phương án sai cùng loại. Trả lời đúng theo mẫu:\n"
        "Đúng: …\nCâu hỏi: …\nSai: …\nSai: …\nSai: …"
    )
    assert prompt.messages[1].content == "Một đoạn văn."


def test_chat_prompt_goes_through_the_base_models_template() -> None:
    prompt = prompt_format("chat/1").render("A paragraph.", "en", ["Old?"])
    text = prompt.to_text(lambda turns: "|".join(f"{t['role']}:{t['content']}" for t in turns))
    assert text.startswith("system:Write one multiple-choice question")
    assert text.endswith(
        "user:A paragraph.\n\nAsk about something other than these questions do:\n- Old?"
    )


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(UnknownPromptFormatError, match="chat/1"):
        prompt_format("chat/99")


def test_context_is_normalised_the_same_for_training_and_serving() -> None:
    assert normalize_context(" Vie\u0323\u0302t \t Nam \r\n\r\n\r\nx ") == "Việt Nam\nx"


def questions(language: Language) -> st.SearchStrategy[Question]:
    """Any valid question in the letters of a language."""
    characters = st.sampled_from(sorted(alphabet(language)))
    line = st.text(characters, min_size=1, max_size=60).map(str.strip).filter(bool)

    def build(stem: str, options: list[str], key: str) -> Question | None:
        fields = {"question": stem, "options": dict(zip(LETTERS, options, strict=True)), "key": key}
        try:
            return Question.model_validate(fields)
        except ValidationError:
            return None

    built = st.builds(build, line, st.lists(line, min_size=4, max_size=4), st.sampled_from(LETTERS))
    return built.filter(lambda q: q is not None).map(lambda q: q)  # type: ignore[return-value]


@pytest.mark.parametrize("name", PROMPT_FORMATS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_rendered_completions_parse_to_the_same_question(name: str, language: Language) -> None:
    chosen = prompt_format(name)

    @given(questions(language))
    def round_trip(question: Question) -> None:
        text = chosen.render_completion(question, language, "Một câu của đoạn văn.")
        parsed = chosen.parse(text, language)
        assert parsed.question == question.question
        assert parsed.key_text == question.key_text
        assert sorted(parsed.distractors) == sorted(question.distractors)
        assert chosen.grammar(language).accepts(text)
        if isinstance(chosen.form, Lettered):
            assert parsed == question

    round_trip()


QUOTED = "Trích: Hai cộng hai là bốn.\nCâu hỏi: Tổng?\nĐúng: bốn\nSai: năm\nSai: sáu\nSai: ba\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (QUOTED.replace("Trích", "Quote"), "no_quote"),
        (QUOTED.partition("\n")[2], "no_quote"),
        (QUOTED.replace("Tổng?", ""), "no_stem"),
        (QUOTED.replace("Đúng: bốn\n", ""), "no_key"),
        (QUOTED.replace("Sai: ba\n", ""), "missing_option"),
        (QUOTED + "Sai: tám\n", "trailing_text"),
        (QUOTED + "\n", "trailing_text"),
        (QUOTED.replace("sáu", "Năm"), "invalid_question"),
        (QUOTED.replace("sáu", "b\ufffdy"), "broken_text"),
    ],
)
def test_broken_quoted_completions_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(MalformedCompletionError) as caught:
        prompt_format("chat/2").parse(text, "vi")
    assert caught.value.reason == reason


ANSWERED = "Đúng: bốn\nCâu hỏi: Tổng?\nSai: năm\nSai: sáu\nSai: ba\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ANSWERED.partition("\n")[2], "no_key"),
        ("Câu hỏi: Tổng?\nĐúng: bốn\nSai: năm\nSai: sáu\nSai: ba\n", "no_key"),
        (ANSWERED.replace("Câu hỏi: Tổng?\n", ""), "no_stem"),
        (ANSWERED.replace("Sai: ba\n", ""), "missing_option"),
        (ANSWERED + "Sai: tám\n", "trailing_text"),
        (ANSWERED.replace("sáu", "Bốn"), "invalid_question"),
    ],
)
def test_completions_that_do_not_begin_with_the_answer_are_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedCompletionError) as caught:
        prompt_format("chat/4").parse(text, "vi")
    assert caught.value.reason == reason


def test_answer_before_the_stem_becomes_the_key() -> None:
    question = prompt_format("chat/4").parse(ANSWERED, "vi")
    assert (question.question, question.key_text) == ("Tổng?", "bốn")
    assert sorted(question.distractors) == ["ba", "năm", "sáu"]


def test_right_option_gets_a_letter_by_digest_and_the_letters_are_balanced() -> None:
    letters = Counter(
        prompt_format("chat/2").parse(QUOTED.replace("Tổng?", f"Tổng {i}?"), "vi").key
        for i in range(400)
    )
    assert set(letters) == set(LETTERS)
    assert min(letters.values()) > 60


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("8 bit", ["4 bit", "16 bit", "2 bit"], ["2 bit", "4 bit", "8 bit", "16 bit"]),
        ("1.024", ["512", "2.048", "256"], ["256", "512", "1.024", "2.048"]),
        ("1945", ["1975", "1930", "1954"],
         ["1930", "1945", "1954", "1975"]),
        ("0,5", ["1,25", "0,75", "0,05"], ["0,05", "0,5", "0,75", "1,25"]),
    ],
)  # fmt: skip
def test_figures_ascend(right: str, wrong: list[str], expected: list[str]) -> None:
    question = arranged("Bao nhiêu?", right, wrong)
    assert list(question.options.values()) == expected
    assert question.key_text == right


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("   \n ", "empty"),
        (COMPLETION.replace("hai", "h\ufffdi"), "broken_text"),
        ("Đây là câu hỏi:\n" + COMPLETION, "no_stem"),
        (COMPLETION.replace("Số nào?", ""), "no_stem"),
        (COMPLETION.replace("Câu hỏi", "Question"), "no_stem"),
        (COMPLETION.rsplit("\n", 1)[0], "no_key"),
        (COMPLETION.replace("án: B", "án: hai"), "no_key"),
        (COMPLETION.replace("án: B", "án: B vì hai"), "no_key"),
        (COMPLETION.replace("án: B", "án: "), "no_key"),
        (COMPLETION.replace("án: B", "án: E"), "key_out_of_range"),
        (COMPLETION + "\nGiải thích: …", "trailing_text"),
        (COMPLETION + "\n" + COMPLETION, "trailing_text"),
        (COMPLETION.replace("C. ba\n", ""), "missing_option"),
        (COMPLETION.replace("C. ba", "B. ba"), "repeated_option"),
        (COMPLETION.replace("A. một\nB. hai", "B. hai\nA. một"), "option_order"),
        (COMPLETION.replace("C. ba", "C) ba"), "unexpected_line"),
        (COMPLETION.replace("C. ba", "\nC. ba"), "unexpected_line"),
        (COMPLETION.replace("D. bốn", "D. bốn\nE. năm"), "option_order"),
        (COMPLETION.replace("C. ba", "C. Hai"), "invalid_question"),
        (COMPLETION.replace("C. ba", "C. " + "x" * 300), "invalid_question"),
        (COMPLETION.replace("C. ba", "C.  ba"), "unexpected_line"),
    ],
)
def test_broken_completions_are_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(MalformedCompletionError) as caught:
        prompt_format("chat/1").parse(text, "vi")
    assert caught.value.reason == reason


def test_older_spellings_mean_the_same() -> None:
    older = re.sub(r"(?m)^([A-D])\. ", r"\1.", COMPLETION) + "."
    chosen = prompt_format("chat/1")
    assert "A.một" in older
    assert chosen.parse(older, "vi") == chosen.parse(COMPLETION, "vi")
    assert chosen.parse(COMPLETION + "\n", "vi") == chosen.parse(COMPLETION, "vi")
