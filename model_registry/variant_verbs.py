"""The registry's verbs for merged variants."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry.adapter import AdapterRef
from model_registry.errors import SignatureError
from model_registry.parts import RegistryParts

if TYPE_CHECKING:
    from model_registry.variants import MergeDtype, MergedVariant, Onto


class VariantVerbs(RegistryParts):
    """Mixed into ModelRegistry."""

    def merge(
        self,
        ref: str | AdapterRef,
        base_directory: str | Path,
        *,
        dtype: "MergeDtype" = "fp16",
        onto: "Onto | None" = None,
        fidelity: Mapping[str, Any] | None = None,
        progress: "Callable[[int, int], None] | None" = None,
    ) -> "MergedVariant":
        """Add a version's adapter into its base and store the result as a variant of the version.

        `onto` is by default where the adapter was trained: the dequantised weights for NF4.

        Raises:
            BaseMismatchError: The directory holds another base.
            MergeError: The merge would not give what it promises.
        """
        from model_registry.merging import merge_version

        return merge_version(
            self, self.resolve(ref), Path(base_directory), dtype, onto, fidelity, progress
        )

    def record_fidelity(
        self, ref: str | AdapterRef, kind: str, fidelity: Mapping[str, Any], *, actor: str = ""
    ) -> "MergedVariant":
        """Add what was measured about a variant to its manifest, which gives it a new digest."""
        from model_registry.variant_store import put_variant

        version = self.resolve(ref)
        manifest = self.variant(version.ref, kind).manifest
        changed = type(manifest).model_validate(
            {**manifest.model_dump(mode="json"), "fidelity": dict(fidelity)}
        )
        return put_variant(self.database, self.blobs, version, changed, None, actor or self.actor)

    def variants(self, ref: str | AdapterRef) -> "tuple[MergedVariant, ...]":
        """All merged variants of a version."""
        from model_registry.variant_store import list_variants

        version = self.resolve(ref)
        with self.database.read() as connection:
            return list_variants(connection, version)

    def variant(self, ref: str | AdapterRef, kind: str | None = None) -> "MergedVariant":
        """The variant of a kind (`original-fp16`, …), or the most faithful one there is.

        Raises:
            VariantNotFoundError: There is none.
        """
        from model_registry.variant_store import find_variant

        version = self.resolve(ref)
        with self.database.read() as connection:
            return find_variant(connection, version, kind)

    def fetch_variant(self, variant: "MergedVariant") -> Path:
        """A local directory that transformers and vLLM load, every byte checked.

        Raises:
            SignatureError: Keys are trusted.
        """
        from model_registry.fetch import fetch_files

        label = f"{variant.ref} {variant.kind}"
        if self.trusted is not None:
            # A signature covers the adapter; nobody has vouched for these bytes.
            raise SignatureError(label, "merged weights are not signed; serve the adapter")
        return fetch_files(self.blobs, self.cache, variant.digest, label, variant.manifest.files)
