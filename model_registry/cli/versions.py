"""push, list, show, verify."""

import argparse
import json
from pathlib import Path
from typing import Any

from model_registry.adapter import AdapterVersion
from model_registry.cli.context import Subparsers, add_command, open_registry
from model_registry.cli.output import print_fields, print_json, print_table
from model_registry.errors import InvalidAdapterError
from model_registry.fingerprint import BaseFingerprint
from model_registry.json_values import as_object


def add_commands(subparsers: Subparsers) -> None:
    """Register the commands of this module."""
    push = add_command(subparsers, "push", _push, "publish an adapter directory as a version")
    push.add_argument("name")
    push.add_argument("directory", type=Path, help="adapter_model.safetensors, adapter_config.json")
    push.add_argument("--prompt-format", required=True, help="for example chat/1")
    push.add_argument("--precision", required=True, choices=["bf16", "fp16", "fp32", "nf4"])
    push.add_argument("--base", help="source of the base model: checks every tensor against it")
    push.add_argument("--fingerprint", type=Path, help="instead of --base: its fingerprint, JSON")
    push.add_argument("--quantization", type=Path, help="quantisation in training, JSON file")
    push.add_argument("--training", type=Path, help="training record, JSON file")
    push.add_argument("--evaluation", type=Path, help="evaluation record, JSON file")
    push.add_argument("--data-statement", type=Path, help="text file")
    push.add_argument("--language", action="append", default=[], help="vi, en; may be repeated")
    push.add_argument("--description", default="")
    push.add_argument("--probe", action="store_true", help="load both and see the logits change")
    push.add_argument("--alias", help="point this alias at the new version")
    push.add_argument("--revive", action="store_true", help="bring equal deleted content back")

    listing = add_command(subparsers, "list", _list, "list adapters, or the versions of one")
    listing.add_argument("name", nargs="?")
    listing.add_argument("--limit", type=int)
    listing.add_argument("--after", default="", help="continue after this name")

    show = add_command(subparsers, "show", _show, "show everything about a version")
    show.add_argument("ref", help="name, name/3, name@alias, models:/…, sha256:…")

    verify = add_command(subparsers, "verify", _verify, "read all bytes of a version and compare")
    verify.add_argument("ref", nargs="*", help="all versions if absent")


def _push(arguments: argparse.Namespace) -> None:
    fingerprint, base_directory = _base(arguments)
    change = _probe(arguments, base_directory) if arguments.probe else None
    with open_registry(arguments) as registry:
        version = registry.publish(
            arguments.name,
            arguments.directory,
            prompt_format=arguments.prompt_format,
            base=fingerprint,
            precision=arguments.precision,
            quantization=_read_object(arguments.quantization),
            languages=tuple(arguments.language),
            training=_read_object(arguments.training),
            evaluation=_read_object(arguments.evaluation),
            data_statement=_read_text(arguments.data_statement),
            description=arguments.description,
            base_directory=base_directory,
            probe_logit_change=change,
            revive=arguments.revive,
        )
        if arguments.alias:
            registry.set_alias(version.name, arguments.alias, version.number, reason="push")
    _print_version(arguments, version)


def _list(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        if arguments.name:
            versions = registry.list_versions(arguments.name)
            aliases = registry.aliases(arguments.name)
        else:
            summaries = registry.list_adapters(limit=arguments.limit, after=arguments.after)
            if arguments.json:
                print_json([summary.to_json() for summary in summaries])
            else:
                rows = [[s.name, s.latest, s.versions, _labels(s.aliases)] for s in summaries]
                print_table(["name", "latest", "versions", "aliases"], rows)
            return
    if arguments.json:
        print_json([version.to_json() for version in versions])
        return
    rows = [
        [
            version.number,
            version.status,
            ", ".join(sorted(a for a, number in aliases.items() if number == version.number)),
            version.manifest.prompt_format,
            version.manifest.precision,
            version.created_at[:19],
            version.digest[7:19],
        ]
        for version in versions
    ]
    print_table(["version", "status", "aliases", "format", "precision", "created", "digest"], rows)


def _show(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        version = registry.resolve(arguments.ref)
        aliases = registry.aliases(version.name)
    if arguments.json:
        print_json({**version.to_json(), "aliases": aliases})
        return
    fields = version.to_json()
    manifest = fields.pop("manifest")
    print_fields({**fields, "aliases": _labels(aliases), **manifest})


def _verify(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        refs: list[str] = arguments.ref or [
            str(version.ref)
            for summary in registry.list_adapters()
            for version in registry.list_versions(summary.name)
            if version.status == "ready"
        ]
        verified = [registry.verify(ref) for ref in refs]
    if arguments.json:
        print_json([{"ref": str(v.ref), "digest": v.digest, "intact": True} for v in verified])
    else:
        print_table(
            ["version", "digest", "state"], [[str(v.ref), v.digest, "ok"] for v in verified]
        )


def _base(arguments: argparse.Namespace) -> tuple[BaseFingerprint, Path | None]:
    if arguments.fingerprint:
        data = _read_object(arguments.fingerprint)
        try:
            return BaseFingerprint.model_validate(data), None
        except ValueError as error:
            raise InvalidAdapterError("bad_record", f"{arguments.fingerprint}: {error}") from error
    if not arguments.base:
        raise InvalidAdapterError("no_base", "say for which base model: --base SOURCE")
    from model_registry.bases import prepare_base

    base = prepare_base(arguments.base)
    return base.fingerprint, base.path


def _probe(arguments: argparse.Namespace, base_directory: Path | None) -> float:
    if base_directory is None:
        raise InvalidAdapterError("no_base", "a probe loads the base: give --base SOURCE")
    from model_registry.probe import probe_logit_change

    return probe_logit_change(base_directory, arguments.directory)


def _read_object(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        value: object = json.loads(path.read_text())
    except OSError as error:
        raise InvalidAdapterError("missing_file", f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidAdapterError("bad_record", f"{path} is not JSON: {error}") from error
    record = as_object(value)
    if record is None:
        raise InvalidAdapterError("bad_record", f"{path} is not a JSON object")
    return record


def _read_text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text()
    except (OSError, ValueError) as error:
        raise InvalidAdapterError("missing_file", f"{path}: {error}") from error


def _print_version(arguments: argparse.Namespace, version: AdapterVersion) -> None:
    if arguments.json:
        print_json(version.to_json())
    else:
        print(f"{version.ref}  {version.digest}")


def _labels(aliases: dict[str, int]) -> str:
    return ", ".join(f"{alias} → {number}" for alias, number in sorted(aliases.items()))
