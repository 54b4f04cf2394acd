"""What can be wrong with a training run.

TrainingError (McqError)
├── ConfigError              also ValueError   the YAML: names the line and the field
├── DataError                also ValueError   a data set: names file, row or columns
├── SupervisionError         also ValueError   the loss would not teach what it should
├── GuardRailError           also ValueError   a setting known to ruin runs
├── ModelSetupError          also ValueError   the base cannot be trained as asked
├── OutOfMemoryError         also MemoryError  carries what to change, best first
└── RunFailedError                             stopped while running; says what stays usable
"""

from collections.abc import Sequence

from mcq.errors import McqError


class TrainingError(McqError):
    """Base of this tree."""


class ConfigError(TrainingError, ValueError):
    """The configuration cannot be used; `line` is 1-based, or None where there is no line."""

    def __init__(self, source: str, line: int | None, field: str, reason: str) -> None:
        at = source if line is None else f"{source}:{line}"
        what = f"{field}: {reason}" if field else reason
        super().__init__(f"{at}: {what}")
        self.source = source
        self.line = line
        self.field = field
        self.reason = reason


class DataError(TrainingError, ValueError):
    """A data set cannot be read or leaves nothing to train on."""


class SupervisionError(TrainingError, ValueError):
    """The labels would teach nothing, or not when to stop."""


class GuardRailError(TrainingError, ValueError):
    """Settings that are known to ruin a run; `findings` are the reasons with their sources."""

    def __init__(self, findings: Sequence[str]) -> None:
        super().__init__("Refused: " + " | ".join(findings))
        self.findings = tuple(findings)


class ModelSetupError(TrainingError, ValueError):
    """The base model cannot be trained as asked."""


class OutOfMemoryError(TrainingError, MemoryError):
    """The device ran out of memory; `remedies` are ordered, the cheapest in quality first."""

    def __init__(self, remedies: Sequence[str]) -> None:
        advice = "; ".join(f"({i}) {remedy}" for i, remedy in enumerate(remedies, 1))
        super().__init__(f"Out of memory. The last checkpoint stays usable. Try: {advice}")
        self.remedies = tuple(remedies)


class RunFailedError(TrainingError):
    """The run stopped; the message says why and what can be resumed."""
