# pyright: basic
# torch's operators are typed too loosely for strict mode.
"""The token table admits exactly what the grammar accepts and the parser reads."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from mcq.errors import MalformedCompletionError
from mcq.grammar import Choice, CompletionGrammar, Field, Text, alphabet, passage_characters
from mcq.language import Language
from mcq.prompts import prompt_format
from service.engine.byte_automaton import build_byte_automaton
from service.engine.device_grammar import DeviceGrammar, GrammarCompiler, LoadedGrammar, grammar_key
from service.engine.token_bytes import token_bytes
from service.engine.token_table import (
    NOT_ALLOWED,
    UnsupportedTokenizerError,
    Vocabulary,
    build_token_table,
)
from tests.service.engine.cached_models import cached_models

CHAT = prompt_format("chat/1")
PIECES = [
    "a ",
    " a",
    "aa",
    " é",
    "é a",
    "\nA. ",
    "a\n",
    "a\nA. ",
    "\nA. é",
    ". ",
    "  ",
    "\nK: Y",
    "é",
]
PIECES += ["Q: ", "Q: a", ": ", "a\nA. a ", "aé\nK: X"]
SMALL = CompletionGrammar(
    "en",
    (
        Text("Q: "),
        Field("question", 3),
        Text("\nA. "),
        Field("A", 2),
        Text("\nK: "),
        Choice("key", ("X", "Y")),
    ),
)


class Follower:
    """Walks sequences through a grammar on the device, as a decode step does."""

    def __init__(
        self, tokens: list[bytes | None], grammar: CompletionGrammar, letters: frozenset[str]
    ):
        self.tokens = tokens
        vocabulary = Vocabulary(tokens)
        self.has_newline = vocabulary.has_newline
        table = build_token_table(build_byte_automaton(grammar, letters), vocabulary)
        self.device = DeviceGrammar(vocabulary, len(table.next_state) + 2, torch.device("cpu"))
        self.loaded: LoadedGrammar = self.device.acquire((grammar, letters), table)
        self.start = (self.loaded.offset + table.automaton.start, 0)

    def allowed(self, places: list[tuple[int, int]]) -> list[np.ndarray]:
        """The tokens that may follow each pair of state and count."""
        states, counts = torch.tensor(places).unbind(1)
        masked = self.device.mask(torch.zeros(len(places), len(self.tokens)), states, counts)
        return [np.flatnonzero(row == 0) for row in masked.numpy()]

    def after(self, places: list[tuple[int, int]], tokens: list[int]) -> list[tuple[int, int]]:
        """The pairs after one token each."""
        states, counts = torch.tensor(places).unbind(1)
        moved = self.device.advance(states, counts, torch.tensor(tokens))
        return list(zip(*(column.tolist() for column in moved), strict=True))

    def admits(self, tokens: list[int]) -> bool:
        """Whether a whole sequence may be drawn and completes a text."""
        place = self.start
        for token in tokens:
            if token not in self.allowed([place])[0]:
                return False
            place = self.after([place], [token])[0]
        return self.is_complete(place)

    def is_complete(self, place: tuple[int, int]) -> bool:
        return place[0] == self.loaded.accept


def small_vocabulary() -> list[bytes | None]:
    single = sorted(set("".join([*PIECES, "Q: aé\nA. K: XY"]).encode()))
    return [None, *(bytes([byte]) for byte in single), *(piece.encode() for piece in PIECES), b""]


def field_texts(letters: str, limit: int) -> list[str]:
    texts = ("".join(t) for n in range(1, limit + 1) for t in itertools.product(letters, repeat=n))
    return [text for text in texts if text == text.strip()]


def accepted_texts() -> set[str]:
    fields = itertools.product(field_texts("aé ", 3), field_texts("aé ", 2), "XY")
    texts = {f"Q: {stem}\nA. {option}\nK: {key}" for stem, option, key in fields}
    assert all(SMALL.accepts(text) for text in texts)
    return texts


def test_every_text_that_tokens_can_spell_is_accepted_and_every_accepted_text_can_be_spelt() -> (
    None
):
    follower = Follower(small_vocabulary(), SMALL, frozenset("aé "))
    frontier: set[tuple[Any, bytes]] = {(follower.start, b"")}
    seen, spelt = set(frontier), set()
    while frontier:
        items = list(frontier)
        frontier = set()
        for (place, text), allowed in zip(
            items, follower.allowed([place for place, _ in items]), strict=True
        ):
            assert len(allowed) or follower.is_complete(place), f"stuck after {text!r}"
            if follower.is_complete(place):
                spelt.add(text.decode())
                continue
            moved = follower.after([place] * len(allowed), allowed.tolist())
            for token, next_place in zip(allowed, moved, strict=True):
                item = (next_place, text + (follower.tokens[token] or b""))
                if item not in seen:
                    seen.add(item)
                    frontier.add(item)
    assert spelt == accepted_texts()


def test_every_way_to_cut_an_accepted_text_into_tokens_is_admitted() -> None:
    follower = Follower(small_vocabulary(), SMALL, frozenset("aé "))
    for text in sorted(accepted_texts())[::7]:
        states = {(0, follower.start)}
        spelling = text.encode()
        while states:
            (at, place), *rest = states
            states = set(rest)
            if at == len(spelling):
                assert follower.is_complete(place)
                continue
            cuts = [
                (at + len(piece), token)
                for token, piece in enumerate(follower.tokens)
                if piece and spelling.startswith(piece, at)
            ]
            allowed = follower.allowed([place])[0]
            for end, token in cuts:
                assert token in allowed, (text, at, follower.tokens[token])
                states.add((end, follower.after([place], [token])[0]))


def test_a_vocabulary_without_a_needed_byte_is_refused() -> None:
    tokens = [token for token in small_vocabulary() if token != b"K"]
    with pytest.raises(UnsupportedTokenizerError):
        Follower(tokens, SMALL, frozenset("aé "))


def random_field(rng: np.random.Generator, letters: list[str], limit: int) -> str:
    """Words of random letters, sometimes exactly as long as a field may be."""
    length = limit if rng.random() < 0.2 else int(rng.integers(1, min(60, limit) + 1))
    text = "".join(rng.choice(letters) if rng.random() < 0.8 else " " for _ in range(length))
    ends = [rng.choice([c for c in letters if c != " "]) for _ in range(2)]
    return (ends[0] + text[1:-1] + ends[1])[:length] if length > 1 else str(ends[0])


def random_completion(rng: np.random.Generator, language: Language, letters: list[str]) -> str:
    labels = ("Câu hỏi:", "Đáp án:") if language == "vi" else ("Question:", "Answer:")
    options = "".join(f"\n{c}. {random_field(rng, letters, 200)}" for c in "ABCD")
    key = rng.choice(list("ABCD"))
    return f"{labels[0]} {random_field(rng, letters, 400)}{options}\n{labels[1]} {key}"


def drawn_text(follower: Follower, rng: np.random.Generator, eagerness: float) -> str:
    """A random walk over the tokens that may follow."""
    place, spelling = follower.start, b""
    while not follower.is_complete(place):
        allowed = follower.allowed([place])[0]
        assert len(allowed), f"stuck after {spelling!r}"
        ends = allowed[follower.has_newline[allowed]]
        token = int(rng.choice(ends if len(ends) and rng.random() < eagerness else allowed))
        place = follower.after([place], [token])[0]
        spelling += follower.tokens[token] or b""
    return spelling.decode()


def reads(text: str, language: Language) -> bool:
    """Whether the parser takes it, apart from options that say the same."""
    try:
        CHAT.parse(text, language)
    except MalformedCompletionError as error:
        return error.reason == "invalid_question" and "say the same" in error.detail
    return True


PASSAGE = "Chữ 漢字 và कथा — 5 µm; naïve\u00a0café\u200b, ʻokina 🙂."


def fuzz(directory: Path, language: Language, rounds: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    size = len(tokenizer)
    tokens = token_bytes(tokenizer, size + 5)
    grammar, extra = CHAT.grammar(language), passage_characters(PASSAGE)
    letters = alphabet(language) | extra
    follower = Follower(tokens, grammar, letters)
    rng = np.random.default_rng(7)
    pool = [*sorted(letters), *"aeinotạếừơ" * 8]
    if language == "en":
        pool = [c for c in pool if c in letters]
    for _ in range(rounds):
        text = random_completion(rng, language, pool)
        assert grammar.accepts(text)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        # A tokenizer that normalises writes another text; the table judges what it writes.
        written = b"".join(tokens[i] or b"" for i in ids).decode()
        assert follower.admits(ids) == grammar.accepts(written), text
    for round_ in range(rounds):
        text = drawn_text(follower, rng, eagerness=(0.0, 0.4, 0.1)[round_ % 3])
        assert grammar.accepts(text), text
        assert reads(text, language), text


@pytest.mark.parametrize("language", ["vi", "en"])
def test_a_byte_level_tokenizer_spells_what_the_parser_reads(
    tiny: Path, language: Language
) -> None:
    fuzz(tiny, language, rounds=6)


@pytest.mark.slow
@pytest.mark.parametrize("directory", cached_models(), ids=lambda path: path.name)
def test_real_tokenizers_spell_what_the_parser_reads(directory: Path) -> None:
    fuzz(directory, "vi", rounds=3)


@pytest.mark.parametrize(("changed", "is_admitted"), [
    (lambda text: text, True),
    (lambda text: text.replace("một", "m" * 200), True),
    (lambda text: text.replace("một", "m" * 201), False),
    (lambda text: text.replace("Số nào?", "ố" * 400), True),
    (lambda text: text.replace("Số nào?", "ố" * 401), False),
    (lambda text: text.replace("một", "một "), False),
    (lambda text: text.replace("một", " một"), False),
    (lambda text: text.replace("một", "m\u00a0ột"), False),
    (lambda text: text.replace("một", "một\tx"), False),
    (lambda text: text.replace("hai", "二"), False),
    (lambda text: text.replace("hai", "漢"), True),
    (lambda text: text.replace(": B", ": E"), False),
    (lambda text: text.replace("C. ba\n", ""), False),
    (lambda text: text + "\n", False),
])  # fmt: skip
def test_field_limits_letters_and_lines_are_kept(tiny: Path, changed, is_admitted: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokens = token_bytes(tokenizer, len(tokenizer))
    letters = alphabet("vi") | passage_characters(PASSAGE)
    follower = Follower(tokens, CHAT.grammar("vi"), letters)
    text = changed("Câu hỏi: Số nào?\nA. một\nB. hai\nC. ba\nD. bốn\nĐáp án: B")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert follower.admits(ids) is is_admitted


def test_passages_without_foreign_letters_share_one_table() -> None:
    grammar = CHAT.grammar("vi")
    plain = grammar_key(grammar, passage_characters("Trời xanh, mây trắng."))
    other = grammar_key(grammar, passage_characters("Nước chảy!"))
    foreign = grammar_key(grammar, passage_characters("漢字"))
    assert plain == other != foreign


def test_grammars_in_use_stay_and_idle_ones_make_room(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    compiler = GrammarCompiler(token_bytes(tokenizer, len(tokenizer)))
    keys = [grammar_key(CHAT.grammar("vi"), frozenset(c)) for c in ("漢", "字", "語")]
    tables = [compiler.compile(key) for key in keys]
    rows = 2 + len(tables[0].next_state) + len(tables[1].next_state)
    device = DeviceGrammar(compiler.vocabulary, rows, torch.device("cpu"))
    first, second = (device.acquire(k, t) for k, t in zip(keys[:2], tables[:2], strict=True))
    device.release(second)
    device.acquire(keys[2], tables[2])
    assert device.is_loaded(keys[0])
    assert not device.is_loaded(keys[1])
    kept = device.next_state[first.offset : first.offset + len(tables[0].next_state)]
    expected = torch.from_numpy(tables[0].next_state)
    rows_alive = torch.ones(len(expected), dtype=torch.bool)
    rows_alive[tables[0].automaton.accept] = False
    assert torch.equal((kept != NOT_ALLOWED)[rows_alive], (expected != NOT_ALLOWED)[rows_alive])
