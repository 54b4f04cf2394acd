# pyright: basic
# transformers' tokenizers are typed too loosely for strict mode.
"""What every token of a vocabulary is in UTF-8 bytes, without decoding text."""

import json
import re

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(tokenizer, vocab_size: int) -> list[bytes | None]:
    """Bytes of each token id; None for special, added and unused ids.

    Reads both families: byte-level BPE (Qwen, Llama 3, SmolLM2), where each byte is spelt as a
    printable character, and SentencePiece with byte fallback (Gemma, Llama 2), where a space is
    `▁`.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    byte_level = "ByteLevel" in json.dumps([backend.get("pre_tokenizer"), backend.get("decoder")])
    spell = _from_byte_level if byte_level else _from_sentencepiece
    added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    result: list[bytes | None] = [None] * vocab_size
    for text, index in tokenizer.get_vocab().items():
        if index < vocab_size and index not in added:
            result[index] = spell(text)
    return result


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _from_byte_level(text: str) -> bytes | None:
    try:
        return bytes(_BYTE_OF[character] for character in text)
    except KeyError:
        return None


def _from_sentencepiece(text: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace("▁", " ").encode()
