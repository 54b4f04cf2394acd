"""alias list, set, remove, history, rollback."""

import argparse
from typing import TYPE_CHECKING

from model_registry.adapter import AdapterRef
from model_registry.cli.context import Subparsers, add_command, open_registry
from model_registry.cli.output import print_json, print_table

if TYPE_CHECKING:
    from model_registry.aliases import AliasState


def add_commands(subparsers: Subparsers) -> None:
    """Register the commands of this module."""
    summary = "move names such as `production` between versions"
    group = subparsers.add_parser("alias", help=summary, description=summary)
    verbs = group.add_subparsers(title="verbs", required=True, metavar="VERB")

    listing = add_command(verbs, "list", _list, "the aliases of an adapter")
    listing.add_argument("name")

    move = add_command(verbs, "set", _set, "point an alias at a version")
    move.add_argument("name")
    move.add_argument("alias")
    move.add_argument("version", help="a number, or another reference such as name@canary")
    _add_expectations(move)

    remove = add_command(verbs, "remove", _remove, "unset an alias; its history stays")
    remove.add_argument("name")
    remove.add_argument("alias")
    _add_expectations(remove)

    history = add_command(verbs, "history", _history, "all moves of an alias, newest first")
    history.add_argument("name")
    history.add_argument("alias")

    back = add_command(verbs, "rollback", _rollback, "back to the version before")
    back.add_argument("name")
    back.add_argument("alias")
    back.add_argument("--reason", default="")


def _add_expectations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--expected", type=int, help="only if it points at this number; 0: unset")
    parser.add_argument("--expected-revision", type=int, help="only if it was moved so many times")
    parser.add_argument("--reason", default="")


def _list(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        registry.list_versions(arguments.name)
        aliases = registry.aliases(arguments.name)
    if arguments.json:
        print_json(aliases)
    else:
        print_table(["alias", "version"], sorted(aliases.items()))


def _set(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        text: str = arguments.version
        number = int(text) if text.isdecimal() else registry.resolve(AdapterRef.parse(text)).number
        state = registry.set_alias(
            arguments.name,
            arguments.alias,
            number,
            expected=arguments.expected,
            expected_revision=arguments.expected_revision,
            reason=arguments.reason,
        )
    _print_state(arguments, state)


def _remove(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        state = registry.remove_alias(
            arguments.name,
            arguments.alias,
            expected=arguments.expected,
            expected_revision=arguments.expected_revision,
            reason=arguments.reason,
        )
    _print_state(arguments, state)


def _history(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        events = registry.alias_history(arguments.name, arguments.alias)
    if arguments.json:
        print_json([event.to_json() for event in events])
        return
    rows = [
        [e.revision, e.from_number, e.to_number, e.kind, e.at[:19], e.actor, e.reason]
        for e in events
    ]
    print_table(["revision", "from", "to", "kind", "at", "actor", "reason"], rows)


def _rollback(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        state = registry.rollback_alias(arguments.name, arguments.alias, reason=arguments.reason)
    _print_state(arguments, state)


def _print_state(arguments: argparse.Namespace, state: "AliasState") -> None:
    if arguments.json:
        print_json(state.to_json())
    else:
        target = "nothing" if state.number is None else f"version {state.number}"
        print(f"{state.name}@{state.alias} → {target} (revision {state.revision})")
