"""What makes two base models the same one, as far as an adapter can tell."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class BaseFingerprint(BaseModel):
    """Identity of a base model; how it is quantised when loaded is no part of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    arch: Digest
    """Model type, parameter names and shapes."""

    weights: Digest
    """The parameters themselves."""

    tokenizer: Digest
    """Tokenizer and chat template."""

    def differences(self, other: "BaseFingerprint") -> tuple[str, ...]:
        """Names of the parts in which two bases differ; empty when an adapter fits both."""
        parts = ("arch", "weights", "tokenizer")
        return tuple(part for part in parts if getattr(self, part) != getattr(other, part))
