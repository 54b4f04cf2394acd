"""What an alias demands of a version before it may point at it."""

from collections.abc import Mapping
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from model_registry.adapter import AdapterManifest, check_name
from model_registry.errors import InvalidReferenceError
from model_registry.index.database import Transaction
from model_registry.index.tables import gate, signature

EVERY_ADAPTER = "*"


class Threshold(BaseModel):
    """Bounds of one figure, both included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float | None = None
    max: float | None = None


class GateRules(BaseModel):
    """The demands of one alias."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    require_evaluation: bool = True
    """There is an evaluation record."""
    require_signature: bool = False
    """Somebody has signed the manifest; who is trusted is for the readers to say."""
    require_probe: bool = False
    """It was shown that the adapter changes the logits."""
    thresholds: Annotated[dict[str, Threshold], Field(default_factory=dict)]
    """Dotted path into the evaluation record to its bounds: `unconstrained.valid.share`."""

    def failures(self, manifest: AdapterManifest, *, signed: bool) -> tuple[str, ...]:
        """One sentence for each demand that is not met."""
        record = manifest.evaluation
        found: list[str] = []
        if record is None and (self.require_evaluation or self.thresholds):
            found.append("it has no evaluation record")
        if self.require_signature and not signed:
            found.append("nobody has signed it")
        if self.require_probe and manifest.probe_logit_change is None:
            found.append("no probe has shown that it changes the logits")
        for path, bounds in self.thresholds.items() if record is not None else ():
            value = _figure(record or {}, path)
            if value is None:
                found.append(f"its evaluation has no figure {path}")
            elif bounds.min is not None and value < bounds.min:
                found.append(f"{path} is {value:g}, at least {bounds.min:g} is asked for")
            elif bounds.max is not None and value > bounds.max:
                found.append(f"{path} is {value:g}, at most {bounds.max:g} is allowed")
        return tuple(found)


def read_gate(connection: sa.Connection, name: str, alias: str) -> GateRules | None:
    """The adapter's own gate, else the one of every adapter."""
    rows = connection.execute(
        sa.select(gate.c.name, gate.c.rules).where(
            gate.c.alias == alias, gate.c.name.in_([name, EVERY_ADAPTER])
        )
    ).all()
    rules = {row.name: row.rules for row in rows}
    text = rules.get(name) or rules.get(EVERY_ADAPTER)
    return None if text is None else GateRules.model_validate_json(text)


def write_gate(transaction: Transaction, name: str, alias: str, rules: GateRules | None) -> None:
    """Set or remove a gate; versions that are behind it already stay there."""
    check_name(alias, "alias")
    if name != EVERY_ADAPTER:
        check_name(name)
    transaction.execute(sa.delete(gate).where(gate.c.name == name, gate.c.alias == alias))
    if rules is not None:
        values = {"name": name, "alias": alias, "rules": rules.model_dump_json()}
        transaction.execute(sa.insert(gate).values(values))
    detail = {"rules": None if rules is None else rules.model_dump(mode="json")}
    transaction.record("gate", f"{name}@{alias}", detail)


def parse_rules(data: Mapping[str, Any], label: str) -> GateRules:
    """Rules from JSON, with a one-line complaint."""
    try:
        return GateRules.model_validate(data)
    except ValueError as error:
        raise InvalidReferenceError(label, " ".join(str(error).split())[:300]) from error


def is_signed(connection: sa.Connection, digest: str) -> bool:
    """Whether there is any signature over a manifest."""
    found = sa.select(signature.c.key_id).where(signature.c.digest == digest).limit(1)
    return connection.execute(found).first() is not None


def _figure(record: Mapping[str, Any], path: str) -> float | None:
    value: Any = record
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
