"""The four ways to name a base model, and how the name is read. No I/O beyond `is it there`."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from model_registry.bases.errors import InvalidSourceError

_HUB_ID = re.compile(r"^[\w][\w.-]*/[\w][\w.-]*$")
_REVISION = re.compile(r"^[\w][\w./-]*$")


class SourceKind(StrEnum):
    """Where a base model comes from."""

    HUB = "hf"
    DIRECTORY = "directory"
    GGUF = "gguf"
    EMBEDDED = "embedded"


@dataclass(frozen=True)
class BaseModelSource:
    """A base model by name; nothing has been downloaded or opened."""

    kind: SourceKind
    location: str
    """Hub id, absolute path, or name of an embedded model."""
    revision: str | None = None
    """Only of the Hub: a branch, a tag or a commit."""

    @property
    def name(self) -> str:
        """What people call the model."""
        match self.kind:
            case SourceKind.GGUF:
                return Path(self.location).stem
            case SourceKind.DIRECTORY:
                return Path(self.location).name
            case _:
                return self.location

    def __str__(self) -> str:
        match self.kind:
            case SourceKind.HUB:
                return f"hf:{self.location}" + (f"@{self.revision}" if self.revision else "")
            case SourceKind.EMBEDDED:
                return f"embedded:{self.location}"
            case _:
                return self.location


def parse_source(text: str) -> BaseModelSource:
    """Read `hf:ORG/NAME[@revision]`, `embedded:NAME`, a directory or a `.gguf` file.

    Raises:
        InvalidSourceError: The text is none of these, or the path does not exist.
    """
    text = text.strip()
    if not text:
        raise InvalidSourceError(text, "it is empty")
    if text.startswith("hf:"):
        location, _, revision = text.removeprefix("hf:").partition("@")
        if not _HUB_ID.match(location):
            raise InvalidSourceError(text, "a Hub model is written hf:ORG/NAME or hf:ORG/NAME@rev")
        if "@" in text and not _REVISION.match(revision):
            raise InvalidSourceError(text, "the revision after @ is empty or malformed")
        return BaseModelSource(SourceKind.HUB, location, revision or None)
    if text.startswith("embedded:"):
        return BaseModelSource(SourceKind.EMBEDDED, text.removeprefix("embedded:"))
    path = Path(text).expanduser()
    if path.is_dir():
        return BaseModelSource(SourceKind.DIRECTORY, str(path.resolve()))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InvalidSourceError(text, "there is no such file")
        return BaseModelSource(SourceKind.GGUF, str(path.resolve()))
    if path.is_file():
        raise InvalidSourceError(text, "the file is not a .gguf file")
    raise InvalidSourceError(text, "there is no such directory")
