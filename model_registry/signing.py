"""Ed25519 signatures over manifests.

A reader that trusts some keys takes nothing that they did not sign.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from model_registry.errors import SignatureError

# So that a signature of ours can never be taken for one over something else.
_PURPOSE = b"tracnghiem adapter manifest 1\n"


@dataclass(frozen=True)
class Signature:
    """Somebody's word for a manifest."""

    key_id: str
    signature: str


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys by their id."""

    keys: dict[str, Ed25519PublicKey]

    @classmethod
    def load(cls, path: Path) -> Self:
        """A PEM file, or a directory of `*.pem` files.

        Raises:
            SignatureError: A file holds no Ed25519 public key, or there is none.
        """
        files = sorted(path.glob("*.pem")) if path.is_dir() else [path]
        keys = [_load_public(file) for file in files]
        if not keys:
            raise SignatureError(str(path), "the folder holds no *.pem key to trust")
        return cls({key_id(key): key for key in keys})

    def check(self, label: str, manifest: bytes, signatures: tuple[Signature, ...]) -> str:
        """The id of a trusted key that signed exactly these bytes.

        Raises:
            SignatureError: There is none.
        """
        for item in signatures:
            key = self.keys.get(item.key_id)
            if key is None:
                continue
            try:
                key.verify(bytes.fromhex(item.signature), _PURPOSE + manifest)
            except (InvalidSignature, ValueError) as error:
                detail = f"the signature by key {item.key_id} does not fit"
                raise SignatureError(label, detail) from error
            return item.key_id
        raise SignatureError(label, "no trusted key has signed it; `python -m model_registry sign`")


def create_key(path: Path) -> str:
    """Write a private key (mode 600) and beside it its public half, `.pub.pem`; returns its id."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(private)
        path.with_suffix(".pub.pem").write_bytes(public)
    except OSError as error:
        raise SignatureError(str(path), error.strerror or str(error)) from error
    return key_id(key.public_key())


def sign_manifest(manifest: bytes, private_key: Path) -> Signature:
    """Sign canonical bytes with a PEM private key."""
    try:
        key = load_pem_private_key(private_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(str(private_key), f"it is no private key ({error})") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(str(private_key), "it is no Ed25519 key")
    return Signature(key_id(key.public_key()), key.sign(_PURPOSE + manifest).hex())


def key_id(key: Ed25519PublicKey) -> str:
    """Sixteen hex digits."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _load_public(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(str(path), "it is no public key in PEM form") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(str(path), "it is no Ed25519 key")
    return key
