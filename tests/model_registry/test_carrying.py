"""Bundles, vLLM's folder, the Hub's layout."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from model_registry import ModelRegistry
from model_registry.carrying import export_bundle, import_bundle, materialize_versions
from model_registry.errors import InvalidAdapterError
from model_registry.hub import model_card, upload
from tests.model_registry.adapter_files import publish, write_adapter


def test_a_bundle_brings_versions_into_a_closed_network(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    for number in (1, 2):
        publish(registry, write_adapter(tmp_path / str(number), bytes([number])))
    registry.set_alias("mcq-vi", "production", 2)
    sent = export_bundle(registry, ["mcq-vi/1", "mcq-vi@production"], tmp_path / "out.tar")
    export_bundle(registry, ["mcq-vi/1", "mcq-vi/2"], tmp_path / "again.tar")
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "again.tar").read_bytes()
    other = ModelRegistry.open(tmp_path / "other")
    received = import_bundle(other, tmp_path / "out.tar")
    assert [(v.number, v.digest) for v in received] == [(v.number, v.digest) for v in sent]
    assert other.aliases("mcq-vi") == {"production": 2}
    assert import_bundle(other, tmp_path / "out.tar") == received


def _tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportArgumentType, reportCallIssue, reportUnknownVariableType]
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))  # pyright: ignore[reportUnknownMemberType]
    return path


def _member(
    name: str, content: bytes = b"{}", kind: bytes = tarfile.REGTYPE
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content), kind
    if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname, info.size = "/etc/passwd", 0
    return info, content


def _shortened(path: Path, content: bytes) -> Path:
    path.write_bytes(content[:1000])
    return path


BAD_BUNDLES: dict[str, Callable[[Path], Path]] = {
    "traversal": lambda p: _tar(p, _member("../evil/manifest.json")),
    "absolute": lambda p: _tar(p, _member("/etc/manifest.json")),
    "deep": lambda p: _tar(p, _member("a/b/manifest.json")),
    "symlink": lambda p: _tar(p, _member("a/manifest.json", kind=tarfile.SYMTYPE)),
    "hard link": lambda p: _tar(p, _member("a/manifest.json", kind=tarfile.LNKTYPE)),
    "device": lambda p: _tar(p, _member("a/manifest.json", kind=tarfile.CHRTYPE)),
    "pickle": lambda p: _tar(p, _member("a/adapter_model.bin")),
    "twice": lambda p: _tar(p, _member("a/manifest.json"), _member("a/manifest.json")),
    "large": lambda p: _tar(p, _member("a/adapter_config.json", bytes(2**20 + 1))),
    "compressed": lambda p: _tar(p, _member("a/manifest.json", bytes(10**6)), mode="w:gz"),
    "empty": lambda p: _tar(p),
    "no archive": lambda p: _shortened(p, b"x" * 2000),
    "cut": lambda p: _shortened(p, _tar(p, _member("a/manifest.json", bytes(4000))).read_bytes()),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_BUNDLES)
def test_a_bad_bundle_is_refused_and_leaves_nothing(
    registry: ModelRegistry, tmp_path: Path, kind: str
) -> None:
    file = BAD_BUNDLES[kind](tmp_path / "bad.tar")
    with pytest.raises(InvalidAdapterError) as refusal:
        import_bundle(registry, file)
    assert refusal.value.reason == "bad_bundle"
    assert registry.list_adapters() == ()
    assert {path.name for path in tmp_path.iterdir()} == {"registry", "bad.tar"}


def test_vllm_finds_adapters_under_names_with_their_digest(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    for number in (1, 2):
        publish(registry, write_adapter(tmp_path / str(number), bytes([number])))
    served = tmp_path / "served"
    written = materialize_versions(registry, ["mcq-vi/1"], served, base_model_name="base-1.5b")
    version = registry.resolve("mcq-vi/1")
    directory = written[version.engine_name]
    assert directory == served / version.engine_name
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base-1.5b"
    assert config["peft_type"] == "LORA"
    before = directory.stat().st_mtime_ns
    materialize_versions(registry, ["mcq-vi/1"], served, base_model_name="base-1.5b")
    assert directory.stat().st_mtime_ns == before
    (served / "foreign").mkdir()
    materialize_versions(registry, ["mcq-vi/2"], served, prune_others=True)
    names = {path.name for path in served.iterdir()}
    assert names == {registry.resolve("mcq-vi/2").engine_name, "foreign", ".staging"}


def test_vllm_is_not_given_what_it_cannot_serve(registry: ModelRegistry, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", alpha_pattern={"q_proj": 8})
    publish(registry, adapter)
    with pytest.raises(InvalidAdapterError, match="not_for_vllm"):
        materialize_versions(registry, ["mcq-vi/1"], tmp_path / "served")


class HubFolder:
    """The three calls of the Hub's client that an export makes, on a local folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tags: dict[str, str] = {}
        self.oid = "c" * 40

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        (self.directory / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> "HubFolder":
        for file in folder_path.iterdir():
            (self.directory / repo_id / file.name).write_bytes(file.read_bytes())
        return self

    def create_tag(self, repo_id: str, *, tag: str, revision: str, exist_ok: bool) -> None:
        self.tags[tag] = revision


def test_what_is_on_the_hub_is_imported_with_its_digest(
    registry: ModelRegistry, adapter: Path, tmp_path: Path
) -> None:
    version = publish(registry, adapter, languages=("vi",), evaluation={"valid": 0.9})
    registry.export_directory("mcq-vi/1", tmp_path / "out")
    hub = HubFolder(tmp_path / "hub")
    commit = upload(tmp_path / "out", version, "org/mcq-vi", api=hub, private=True)  # pyright: ignore[reportArgumentType]
    assert hub.tags == {"v1": commit}
    repository = tmp_path / "hub" / "org" / "mcq-vi"
    assert (repository / "README.md").read_text() == model_card(version)
    other = ModelRegistry.open(tmp_path / "other")
    assert other.import_directory(repository).digest == version.digest


def test_a_model_card_says_what_the_manifest_says(registry: ModelRegistry, adapter: Path) -> None:
    version = publish(registry, adapter, languages=("vi",), data_statement="Own questions.")
    card = model_card(version)
    assert card.startswith('---\nlibrary_name: "peft"\n')
    assert 'language: ["vi"]' in card
    for text in (version.digest, "chat/1", "Own questions.", "rank 2, alpha 4"):
        assert text in card
