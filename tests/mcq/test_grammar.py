"""The grammar and the parser agree on what a completion is."""

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcq.errors import MalformedCompletionError
from mcq.grammar import (
    Choice,
    CompletionGrammar,
    Field,
    Text,
    alphabet,
    passage_characters,
)
from mcq.prompts import prompt_format

CHAT = prompt_format("chat/1")
VI = CHAT.grammar("vi")
GOOD = "Câu hỏi: Số nào?\nA. một\nB. hai\nC. ba\nD. bốn\nĐáp án: B"


def parses(text: str) -> bool:
    """Whether the parser takes it, whatever it thinks of the options' sameness."""
    try:
        CHAT.parse(text, "vi")
    except MalformedCompletionError as error:
        return error.reason == "invalid_question" and "say the same" in error.detail
    return True


@given(st.text(alphabet="A. \nCâuhỏi:Đápn?B12\t", max_size=80))
@example(GOOD)
def test_whatever_the_grammar_accepts_the_parser_reads(text: str) -> None:
    for candidate in (text, GOOD.replace("hai", text), GOOD.replace("Số nào?", text)):
        if VI.accepts(candidate):
            assert parses(candidate)


@given(st.integers(0, len(GOOD) - 1), st.sampled_from(list("\n ABĐ:.x\u00a0\u2028")))
def test_one_changed_character_is_judged_alike(place: int, character: str) -> None:
    text = GOOD[:place] + character + GOOD[place + 1 :]
    if VI.accepts(text):
        assert parses(text)
    elif parses(text):
        assert re.search(r"(?m)^[A-D]\.\S|:\S|\.$|\n$", text), "read, but no older spelling"


def test_small_grammar_is_matched_exhaustively() -> None:
    grammar = CompletionGrammar(
        "en", (Text("Q "), Field("stem", 3), Text("\n"), Choice("key", ("A", "B")))
    )
    accepted = {
        text
        for length in range(8)
        for text in map("".join, itertools.product("QA \nB", repeat=length))
        if grammar.accepts(text)
    }
    stems = {
        s
        for length in (1, 2, 3)
        for s in map("".join, itertools.product("QA B", repeat=length))
        if s == s.strip(" ")
    }
    assert accepted == {f"Q {stem}\n{key}" for stem in stems for key in "AB"}


def test_fields_are_read_by_name() -> None:
    fields = VI.fields(GOOD)
    assert fields == {
        "question": "Số nào?", "A": "một", "B": "hai", "C": "ba", "D": "bốn", "key": "B",
    }  # fmt: skip
    assert VI.fields("nothing of it") is None


def test_alphabet_keeps_foreign_scripts_out_and_the_passages_own_in() -> None:
    pattern = re.compile(VI.regex(alphabet=alphabet("vi")))
    chinese = GOOD.replace("hai", "二")
    assert pattern.fullmatch(GOOD)
    assert not pattern.fullmatch(chinese)
    assert re.fullmatch(VI.regex(alphabet=alphabet("vi") | set("chữ 二")), chinese)


@given(st.text(max_size=30))
def test_a_passages_characters_never_break_a_field(passage: str) -> None:
    pattern = re.compile(VI.regex(alphabet=alphabet("vi") | passage_characters(passage)))
    for character in passage:
        for text in (f"{character}x", f"x{character}", f"x{character}y"):
            completion = GOOD.replace("hai", text)
            if pattern.fullmatch(completion):
                assert parses(completion)


@pytest.mark.parametrize("sign", list(r"\]^[-"))
def test_alphabets_may_hold_signs_of_regular_expressions(sign: str) -> None:
    pattern = re.compile(VI.regex(alphabet=alphabet("vi")))
    assert pattern.fullmatch(GOOD.replace("hai", f"x{sign}y"))
