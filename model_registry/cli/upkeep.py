"""promote, gate, diff, delete, restore, gc, pin, unpin, leases, audit, keygen, sign, migrate."""

import argparse
import json
from pathlib import Path
from typing import Any

from model_registry.cli.context import Subparsers, add_command, open_registry
from model_registry.cli.output import print_fields, print_json, print_table
from model_registry.diff import differences
from model_registry.errors import InvalidReferenceError


def add_commands(subparsers: Subparsers) -> None:
    """Register the commands of this module."""
    promote = add_command(subparsers, "promote", _promote, "point an alias at a version, if it may")
    promote.add_argument("ref", help="name/3, name@canary")
    promote.add_argument("--to", default="production", metavar="ALIAS")
    promote.add_argument("--reason", default="")

    gate = add_command(subparsers, "gate", _gate, "show or set what an alias demands of a version")
    gate.add_argument("name", help="adapter, or '*' for all without a gate of their own")
    gate.add_argument("alias")
    gate.add_argument(
        "--set",
        metavar="RULES",
        help='JSON or a file: {"thresholds": {"unconstrained.valid.share": {"min": 0.9}}}',
    )
    gate.add_argument("--remove", action="store_true")

    diff = add_command(subparsers, "diff", _diff, "show in what two versions differ")
    diff.add_argument("one")
    diff.add_argument("other")

    delete = add_command(subparsers, "delete", _delete, "soft-delete a version")
    delete.add_argument("ref")
    delete.add_argument("--reason", default="")
    restore = add_command(subparsers, "restore", _restore, "undo a soft delete")
    restore.add_argument("ref")

    gc = add_command(subparsers, "gc", _gc, "remove what nothing needs any more")
    gc.add_argument("--grace-hours", type=float, default=24)
    gc.add_argument("--keep-last", type=int, help="soft-delete older versions that nobody holds")
    gc.add_argument("--dry-run", action="store_true")

    for name, run, summary in (
        ("pin", _pin, "keep a version from deletion"),
        ("unpin", _unpin, "lift a pin"),
    ):
        pin = add_command(subparsers, name, run, summary)
        pin.add_argument("ref")
        pin.add_argument("label")

    leases = add_command(subparsers, "leases", _leases, "which replicas serve which versions")
    leases.add_argument("name", nargs="?")

    audit = add_command(subparsers, "audit", _audit, "what was done by whom")
    audit.add_argument("subject", nargs="?", default="", help="name, name/3, name@alias")
    audit.add_argument("--limit", type=int, default=50)
    audit.add_argument("--verify", action="store_true", help="check that no line was changed")

    keygen = add_command(subparsers, "keygen", _keygen, "make a pair of signing keys")
    keygen.add_argument("path", type=Path, help="private key to write; .pub.pem goes beside it")
    sign = add_command(subparsers, "sign", _sign, "sign a version's manifest")
    sign.add_argument("ref")
    sign.add_argument("--key", type=Path, required=True, help="private key, PEM")

    migrate = add_command(subparsers, "migrate", _migrate, "bring a database to this schema")
    migrate.add_argument("--to", default="head", metavar="REVISION")


def _promote(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        version = registry.resolve(arguments.ref)
        before = registry.alias_state(version.name, arguments.to)
        state = registry.set_alias(
            version.name,
            arguments.to,
            version.number,
            expected_revision=before.revision,
            reason=arguments.reason or f"promoted from {arguments.ref}",
        )
    if arguments.json:
        print_json(state.to_json())
    else:
        was = "unset" if before.number is None else f"version {before.number}"
        print(f"{state.name}@{state.alias} → version {state.number} (was {was})")


def _gate(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        if arguments.remove:
            registry.set_gate(arguments.name, arguments.alias, None)
        elif arguments.set:
            registry.set_gate(arguments.name, arguments.alias, _rules(arguments.set))
        rules = registry.gate(arguments.name, arguments.alias)
    if arguments.json:
        print_json(None if rules is None else rules.model_dump(mode="json"))
    elif rules is None:
        print("no gate")
    else:
        print_fields(rules.model_dump(mode="json"))


def _rules(text: str) -> dict[str, Any]:
    try:
        raw = text if text.lstrip().startswith("{") else Path(text).read_text()
        return json.loads(raw)
    except (OSError, ValueError) as error:
        raise InvalidReferenceError(
            text, f"it is neither JSON nor a file of it ({error})"
        ) from error


def _diff(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        one, other = registry.resolve(arguments.one), registry.resolve(arguments.other)
    changed = differences(one, other)
    if arguments.json:
        print_json(changed)
    else:
        rows = [[key, *values] for key, values in changed.items()]
        print_table(["field", str(one.ref), str(other.ref)], rows)


def _delete(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        version = registry.delete(arguments.ref, reason=arguments.reason)
    _say(arguments, {"deleted": str(version.ref)}, f"{version.ref} is deleted; `restore` undoes it")


def _restore(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        version = registry.restore(arguments.ref)
    _say(arguments, {"restored": str(version.ref)}, f"{version.ref} is back")


def _gc(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        report = registry.collect_garbage(
            grace_s=arguments.grace_hours * 3600,
            keep_last=arguments.keep_last,
            dry_run=arguments.dry_run,
        )
    if arguments.json:
        print_json(report.to_json())
    else:
        print_fields(report.to_json())


def _pin(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        registry.pin(arguments.ref, arguments.label)
    _say(arguments, {"pinned": arguments.ref}, f"{arguments.ref} is pinned")


def _unpin(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        registry.unpin(arguments.ref, arguments.label)
    _say(arguments, {"unpinned": arguments.ref}, f"{arguments.ref} is no longer pinned")


def _leases(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        leases = registry.leases(arguments.name)
    if arguments.json:
        print_json([lease.to_json() for lease in leases])
    else:
        rows = [
            [f"{item.name}/{item.number}", item.replica, item.expires_at[:19]] for item in leases
        ]
        print_table(["version", "replica", "until"], rows)


def _audit(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        if arguments.verify:
            count = registry.verify_audit()
            _say(arguments, {"lines": count, "intact": True}, f"{count} lines, none changed")
            return
        entries = registry.audit(limit=arguments.limit, subject=arguments.subject)
    if arguments.json:
        print_json([entry.to_json() for entry in entries])
    else:
        rows = [[e.at[:19], e.actor, e.action, e.subject, e.detail] for e in entries]
        print_table(["at", "actor", "action", "subject", "detail"], rows)


def _keygen(arguments: argparse.Namespace) -> None:
    from model_registry.signing import create_key

    identity = create_key(arguments.path)
    public = arguments.path.with_suffix(".pub.pem")
    _say(arguments, {"key_id": identity, "public": str(public)}, f"key {identity}; trust {public}")


def _sign(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        signature = registry.sign(arguments.ref, arguments.key)
    _say(arguments, {"key_id": signature.key_id}, f"{arguments.ref} signed by {signature.key_id}")


def _migrate(arguments: argparse.Namespace) -> None:
    from model_registry.index.migrate import migrate
    from model_registry.locations import local_directory

    if local_directory(arguments.registry) is not None:
        raise InvalidReferenceError(arguments.registry, "a plain directory needs no migration")
    migrate(arguments.registry, arguments.to)
    _say(arguments, {"schema": arguments.to}, "the schema is up to date")


def _say(arguments: argparse.Namespace, data: dict[str, Any], text: str) -> None:
    if arguments.json:
        print_json(data)
    else:
        print(text)
