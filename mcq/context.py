"""What a passage must be before a model is asked about it."""

import unicodedata

from mcq.errors import InvalidContextError


def check_context(context: str, *, min_words: int, max_words: int) -> str:
    """The passage in NFC, or the reason why no question can be made from it.

    Raises:
        InvalidContextError: `reason` is `empty`, `not_text`, `too_short` or `too_long`.
    """
    text = unicodedata.normalize("NFC", context)
    if not text.strip():
        raise InvalidContextError("empty", "The context is empty; send a paragraph of text")
    broken = [c for c in set(text) if not c.isprintable() and _is_broken(c)]
    if "\ufffd" in text:
        broken.append("\ufffd")
    if broken:
        raise InvalidContextError(
            "not_text",
            f"The context holds characters that are not text, such as U+{ord(min(broken)):04X}; "
            "send plain text in UTF-8",
        )
    count = len(text.split())
    if count < min_words:
        raise InvalidContextError(
            "too_short", f"The context has {count} words; at least {min_words} are needed"
        )
    if count > max_words:
        raise InvalidContextError(
            "too_long",
            f"The context has {count} words; at most {max_words} are allowed: "
            "send one section at a time",
        )
    return text


def _is_broken(character: str) -> bool:
    if character in "\n\r\t":
        return False
    return unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn")
