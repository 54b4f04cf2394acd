"""The configuration: refused with the line and the field."""

from pathlib import Path

import pytest

from training.__main__ import main
from training.config import load_config
from training.errors import ConfigError

CONFIGS = sorted(Path("training/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_parses(path: Path) -> None:
    assert load_config(path).data.train


def test_every_shipped_configuration_says_how_to_run_it() -> None:
    for path in CONFIGS:
        assert f"python -m training {path}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("name: x\nbase: y\ndata:\n  train:\n    - path: a.jsonl\n      wieght: 2\n", 6, "wieght"),
        ("name: x\nbase: y\ndata:\n  train: []\n", 4, "data.train"),
        ("name: x\nbase: y\ndata:\n  train: [{path: a}]\nfit:\n  seed: many\n", 6, "fit.seed"),
        ("name: x\nbase: y\nmethod:\n  r: 0\ndata:\n  train: [{path: a}]\n", 4, "method.r"),
        ("name: Not Good\nbase: y\ndata:\n  train: [{path: a}]\n", 1, "name"),
        ("name: x\n  base: y\n", 2, ""),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, field: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.line == line
    assert field in caught.value.field
    assert str(path) in str(caught.value)


def test_a_misspelt_setting_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nbase: y\ndata:\n  train: [{path: a}]\nfit:\n  lr: 1\n")
    with pytest.raises(ConfigError, match="learning_rate"):
        load_config(path)


def test_settings_can_be_overridden() -> None:
    config = load_config(CONFIGS[0], ("fit.max_steps=7", "registry=null", "method.r=2"))
    assert (config.fit.max_steps, config.registry, config.method.r) == (7, None, 2)


@pytest.mark.parametrize("text", ["name: x\n\tbase: y\n", "", "- a\n", "name: *nobody\n"])
def test_a_bad_file_ends_the_command_with_one_line_that_names_it(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {path}:")
    assert (captured.err.count("\n"), captured.out) == (1, "")
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


def test_a_setting_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    text = CONFIGS[0].read_text(encoding="utf-8")
    line = text.count("\n") + 2
    path = tmp_path / "twice.yaml"
    path.write_text(f"{text}\nname: again\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{line}.*name.*is there twice; the first is in line"):
        load_config(path)
