"""Adapters and merged variants: versions that cannot change, aliases that move, files that are
checked.

Importing this package is quick: database, store and torch are imported by what needs them.
"""

from model_registry.adapter import (
    AdapterManifest,
    AdapterRef,
    AdapterSummary,
    AdapterVersion,
    precisions_agree,
)
from model_registry.fingerprint import BaseFingerprint
from model_registry.registry import ModelRegistry
from model_registry.snapshot import RegistrySnapshot

__all__ = [
    "AdapterManifest",
    "AdapterRef",
    "AdapterSummary",
    "AdapterVersion",
    "BaseFingerprint",
    "ModelRegistry",
    "RegistrySnapshot",
    "precisions_agree",
]
