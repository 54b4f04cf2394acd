"""How the name of a base model is read."""

from pathlib import Path

import pytest

from model_registry.bases.errors import InvalidSourceError, UnknownEmbeddedModelError
from model_registry.bases.prepare import prepare_base
from model_registry.bases.source import BaseModelSource, SourceKind, parse_source


def test_each_kind_of_source_is_recognised(tmp_path: Path) -> None:
    gguf = tmp_path / "some-model.gguf"
    gguf.touch()
    assert parse_source("hf:Qwen/Qwen2.5-0.5B") == BaseModelSource(
        SourceKind.HUB, "Qwen/Qwen2.5-0.5B"
    )
    assert parse_source("hf:org/name@v1.0") == BaseModelSource(SourceKind.HUB, "org/name", "v1.0")
    assert parse_source("embedded:toy") == BaseModelSource(SourceKind.EMBEDDED, "toy")
    assert parse_source(str(tmp_path)) == BaseModelSource(SourceKind.DIRECTORY, str(tmp_path))
    assert parse_source(str(gguf)) == BaseModelSource(SourceKind.GGUF, str(gguf))


def test_a_source_prints_as_it_was_written() -> None:
    for text in ("hf:org/name", "hf:org/name@main", "embedded:toy"):
        assert str(parse_source(text)) == text


def test_a_gguf_file_is_called_by_its_stem(tmp_path: Path) -> None:
    (tmp_path / "small.Q4.gguf").touch()
    assert parse_source(str(tmp_path / "small.Q4.gguf")).name == "small.Q4"


@pytest.mark.parametrize(
    "text",
    ["", "   ", "hf:", "hf:name-only", "hf:a/b/c", "hf:../x", "hf:org/name@", "nowhere", "no.gguf"],
)
def test_what_names_no_source_is_refused_with_the_forms_that_do(text: str) -> None:
    with pytest.raises(InvalidSourceError, match="hf:ORG/NAME"):
        parse_source(text)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(InvalidSourceError, match=r"not a \.gguf file"):
        parse_source(str(tmp_path / "model.bin"))


def test_an_unknown_embedded_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownEmbeddedModelError, match="smollm2-135m-instruct"):
        prepare_base("embedded:gpt-9", tmp_path)
