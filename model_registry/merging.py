"""From a version and its base to a stored variant; the arithmetic is in merge.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry.adapter import AdapterVersion
from model_registry.errors import MergeError
from model_registry.fetch import fetch_files
from model_registry.staging import hash_files, staging_directory
from model_registry.variant_store import put_variant
from model_registry.variants import MergeDtype, MergedVariant, Onto, VariantManifest

if TYPE_CHECKING:
    from model_registry.merge import Progress
    from model_registry.variant_verbs import VariantVerbs


def merge_version(
    registry: "VariantVerbs",
    version: AdapterVersion,
    base_directory: Path,
    dtype: MergeDtype,
    onto: Onto | None,
    fidelity: Mapping[str, Any] | None,
    progress: "Progress | None",
) -> MergedVariant:
    """Check that the base is the right one, merge in a staging folder, store."""
    from model_registry.bases import fingerprint_of
    from model_registry.merge import merge_adapter

    version.check_base(fingerprint_of(base_directory))
    trained_on_nf4 = version.manifest.precision == "nf4"
    onto = onto or ("dequantized" if trained_on_nf4 else "original")
    if onto == "dequantized" and not trained_on_nf4:
        raise MergeError(
            "wrong_base", f"{version.ref} was trained on 16-bit weights; merge it onto the original"
        )
    with staging_directory(registry.cache / "staging") as staging:
        output = staging / "merged"
        output.mkdir()
        result = merge_adapter(
            base_directory,
            fetch_files(
                registry.blobs,
                registry.cache,
                version.digest,
                str(version.ref),
                version.manifest.files,
            ),
            output,
            dtype=dtype,
            onto=onto,
            quantization=version.manifest.quantization,
            progress=progress,
        )
        manifest = VariantManifest(
            version=version.digest,
            base=version.manifest.base,
            onto=onto,
            dtype=dtype,
            files=hash_files(output),
            merged_modules=result.modules,
            relative_change=result.relative_change,
            made_with=result.made_with,
            fidelity=None if fidelity is None else dict(fidelity),
        )
        return put_variant(
            registry.database, registry.blobs, version, manifest, output, registry.actor
        )
