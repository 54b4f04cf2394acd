# pyright: basic
# gguf and transformers have partial types, which strict mode refuses.
"""Read a GGUF file once, quickly, and let transformers share the reading.

The stock reader takes a numpy memmap apart a token of the vocabulary at a time, which is slow, and
transformers opens the file anew for the config, the tokenizer and the weights: together a minute
for a vocabulary of 150,000. Plain array views and one shared reader make it a few seconds.
"""

import functools
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_registry.bases.errors import ConversionError


def open_gguf(path: Path) -> Any:
    """A `gguf.GGUFReader` on the file.

    Raises:
        ConversionError: The file is damaged, cut short, or no GGUF.
    """
    import numpy as np
    from gguf import GGUFReader

    class QuickReader(GGUFReader):
        def _get(
            self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None
        ) -> np.ndarray:
            if isinstance(self.data, np.memmap):
                self.data = np.asarray(self.data).view(np.ndarray)
            dtype = np.dtype(dtype)
            end = int(offset) + dtype.itemsize * int(count)
            if end > self.data.size:
                raise ValueError("the file is cut short")
            order = self.byte_order if override_order is None else override_order
            return self.data[int(offset) : end].view(dtype.newbyteorder(order))

    try:
        return QuickReader(path)
    except (ValueError, KeyError, IndexError, OverflowError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConversionError(
            path, f"the file is damaged or no GGUF ({reason}); fetch it again"
        ) from error


@contextmanager
def shared_with_transformers(reader: Any) -> Generator[None]:
    """Within the block, transformers gets this reader wherever it would open the file again."""
    import gguf

    # transformers imports both names from the package at each call, so this reaches it.
    original = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = lambda *_, **__: reader
    gguf.get_tensor_name_map = functools.cache(original[1])
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = original


def text_field(reader: Any, name: str) -> str:
    """A metadata value that is text."""
    field = reader.fields[name]
    return bytes(field.parts[field.data[0]]).decode()
