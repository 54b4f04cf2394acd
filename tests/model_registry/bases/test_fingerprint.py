# pyright: basic
# safetensors has partial types, which strict mode refuses.
"""The fingerprint follows the content of a model, and is not computed twice."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from model_registry.bases import fingerprint as module
from model_registry.bases.errors import IncompleteBaseModelError
from model_registry.bases.fingerprint import compute_fingerprint, fingerprint_of
from model_registry.bases.tiny import write_tiny_model


def test_the_same_model_cut_into_other_files_has_the_same_fingerprint(
    tiny: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in halves.items():
        save_file({name: tensors[name] for name in members}, copy / file, {"made": "by a test"})
    weight_map = {name: file for file, members in halves.items() for name in members}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (copy / "model.safetensors").unlink()
    assert compute_fingerprint(copy) == compute_fingerprint(tiny)


def test_each_part_of_the_fingerprint_tells_its_own_difference(tiny: Path, tmp_path: Path) -> None:
    original = compute_fingerprint(tiny)
    other_seed = compute_fingerprint(write_tiny_model(tmp_path / "seed", seed=1))
    assert original.differences(other_seed) == ("weights",)
    deeper = compute_fingerprint(write_tiny_model(tmp_path / "deeper", layers=3))
    assert original.differences(deeper) == ("arch", "weights")
    other_template = Path(shutil.copytree(tiny, tmp_path / "template"))
    (other_template / "chat_template.jinja").write_text("{{ messages }}")
    assert original.differences(compute_fingerprint(other_template)) == ("tokenizer",)


def test_a_template_in_the_tokenizer_config_is_the_same_template(
    tiny: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    template = (copy / "chat_template.jinja").read_text()
    (copy / "chat_template.jinja").unlink()
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    assert compute_fingerprint(copy) == compute_fingerprint(tiny)


def test_it_is_computed_once_and_again_when_a_file_changes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    record = tmp_path / "records" / "copy.json"
    computed: list[Path] = []

    def counted(directory: Path) -> object:
        computed.append(directory)
        return compute_fingerprint(directory)

    monkeypatch.setattr(module, "compute_fingerprint", counted)
    first = fingerprint_of(copy, record)
    assert fingerprint_of(copy, record) == first
    assert len(computed) == 1
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint_of(copy, record).differences(first) == ("tokenizer",)
    record.write_text("{not json")
    fingerprint_of(copy, record)
    assert len(computed) == 3


def test_weights_cut_short_are_refused(tiny: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    for length in (0, 5, 100, len(content) - 1):
        weights.write_bytes(content[:length])
        with pytest.raises(IncompleteBaseModelError, match=r"model\.safetensors"):
            compute_fingerprint(copy)
