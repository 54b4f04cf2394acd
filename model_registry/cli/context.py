"""What every command is given: the parsed arguments and a way to the registry."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model_registry.registry import ModelRegistry

Command = Callable[[argparse.Namespace], None]
Subparsers = Any
"""argparse has no public name for what `add_subparsers` returns."""


def open_registry(arguments: argparse.Namespace) -> ModelRegistry:
    """The registry named by --registry and --store."""
    cache = Path(arguments.cache_dir) if arguments.cache_dir else None
    keys = Path(arguments.trusted_keys) if arguments.trusted_keys else None
    return ModelRegistry.open(
        arguments.registry,
        arguments.store,
        cache_dir=cache,
        actor=arguments.actor,
        trusted_keys=keys,
    )


def add_command(
    subparsers: Subparsers, name: str, run: Command, summary: str
) -> argparse.ArgumentParser:
    """A subcommand with its function; the summary serves both kinds of help."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser
