"""What can be wrong with an adapter, a version, an alias or the registry itself.

RegistryError                                   (an McqError)
├── InvalidReferenceError      also ValueError  `name`, `name/3`, `name@alias`: the text is none of
these ├── NotFoundError              also LookupError
│   ├── AdapterNotFoundError                    no adapter has that name
│   ├── VersionNotFoundError                    the adapter has no such number or digest
│   ├── AliasNotFoundError                      the adapter has no such alias
│   └── VariantNotFoundError                    the version has no such merged variant
├── InvalidAdapterError        also ValueError  files refused at publish; `reason` is a stable word
├── BaseMismatchError          also ValueError  made for another base model
├── PrecisionMismatchError     also ValueError  trained on another precision of the same base
├── AliasConflictError                          the alias was moved by somebody else meanwhile
├── GateRefusedError                            the alias demands an evaluation that is not met
├── VersionDeletedError                         deleted; restore it or publish another
├── VersionInUseError                           an alias, pin or lease holds the version
├── MergeError                 also ValueError  a merge that would not give what it promises
├── CorruptArtifactError                        stored bytes are not what the manifest says
├── SignatureError                              a signature is demanded and missing or wrong
├── SchemaError                                 the index has to be migrated first
└── RegistryUnavailableError                    index or store cannot be reached; trying again may
help
"""

from mcq.errors import McqError


class RegistryError(McqError):
    """Base of everything the registry raises on purpose."""


class InvalidReferenceError(RegistryError, ValueError):
    """The text names no adapter, version or alias in any accepted spelling."""

    def __init__(self, text: str, detail: str) -> None:
        super().__init__(f"{text!r} is not a valid reference: {detail}")
        self.text = text
        self.detail = detail


class NotFoundError(RegistryError, LookupError):
    """What was asked for is not in the registry."""


class AdapterNotFoundError(NotFoundError):
    """No adapter has that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No adapter is called {name!r}; see `python -m model_registry list`")
        self.name = name


class VersionNotFoundError(NotFoundError):
    """The adapter has no such version."""

    def __init__(self, name: str, version: int | str) -> None:
        where = f"Adapter {name!r} has no version {version}" if name else f"No version is {version}"
        super().__init__(f"{where}; see `python -m model_registry list {name}`")
        self.name = name
        self.version = version


class AliasNotFoundError(NotFoundError):
    """The adapter has no such alias."""

    def __init__(self, name: str, alias: str) -> None:
        super().__init__(
            f"Adapter {name!r} has no alias {alias!r}; set it with "
            f"`python -m model_registry alias set {name} {alias} NUMBER`"
        )
        self.name = name
        self.alias = alias


class VariantNotFoundError(NotFoundError):
    """The version has no such merged variant."""

    def __init__(self, version: str, kind: str) -> None:
        super().__init__(
            f"Version {version} has no variant {kind!r}; make one with "
            f"`python -m model_registry merge {version} --base SOURCE`"
        )
        self.version = version
        self.kind = kind


class InvalidAdapterError(RegistryError, ValueError):
    """The files are not an adapter this registry takes; `reason` is a stable identifier."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"The adapter is refused ({reason}): {detail}")
        self.reason = reason
        self.detail = detail


class BaseMismatchError(RegistryError, ValueError):
    """The adapter was made for another base model than the one at hand."""

    def __init__(self, adapter: str, parts: tuple[str, ...]) -> None:
        super().__init__(
            f"{adapter} was made for another base model (different: {', '.join(parts)}); "
            "load the base it was trained on, or train it again on this one"
        )
        self.adapter = adapter
        self.parts = parts


class PrecisionMismatchError(RegistryError, ValueError):
    """The adapter was trained on another precision of the base than the one at hand."""

    def __init__(self, adapter: str, trained: str, loaded: str) -> None:
        super().__init__(
            f"{adapter} was trained on {trained} weights and the base is loaded as {loaded}; "
            "load the base in the precision of the training, or serve a merged variant"
        )
        self.adapter = adapter
        self.trained = trained
        self.loaded = loaded


class AliasConflictError(RegistryError):
    """A compare-and-swap found another value than expected; nothing was changed."""

    def __init__(self, name: str, alias: str, expected: str, found: str) -> None:
        super().__init__(
            f"Alias {name}@{alias} is at {found}, not at {expected}: it was moved meanwhile; "
            "look at it again and repeat"
        )
        self.name = name
        self.alias = alias
        self.expected = expected
        self.found = found


class GateRefusedError(RegistryError):
    """The alias demands an evaluation record that this version does not meet."""

    def __init__(self, name: str, alias: str, number: int, failures: tuple[str, ...]) -> None:
        super().__init__(f"{name}/{number} may not become {alias}: {'; '.join(failures)}")
        self.name = name
        self.alias = alias
        self.number = number
        self.failures = failures


class VersionDeletedError(RegistryError):
    """The version was deleted; its number is not given out again."""

    def __init__(self, version: str) -> None:
        super().__init__(
            f"{version} was deleted; bring it back: `python -m model_registry restore {version}`"
        )
        self.version = version


class VersionInUseError(RegistryError):
    """Something still holds the version."""

    def __init__(self, version: str, holders: tuple[str, ...]) -> None:
        super().__init__(f"{version} is in use by {', '.join(holders)}; release that first")
        self.version = version
        self.holders = holders


class MergeError(RegistryError, ValueError):
    """The merge is refused; `reason` is a stable identifier."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"The merge is refused ({reason}): {detail}")
        self.reason = reason
        self.detail = detail


class CorruptArtifactError(RegistryError):
    """Stored bytes are missing or are not what the manifest says."""

    def __init__(self, artifact: str, detail: str) -> None:
        super().__init__(f"{artifact} is damaged: {detail}; publish or import it again")
        self.artifact = artifact
        self.detail = detail


class SignatureError(RegistryError):
    """A signature by a trusted key is demanded, and it is missing or does not fit."""

    def __init__(self, version: str, detail: str) -> None:
        super().__init__(f"{version} is not trusted: {detail}")
        self.version = version
        self.detail = detail


class SchemaError(RegistryError):
    """The index is empty or has another schema than this program."""

    def __init__(self, url: str, found: str | None, wanted: str) -> None:
        state = f"has schema {found}" if found else "has no registry schema yet"
        super().__init__(
            f"The index {url} {state}, this program needs {wanted}; run "
            "`python -m model_registry migrate` with the same --registry"
        )
        self.found = found
        self.wanted = wanted


class RegistryUnavailableError(RegistryError):
    """Index or store cannot be reached or written; nothing was changed."""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(f"{what} cannot be used: {detail}")
        self.what = what
        self.detail = detail
