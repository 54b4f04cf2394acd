"""Words and sentences of a text, with their places; made for matching, not for show."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_TONES = frozenset("\u0300\u0301\u0303\u0309\u0323")
_WORD = re.compile(r"[^\W_]+(?:[.,][0-9]+)*")
_SENTENCE_END = re.compile(r"(?:[.!?…]+[\"”’)\]]*(?=\s)|\n)")
_ABBREVIATIONS = frozenset(
    "tp ts ths gs pgs tr vd st mr mrs ms dr prof no vs fig th q p tx bs ks".split()
)

FUNCTION_WORDS = frozenset(
    """
    là và của các những một có được cho với trong khi để từ theo này đó thì mà ở về đã sẽ đang bị
    do nên vì như cũng còn lại ra vào lên xuống trên dưới giữa hay hoặc nhưng nếu không gì nào sao
    ai đâu bao nhiêu mấy thế cái con sự việc điều người ta rằng tại bởi đến tới rất hơn nhất chỉ
    the a an of and or to in on at by for with from is are was were be been being it its this that
    these those as what which who whom whose when where why how do does did not no than then there
    their they he she his her has have had can could may might will would should about into over
    """.split()
)


@lru_cache(maxsize=4_096)  # evidence and checks ask for the same sentences and options again
def words(text: str) -> tuple[str, ...]:
    """Folded words: case and the place of a tone mark (`hòa`, `hoà`) do not count."""
    return tuple(map(fold, _WORD.findall(unicodedata.normalize("NFC", text))))


def content_words(text: str) -> tuple[str, ...]:
    """`words` without those that any sentence holds."""
    return tuple(word for word in words(text) if word not in _FOLDED_FUNCTION_WORDS)


@lru_cache(maxsize=65_536)  # passages repeat their words, and every candidate asks for them
def fold(word: str) -> str:
    """One word for comparison: no case, tone marks moved to its end."""
    decomposed = unicodedata.normalize("NFD", word.casefold())
    tones = "".join(c for c in decomposed if c in _TONES)
    rest = "".join(c for c in decomposed if c not in _TONES)
    return unicodedata.normalize("NFC", rest) + tones


_FOLDED_FUNCTION_WORDS = frozenset(fold(word) for word in FUNCTION_WORDS)


@dataclass(frozen=True, slots=True)
class Sentence:
    """`text == source[start:end]`, without outer space."""

    start: int
    end: int
    text: str


def sentences(text: str) -> list[Sentence]:
    """The sentences of a text in order; line breaks end one too."""
    found = list(_spans(text))
    return [Sentence(start, end, text[start:end]) for start, end in found]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if not _ends_sentence(text, match):
            continue
        yield from _trimmed(text, start, match.end())
        start = match.end()
    yield from _trimmed(text, start, len(text))


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    if match[0] != ".":
        return True
    before = re.search(r"[^\W\d_]+$", text[: match.start()])
    if before and (len(before[0]) == 1 or before[0].casefold() in _ABBREVIATIONS):
        return False
    after = text[match.end() :].lstrip()
    return not after or not after[0].islower()


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end -= len(piece) - len(piece.rstrip())
    if end > start:
        yield start, end
