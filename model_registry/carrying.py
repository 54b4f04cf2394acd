"""The registry's verbs that carry versions elsewhere: bundles, the Hub, engines' folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry.adapter import AdapterRef, AdapterVersion

if TYPE_CHECKING:
    from model_registry.registry import ModelRegistry


def export_bundle(
    registry: "ModelRegistry", refs: Sequence[str | AdapterRef], file: Path
) -> tuple[AdapterVersion, ...]:
    """Write versions with manifests, aliases and signatures into one file."""
    from model_registry.bundle import bundle_staging, write_bundle

    with bundle_staging() as name:
        versions: list[AdapterVersion] = []
        for ref in refs:
            version = registry.resolve(ref)
            if version not in versions:
                registry.export_directory(version.ref, Path(name) / version.engine_name)
                versions.append(version)
        write_bundle([Path(name) / version.engine_name for version in versions], file)
    return tuple(versions)


def import_bundle(
    registry: "ModelRegistry", file: Path, *, revive: bool = False
) -> tuple[AdapterVersion, ...]:
    """Take over every version of a bundle, with the same digests."""
    from model_registry.bundle import bundle_staging, read_bundle

    with bundle_staging() as name:
        folders = read_bundle(file, Path(name))
        return tuple(registry.import_directory(folder, revive=revive) for folder in folders)


def import_from_hub(
    registry: "ModelRegistry",
    repository: str,
    *,
    revision: str | None = None,
    name: str | None = None,
    token: str | None = None,
    facts: dict[str, Any] | None = None,
) -> AdapterVersion:
    """Take over an adapter repository, pinned to its commit.

    One that we exported brings its manifest and keeps its digest. Any other PEFT adapter needs the
    `facts` that `publish` asks for (base, precision, prompt format) and a name.
    """
    from model_registry.bundle import bundle_staging
    from model_registry.errors import InvalidAdapterError
    from model_registry.hub import download
    from model_registry.portable import RECORD_FILE

    with bundle_staging() as folder:
        commit = download(repository, revision, Path(folder), token=token)
        if (Path(folder) / RECORD_FILE).exists():
            return registry.import_directory(Path(folder), name=name)
        if name is None or facts is None:
            raise InvalidAdapterError(
                "no_record",
                f"{repository} has no manifest of ours; say --name, --base, --precision and "
                "--prompt-format",
            )
        origin = {"source": f"hf:{repository}@{commit}"}
        return registry.publish(name, Path(folder), training=origin, **facts)


def export_to_hub(
    registry: "ModelRegistry",
    ref: str | AdapterRef,
    repository: str,
    *,
    private: bool = True,
    token: str | None = None,
) -> str:
    """Send a version with its model card to the Hub; returns the commit."""
    from huggingface_hub import HfApi

    from model_registry.bundle import bundle_staging
    from model_registry.hub import upload

    with bundle_staging() as name:
        folder = Path(name) / "adapter"
        version = registry.export_directory(ref, folder)
        return upload(folder, version, repository, api=HfApi(token=token), private=private)


def materialize_versions(
    registry: "ModelRegistry",
    refs: Sequence[str | AdapterRef],
    destination: Path,
    *,
    base_model_name: str | None = None,
    prune_others: bool = False,
) -> dict[str, Path]:
    """Write versions into the folder that vLLM's resolver reads; engine name to directory."""
    from model_registry.materialize import materialize, prune

    written: dict[str, Path] = {}
    for ref in refs:
        version = registry.resolve(ref)
        files = registry.fetch(version)
        written[version.engine_name] = materialize(version, files, destination, base_model_name)
    if prune_others:
        prune(destination, set(written))
    return written
