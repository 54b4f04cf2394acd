"""The command line: `python -m training CONFIG.yaml`, and the verbs around it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mcq.errors import McqError

_EPILOG = """\
verbs:
  python -m training CONFIG.yaml             data → model → fit → evaluate → register
  python -m training data CONFIG.yaml        what the data is and what was dropped; trains nothing
  python -m training plan CONFIG.yaml        does it fit into memory, and what to change if not
  python -m training evaluate …              judge adapters by the questions they write
  python -m training sample ADAPTER FILE …   many judged candidates for each passage
  python -m training select FILE …           preference pairs out of them
  python -m training contrast ADAPTER FILE … preference pairs that differ in their wrong options
  python -m training register RUN            register a run that was made elsewhere
  python -m training push RUN ORG/NAME       send an adapter to the Hub, with a model card

Each verb has its own --help. On several GPUs: accelerate launch -m training CONFIG.yaml
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors are one line, and the exit status is not 0."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    verbs = _verbs()
    verb = given.pop(0) if given and given[0] in verbs else "run"
    try:
        return verbs[verb](given)
    except McqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; go on with --resume", file=sys.stderr)
        return 130


def _verbs() -> dict[str, Callable[[list[str]], int]]:
    # imported when called: `--help` must not wait for torch
    from training import commands

    return {
        "run": _run,
        "data": commands.data,
        "plan": commands.plan,
        "evaluate": commands.evaluate,
        "sample": commands.sample,
        "select": commands.select,
        "contrast": commands.contrast,
        "register": commands.register,
        "push": commands.push,
    }


def _run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Fine-tune an adapter on multiple-choice questions, judge it and register it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path, help="a YAML file; see training/configs/")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--show-batch", action="store_true", help="print the first batch; what is masked is grey"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)

    from training.config import load_config
    from training.run import train

    config = load_config(options.config, tuple(options.set))
    train(config, resume=options.resume, show_batch=options.show_batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
