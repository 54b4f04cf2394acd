"""`python -m model_registry`, as people and scripts use it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from model_registry.__main__ import main
from tests.model_registry.adapter_files import BASE, write_adapter

ROOT = Path(__file__).parents[2]


class Cli:
    """The command line over one registry, in this process."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capture = capture

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Status, stdout, stderr."""
        status = main(["--registry", str(self.directory), "--actor", "me", *arguments])
        captured = self._capture.readouterr()
        return status, captured.out, captured.err

    def text(self, *arguments: str) -> str:
        """Standard output of a command that succeeds."""
        status, out, err = self.run(*arguments)
        assert status == 0, err
        return out

    def json(self, *arguments: str) -> Any:
        """The same, parsed."""
        return json.loads(self.text(*arguments, "--json"))

    def error(self, *arguments: str) -> str:
        """The one line of a command that fails."""
        status, out, err = self.run(*arguments)
        assert (status, out) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    def push(self, directory: Path, *arguments: str) -> Any:
        """Publish with the facts that do not matter."""
        fingerprint = directory.parent / "fingerprint.json"
        fingerprint.write_text(BASE.model_dump_json())
        return self.json(
            "push", "mcq-vi", str(directory), "--prompt-format", "chat/1", "--precision", "bf16",
            "--fingerprint", str(fingerprint), *arguments,
        )  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """A fresh registry with two versions."""
    cli = Cli(tmp_path / "registry", capsys)
    evaluation = tmp_path / "evaluation.json"
    evaluation.write_text('{"valid": 0.95}')
    cli.push(write_adapter(tmp_path / "1", b"\x01"), "--alias", "production")
    cli.push(write_adapter(tmp_path / "2", b"\x02"), "--evaluation", str(evaluation))
    return cli


def test_versions_are_listed_shown_and_compared(cli: Cli) -> None:
    assert cli.text("list").splitlines()[1].split() == ["mcq-vi", "2", "2", "production", "→", "1"]
    assert [item["version"] for item in cli.json("list", "mcq-vi")] == [2, 1]
    assert cli.json("show", "models:/mcq-vi@production")["version"] == 1
    assert "evaluation.valid" in cli.text("diff", "mcq-vi/1", "mcq-vi/2")
    assert [item["intact"] for item in cli.json("verify")] == [True, True]


def test_an_alias_is_promoted_through_its_gate_and_rolled_back(cli: Cli) -> None:
    cli.text("gate", "mcq-vi", "production", "--set", '{"thresholds": {"valid": {"min": 0.9}}}')
    assert "valid" in cli.text("gate", "mcq-vi", "production")
    assert "(was version 1)" in cli.text("promote", "mcq-vi/2")
    assert "no evaluation" in cli.error("promote", "mcq-vi/1")
    assert cli.json("alias", "rollback", "mcq-vi", "production")["version"] == 1
    history = cli.json("alias", "history", "mcq-vi", "production")
    assert [(event["from"], event["to"], event["actor"]) for event in history] == [
        (2, 1, "me"), (1, 2, "me"), (None, 1, "me"),
    ]  # fmt: skip
    assert cli.json("alias", "list", "mcq-vi") == {"production": 1}
    assert "not at revision 1" in cli.error(
        "alias", "set", "mcq-vi", "production", "2", "--expected-revision", "1"
    )


def test_deletion_and_garbage_on_the_command_line(cli: Cli) -> None:
    assert "alias production" in cli.error("delete", "mcq-vi/1")
    cli.text("delete", "mcq-vi/2", "--reason", "flawed")
    assert "restore" in cli.error("show", "mcq-vi/2")
    cli.text("restore", "mcq-vi/2")
    cli.text("pin", "mcq-vi/2", "paper")
    assert "paper" in cli.error("delete", "mcq-vi/2")
    cli.text("unpin", "mcq-vi/2", "paper")
    cli.text("delete", "mcq-vi/2")
    assert cli.json("gc", "--grace-hours", "0")["purged"] == ["mcq-vi/2"]
    assert cli.json("leases") == []
    assert cli.json("audit", "--verify")["intact"]
    assert "purge" in cli.text("audit")


def test_versions_travel_as_directories_and_bundles(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.text("keygen", str(tmp_path / "key.pem"))
    cli.text("sign", "mcq-vi/1", "--key", str(tmp_path / "key.pem"))
    cli.text("export", "mcq-vi/1", str(tmp_path / "out"))
    cli.text("export", "mcq-vi/1", "mcq-vi/2", str(tmp_path / "out.tar"))
    other = Cli(tmp_path / "other", capsys)
    assert other.json("import", str(tmp_path / "out"))[0]["version"] == 1
    assert len(other.json("import", str(tmp_path / "out.tar"), "--alias", "canary")) == 2
    other.json("--trusted-keys", str(tmp_path / "key.pub.pem"), "verify", "mcq-vi/1")
    assert "not trusted" in other.error(
        "--trusted-keys", str(tmp_path / "key.pub.pem"), "verify", "mcq-vi/2"
    )
    assert len(cli.json("materialize", "--dest", str(tmp_path / "served"))) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("show", "nobody"), "No adapter is called 'nobody'"),
        (("show", "No!"), "not a valid reference"),
        (("alias", "set", "mcq-vi", "x", "9"), "no version 9"),
        (("import", "/nowhere"), "manifest.json"),
        (("export", "mcq-vi/1", "mcq-vi/2", "somewhere"), "NAME.tar"),
        (("gate", "mcq-vi", "production", "--set", "{"), "neither JSON nor a file"),
        (("migrate",), "needs no migration"),
        (("push", "x", ".", "--prompt-format", "chat/1", "--precision", "bf16"), "--base"),
    ],
)
def test_errors_are_one_line_with_a_remedy(cli: Cli, arguments: tuple[str, ...], part: str) -> None:
    assert part in cli.error(*arguments)


def test_a_bundled_adapter_that_was_deleted_stays_deleted_without_an_error(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundled = str(tmp_path / "out")
    cli.text("export", "mcq-vi/2", bundled)
    other = Cli(tmp_path / "other", capsys)
    assert other.json("import", "--unless-deleted", bundled)[0]["version"] == 2
    assert other.json("import", "--unless-deleted", bundled)[0]["version"] == 2
    other.text("delete", "mcq-vi/2")
    assert other.json("import", "--unless-deleted", bundled) == []
    assert "restore mcq-vi/2" in other.error("import", bundled)


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['x', '--help']\n"
        "from model_registry.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sqlalchemy', 'obstore', 'transformers', 'huggingface_hub'}\n"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "promote" in result.stdout
    assert time.monotonic() - started < 5
