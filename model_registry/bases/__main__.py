"""`python -m model_registry.bases`: prepare a base model, list the embedded ones, fingerprint."""

import argparse
import sys
from pathlib import Path

from mcq.errors import McqError
from model_registry.bases.cache import default_cache_dir
from model_registry.bases.catalog import EMBEDDED_MODELS
from model_registry.bases.prepare import embedded_path, prepare_base


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except McqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was downloaded is kept, run the command again", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model_registry.bases", description=__doc__)
    parser.add_argument(
        "--cache-dir", type=Path, default=None, help="instead of MCQ_CACHE_DIR or ~/.cache"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    source = "embedded:NAME, hf:ORG/NAME[@revision], a directory or a .gguf file"

    prepare = commands.add_parser("prepare", help="download and convert; prints the directory")
    prepare.add_argument("source", help=source)
    prepare.add_argument("--quiet", action="store_true", help="no progress bars")
    prepare.set_defaults(run=_prepare)

    listing = commands.add_parser("list", help="the embedded models, and which are on this disk")
    listing.set_defaults(run=_list)

    fingerprint = commands.add_parser("fingerprint", help="prepare, then print the fingerprint")
    fingerprint.add_argument("source", help=source)
    fingerprint.set_defaults(run=_fingerprint)
    return parser


def _prepare(options: argparse.Namespace) -> int:
    base = prepare_base(options.source, options.cache_dir, progress=not options.quiet)
    print(base.path)
    return 0


def _list(options: argparse.Namespace) -> int:
    cache_dir = options.cache_dir or default_cache_dir()
    for model in EMBEDDED_MODELS.values():
        state = "ready" if embedded_path(model, cache_dir).is_dir() else "not downloaded"
        print(f"embedded:{model.name}  {model.size / 1e6:,.0f} MB  {state}  {model.description}")
    return 0


def _fingerprint(options: argparse.Namespace) -> int:
    print(prepare_base(options.source, options.cache_dir).fingerprint.model_dump_json(indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
