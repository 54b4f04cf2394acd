"""import, export, materialize: versions from and to elsewhere."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from model_registry.adapter import AdapterVersion
from model_registry.cli.context import Subparsers, add_command, open_registry
from model_registry.cli.output import print_json, print_table
from model_registry.errors import InvalidReferenceError, VersionDeletedError

_HUB = "hf:"


def add_commands(subparsers: Subparsers) -> None:
    """Register the commands of this module."""
    take = add_command(subparsers, "import", _import, "take over versions, with their digests")
    take.add_argument("source", help="exported directory, bundle.tar, or hf:ORG/NAME[@REVISION]")
    take.add_argument("--name", help="under another name")
    take.add_argument("--alias", help="point this alias at it")
    take.add_argument("--revive", action="store_true", help="bring equal deleted content back")
    take.add_argument(
        "--unless-deleted", action="store_true", help="leave it alone if it was deleted here"
    )
    foreign = take.add_argument_group("for a Hub adapter without a manifest of ours")
    foreign.add_argument("--base", help="source of its base model")
    foreign.add_argument("--precision", choices=["bf16", "fp16", "fp32", "nf4"])
    foreign.add_argument("--prompt-format")

    give = add_command(subparsers, "export", _export, "write versions as files")
    give.add_argument("ref", nargs="+")
    give.add_argument("target", help="new directory (one version), bundle.tar, or hf:ORG/NAME")
    give.add_argument("--public", action="store_true", help="make a new Hub repository public")

    material = add_command(subparsers, "materialize", _materialize, "write the folder vLLM reads")
    material.add_argument("ref", nargs="*", help="default: every version that an alias points at")
    material.add_argument("--dest", type=Path, required=True)
    material.add_argument("--layout", choices=["vllm"], default="vllm")
    material.add_argument("--base-name", help="vLLM's name of the base, letter by letter")
    material.add_argument("--prune", action="store_true", help="remove other versions from there")


def _import(arguments: argparse.Namespace) -> None:
    try:
        versions = _imported(arguments)
    except VersionDeletedError as error:
        if not arguments.unless_deleted:
            raise
        print(f"{error.version} was deleted and stays so", file=sys.stderr)
        versions = ()
    _print(arguments, versions)


def _imported(arguments: argparse.Namespace) -> tuple[AdapterVersion, ...]:
    from model_registry.carrying import import_bundle, import_from_hub

    source: str = arguments.source
    with open_registry(arguments) as registry:
        if source.startswith(_HUB):
            repository, _, revision = source.removeprefix(_HUB).partition("@")
            versions = (
                import_from_hub(
                    registry,
                    repository,
                    revision=revision or None,
                    name=arguments.name,
                    token=os.environ.get("HF_TOKEN"),
                    facts=_facts(arguments),
                ),
            )
        elif Path(source).is_file():
            if arguments.name:
                raise InvalidReferenceError(source, "the versions of a bundle keep their names")
            versions = import_bundle(registry, Path(source), revive=arguments.revive)
        else:
            versions = (
                registry.import_directory(source, name=arguments.name, revive=arguments.revive),
            )
        for version in versions if arguments.alias else ():
            registry.set_alias(version.name, arguments.alias, version.number, reason="import")
    return versions


def _facts(arguments: argparse.Namespace) -> dict[str, Any] | None:
    if not (arguments.base and arguments.precision and arguments.prompt_format):
        return None
    from model_registry.bases import prepare_base

    base = prepare_base(arguments.base)
    return {
        "base": base.fingerprint,
        "base_directory": base.path,
        "precision": arguments.precision,
        "prompt_format": arguments.prompt_format,
    }


def _export(arguments: argparse.Namespace) -> None:
    from model_registry.carrying import export_bundle, export_to_hub

    refs: list[str] = arguments.ref
    target: str = arguments.target
    with open_registry(arguments) as registry:
        if target.endswith(".tar"):
            versions = export_bundle(registry, refs, Path(target))
        elif len(refs) > 1:
            raise InvalidReferenceError(target, "several versions go into one file, NAME.tar")
        elif target.startswith(_HUB):
            repository = target.removeprefix(_HUB)
            token = os.environ.get("HF_TOKEN")
            private = not arguments.public
            commit = export_to_hub(registry, refs[0], repository, private=private, token=token)
            versions = (registry.resolve(refs[0]),)
            if not arguments.json:
                print(f"{target}@{commit}")
        else:
            versions = (registry.export_directory(refs[0], target),)
    _print(arguments, versions)


def _materialize(arguments: argparse.Namespace) -> None:
    from model_registry.carrying import materialize_versions

    with open_registry(arguments) as registry:
        refs: list[str] = arguments.ref or [
            f"{summary.name}/{number}"
            for summary in registry.list_adapters()
            for number in sorted(set(summary.aliases.values()))
        ]
        written = materialize_versions(
            registry,
            refs,
            arguments.dest,
            base_model_name=arguments.base_name,
            prune_others=arguments.prune,
        )
    if arguments.json:
        print_json({name: str(path) for name, path in written.items()})
    else:
        print_table(["engine name", "directory"], [[n, str(p)] for n, p in written.items()])


def _print(arguments: argparse.Namespace, versions: tuple[AdapterVersion, ...]) -> None:
    if arguments.json:
        print_json([version.to_json() for version in versions])
    else:
        for version in versions:
            print(f"{version.ref}  {version.digest}")
