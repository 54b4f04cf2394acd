"""The verbs besides training itself: data, plan, evaluate, sample, select, contrast, register, …"""

import argparse
from pathlib import Path


def data(arguments: list[str]) -> int:
    """Show what the data is and what was dropped."""
    parser = argparse.ArgumentParser(
        prog="python -m training data",
        description="Clean the data, report what was dropped and why, and measure it; no training.",
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)

    from training.config import load_config
    from training.statistics import describe

    print(describe(load_config(options.config, tuple(options.set))))
    return 0


def plan(arguments: list[str]) -> int:
    """Predict the peak memory of a run."""
    parser = argparse.ArgumentParser(
        prog="python -m training plan",
        description="Predict a run's peak GPU memory, and what to change if it is too much.",
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--vram", default="", metavar="16GiB", help="default: this machine's GPU")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    options = parser.parse_args(arguments)

    from training.config import load_config
    from training.memory import describe_plan

    text, fits = describe_plan(load_config(options.config, tuple(options.set)), options.vram)
    print(text)
    return 0 if fits else 1


def evaluate(arguments: list[str]) -> int:
    """Judge adapters and the bare base side by side."""
    parser = argparse.ArgumentParser(
        prog="python -m training evaluate",
        description="Write questions about held-out passages with adapters, judge "
        "them, and report as JSON, Markdown and HTML.",
    )
    parser.add_argument("adapter", help="NAME, NAME/3, NAME@alias, a run folder, or `base`")
    parser.add_argument("--against", action="append", default=[], metavar="ADAPTER")
    parser.add_argument("--base", default="embedded:qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--registry", default="var/registry")
    parser.add_argument("--contexts", default="benchmarks/data/held_out.jsonl")
    parser.add_argument("--use", default="evaluation", help="passages of the file with this `use`")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prompt-format", default="chat/1", help="of the bare base")
    parser.add_argument("--unconstrained-only", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/evaluation"))
    options = parser.parse_args(arguments)

    from training.compare import compare

    print(compare(options))
    return 0


def _add_drawing(parser: argparse.ArgumentParser, n: int) -> None:
    """Who writes, how, and where to; `n` is how often for each passage or question."""
    parser.add_argument("adapter", help="NAME, NAME/3, NAME@alias, or a run or adapter folder")
    parser.add_argument("output", type=Path, help="a .jsonl file")
    parser.add_argument("--n", type=int, default=n, help="draws for each one")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", default="embedded:qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--registry", default="var/registry")
    parser.add_argument("--batch-size", type=int, default=8, help="completions at once")


def sample(arguments: list[str]) -> int:
    """Draw many candidates for each passage and judge them."""
    parser = argparse.ArgumentParser(
        prog="python -m training sample",
        description="Draw several questions for each passage with an adapter, judge them by rules "
        "and by the bare base, and write them as JSON Lines; goes on where it was stopped.",
    )
    _add_drawing(parser, n=8)
    parser.add_argument("--contexts", nargs="+", required=True, help="files with a column context")
    parser.add_argument("--use", default=None, help="passages of the files with this `use`")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--reader-tokens", type=int, default=4096, help="in a batch of the reader")
    parser.add_argument("--rotations", type=int, choices=(1, 2, 4), default=4, help="of the reader")
    options = parser.parse_args(arguments)

    from training.compare import sample as draw

    print(f"{draw(options)} candidates written to {options.output}")
    return 0


def select(arguments: list[str]) -> int:
    """Make preference pairs from candidates."""
    parser = argparse.ArgumentParser(
        prog="python -m training select",
        description="Pair the best candidates of each passage with bad ones, for preference "
        "tuning; writes pairs.jsonl beside the candidates.",
    )
    parser.add_argument("candidates", type=Path)
    parser.add_argument("--prompt-format", required=True, help="the one they were written in")
    parser.add_argument("--source", default="self-generated", help="whose passages these are")
    parser.add_argument("--licence", default="", help="of the passages")
    options = parser.parse_args(arguments)

    import json

    from training.sampling import select as choose

    found = choose(
        options.candidates,
        prompt_format=options.prompt_format,
        source=options.source,
        licence=options.licence,
    )
    print(json.dumps(found, ensure_ascii=False, indent=1))
    return 0


def contrast(arguments: list[str]) -> int:
    """Make preference pairs that differ in their wrong options alone."""
    parser = argparse.ArgumentParser(
        prog="python -m training contrast",
        description="Let an adapter write wrong options to authors' stems and right options, and "
        "set them against the authors' own, for preference tuning.",
    )
    _add_drawing(parser, n=2)
    parser.add_argument("--data", nargs="+", required=True, help="files of questions")
    parser.add_argument("--questions", choices=("all", "recall"), default="all")
    options = parser.parse_args(arguments)

    from training.compare import contrast as draw

    for reason, count in draw(options).items():
        print(f"{count} pairs rejected for {reason}")
    print(f"Written to {options.output}")
    return 0


def register(arguments: list[str]) -> int:
    """Register a run that was made elsewhere."""
    parser = argparse.ArgumentParser(
        prog="python -m training register",
        description="Publish the adapter of a finished run, with its record and evaluation.",
    )
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--registry", default="var/registry")
    parser.add_argument("--name", default=None)
    options = parser.parse_args(arguments)

    from training.register import register as publish

    version = publish(options.run, options.registry, name=options.name)
    print(f"{version.name}/{version.number} {version.digest}")
    return 0


def push(arguments: list[str]) -> int:
    """Send an adapter and its model card to the Hub."""
    parser = argparse.ArgumentParser(
        prog="python -m training push",
        description="Upload a run's adapter with a model card; needs a Hub login.",
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("repository", metavar="ORG/NAME")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="write the card, upload nothing")
    options = parser.parse_args(arguments)

    from training.hub import push as upload

    print(upload(options.run, options.repository, private=options.private, dry=options.dry_run))
    return 0
