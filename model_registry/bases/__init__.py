"""Base models: where they come from, how they get onto the disk, and what tells them apart.

Reads: `source` (names) → `prepare` (the story) → `download`, `wheels`, `hub`, `convert` (the work)
→ `fingerprint`. Nothing here imports torch or transformers until a GGUF file is converted.
"""

from model_registry.bases.catalog import EMBEDDED_MODELS, EmbeddedModel
from model_registry.bases.fingerprint import fingerprint_of
from model_registry.bases.prepare import BaseModel, prepare_base
from model_registry.bases.source import BaseModelSource, SourceKind, parse_source
from model_registry.fingerprint import BaseFingerprint

__all__ = [
    "EMBEDDED_MODELS",
    "BaseFingerprint",
    "BaseModel",
    "BaseModelSource",
    "EmbeddedModel",
    "SourceKind",
    "fingerprint_of",
    "parse_source",
    "prepare_base",
]
