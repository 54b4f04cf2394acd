"""merge, variants."""

import argparse
import sys
from typing import TYPE_CHECKING

from model_registry.cli.context import Subparsers, add_command, open_registry
from model_registry.cli.output import print_json, print_table

if TYPE_CHECKING:
    from model_registry.variants import MergedVariant


def add_commands(subparsers: Subparsers) -> None:
    """Register the commands of this module."""
    merge = add_command(subparsers, "merge", _merge, "add an adapter into the weights of its base")
    merge.add_argument("ref", help="name/3, name@alias")
    merge.add_argument("--base", required=True, help="source of the base it was trained on")
    merge.add_argument("--dtype", choices=["fp16", "bf16"], default="fp16")
    merge.add_argument(
        "--onto",
        choices=["original", "dequantized"],
        help="default: the weights the adapter was trained on",
    )

    listing = add_command(subparsers, "variants", _list, "list the merged variants of a version")
    listing.add_argument("ref")


def _merge(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from model_registry.bases import prepare_base

    base = prepare_base(arguments.base)
    bar = tqdm(
        unit="B", unit_scale=True, desc="merging", disable=not sys.stderr.isatty(), file=sys.stderr
    )

    def progress(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with open_registry(arguments) as registry, bar:
        variant = registry.merge(
            arguments.ref,
            base.path,
            dtype=arguments.dtype,
            onto=arguments.onto,
            progress=progress,
        )
    _print(arguments, [variant])


def _list(arguments: argparse.Namespace) -> None:
    with open_registry(arguments) as registry:
        variants = registry.variants(arguments.ref)
    _print(arguments, list(variants))


def _print(arguments: argparse.Namespace, variants: "list[MergedVariant]") -> None:
    if arguments.json:
        print_json([variant.to_json() for variant in variants])
        return
    rows = [
        [
            str(variant.ref),
            variant.kind,
            f"{sum(entry.size for entry in variant.manifest.files.values()) / 1e6:.0f} MB",
            f"{variant.manifest.relative_change:.2%}",
            variant.manifest.fidelity,
            variant.digest[7:19],
        ]
        for variant in variants
    ]
    print_table(["version", "kind", "size", "change", "fidelity", "digest"], rows)
