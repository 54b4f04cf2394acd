"""The command `mcq-client`: questions from a file or a pipe, and what can be asked for.

Exit status: 0 done, 1 the service could not do it, 2 the command or its input is wrong.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from mcq_client.client import McqClient
    from mcq_client.types import GenerateOptions, Generation, Question

DEFAULT_URL = "http://localhost:8000"
_OPTIONS = ("n", "adapter", "variant", "language", "temperature", "top_p", "seed", "quality")


class _InputError(Exception):
    """The command's input cannot be used; the message is one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args(arguments)

    from mcq_client.client import McqClient
    from mcq_client.errors import McqClientError

    try:
        with McqClient(options.url, timeout=options.timeout) as client:
            return _COMMANDS[options.command](client, options)
    except _InputError as error:
        return _fail(str(error), 2)
    except McqClientError as error:
        return _fail(str(error), 1)
    except BrokenPipeError:
        # The reader of our output went away; a second complaint at exit helps nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _fail(message: str, status: int) -> int:
    print(f"mcq-client: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mcq-client", description="Multiple-choice questions from a paragraph."
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("TRACNGHIEM_URL", DEFAULT_URL),
        help=f"address of the service (TRACNGHIEM_URL, else {DEFAULT_URL})",
    )
    parser.add_argument(
        "--timeout", type=float, default=300.0, help="seconds without a sign of life (%(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="write questions about a paragraph")
    generate.add_argument("file", metavar="FILE", help="a UTF-8 text file, or - for the input")
    generate.add_argument("--n", type=int, help="how many questions (1)")
    generate.add_argument("--adapter", help="name, name/3, name@alias or base")
    generate.add_argument("--variant", choices=["adapter", "merged"])
    generate.add_argument("--language", choices=["auto", "vi", "en"])
    generate.add_argument("--temperature", type=float)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--seed", type=int)
    generate.add_argument("--quality", choices=["fast", "balanced", "best"])
    generate.add_argument(
        "--avoid", action="append", metavar="STEM", help="a question that is there already"
    )
    generate.add_argument("--stream", action="store_true", help="print each as it is ready")
    generate.add_argument(
        "--json", action="store_true", help="print JSON; with --stream, a question a line"
    )

    adapters = commands.add_parser("adapters", help="list what can be asked for")
    adapters.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _generate(client: "McqClient", options: argparse.Namespace) -> int:
    context = _read(options.file)
    asked = {name: getattr(options, name) for name in _OPTIONS}
    request = cast(
        "GenerateOptions", {name: value for name, value in asked.items() if value is not None}
    )
    if options.avoid:
        request["avoid"] = options.avoid
    if options.stream:
        with client.stream(context, **request) as stream:
            for number, question in enumerate(stream, start=1):
                text = question.model_dump_json() if options.json else _shown(question, number)
                print(text, flush=True)
        generation = stream.generation
        assert generation is not None, "a stream that ended early has raised"
    else:
        generation = client.generate(context, **request)
        if options.json:
            print(generation.model_dump_json(indent=2))
        else:
            for number, question in enumerate(generation.questions, start=1):
                print(_shown(question, number))
    return _report_shortfall(generation)


def _report_shortfall(generation: "Generation") -> int:
    if generation.shortfall:
        reasons = generation.shortfall_reasons.items()
        why = ", ".join(f"{name} {count}" for name, count in reasons)
        lacking = f"{generation.shortfall} question(s) could not be made"
        _fail(f"{lacking} ({why})" if why else lacking, 1)
    return 0 if generation.questions else 1


def _adapters(client: "McqClient", options: argparse.Namespace) -> int:
    listing = client.adapters()
    if options.json:
        print(listing.model_dump_json(indent=2))
        return 0
    print(f"base model: {listing.base_model.get('name', 'unknown')}")
    default = re.split("[/@]", listing.default or "")[0]
    for adapter in listing.adapters:
        mark = " (default)" if adapter.name == default else ""
        print(f"{adapter.name}{mark}  {adapter.description}".rstrip())
        for version in adapter.versions:
            names = [f"@{alias}" for alias, n in adapter.aliases.items() if n == version.version]
            state = "servable" if version.servable else f"not servable: {version.reason}"
            print(f"  {adapter.name}/{version.version}  {' '.join([*names, state])}")
    return 0


def _read(file: str) -> str:
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise _InputError(f"Cannot read {file}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _InputError(f"{file} is not UTF-8 text (byte {error.start})") from error


def _shown(question: "Question", number: int) -> str:
    lines = [f"{number}. {question.question}"]
    for letter, text in question.options.items():
        lines.append(f" {'*' if letter == question.key else ' '} {letter}. {text}")
    if question.evidence is not None:
        lines.append(f"   “{' '.join(question.evidence.text.split())}”")
    if question.flaws:
        lines.append(f"   ! {', '.join(flaw.name for flaw in question.flaws)}")
    return "\n".join([*lines, ""])


_COMMANDS = {"generate": _generate, "adapters": _adapters}

if __name__ == "__main__":
    sys.exit(main())
