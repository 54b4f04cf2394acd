"""`python -m model_registry`: publish, look at, move, check and carry adapters."""

import argparse
import os
import sys
from collections.abc import Sequence

from mcq.errors import McqError
from model_registry.cli import aliases, carry, merged, upkeep, versions

_DEFAULT_REGISTRY = "var/registry"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line on stderr and exit status 1."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except McqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of a pipe left; close quietly, and keep the interpreter from flushing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_registry", description=__doc__)
    parser.add_argument(
        "--registry",
        default=os.environ.get("MCQ_REGISTRY") or _DEFAULT_REGISTRY,
        metavar="URL",
        help="a directory, or postgresql://… (MCQ_REGISTRY; default: %(default)s)",
    )
    parser.add_argument(
        "--store",
        default=os.environ.get("MCQ_REGISTRY_STORE") or None,
        metavar="URL",
        help="files of a registry with a database: s3://bucket/prefix (MCQ_REGISTRY_STORE)",
    )
    parser.add_argument(
        "--trusted-keys",
        default=os.environ.get("MCQ_REGISTRY_TRUSTED_KEYS") or None,
        metavar="PATH",
        help="take only versions signed by these keys: a PEM file or a folder of them",
    )
    parser.add_argument("--cache-dir", metavar="DIR", help="where fetched files go")
    parser.add_argument("--actor", metavar="NAME", help="who writes, for history and audit log")
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    versions.add_commands(subparsers)
    aliases.add_commands(subparsers)
    upkeep.add_commands(subparsers)
    merged.add_commands(subparsers)
    carry.add_commands(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
