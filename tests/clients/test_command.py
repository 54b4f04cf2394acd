"""The command `mcq-client`: one line for each error, a status for scripts, JSON for pipes."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mcq_client.__main__ import main

Run = Callable[..., subprocess.CompletedProcess[str]]
NOBODY = "http://127.0.0.1:9"


def test_help_is_quick(mcq_client_command: Run) -> None:
    start = time.perf_counter()
    done = mcq_client_command(["--help"])

    assert done.returncode == 0
    assert "generate" in done.stdout
    assert time.perf_counter() - start < 1


def test_questions_are_printed_with_the_key_marked(
    mcq_client_command: Run, live_url: str, context_vi: str, tmp_path: Path
) -> None:
    passage = tmp_path / "passage.txt"
    passage.write_text(context_vi, encoding="utf-8-sig")
    done = mcq_client_command(["generate", str(passage), "--n", "2", "--seed", "1"], url=live_url)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line[:2] for line in lines if line[:1].isdigit()] == ["1.", "2."]
    assert sum(line.startswith(" * ") for line in lines) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_json_is_for_other_programs(
    mcq_client_command: Run, live_url: str, context_vi: str, stream: bool
) -> None:
    arguments = ["generate", "-", "--n", "3", "--json", "--seed", "1", "--avoid", "RAM?"]
    done = mcq_client_command(
        [*arguments, *(["--stream"] if stream else [])], url=live_url, given=context_vi.encode()
    )

    assert done.returncode == 0
    if stream:
        questions = [json.loads(line) for line in done.stdout.splitlines()]
    else:
        questions = json.loads(done.stdout)["questions"]
    assert len(questions) == 3
    assert all(question["key"] in "ABCD" for question in questions)


def test_adapters_are_listed(live_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", live_url, "adapters"]) == 0
    assert capsys.readouterr().out == "base model: echo\n"
    assert main(["--url", live_url, "adapters", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == []


def test_the_services_refusal_is_one_line(
    live_url: str, context_vi: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passage = tmp_path / "passage.txt"
    passage.write_text(context_vi, encoding="utf-8")
    for arguments in (["--adapter", "ghost"], ["--n", "0"], ["--stream", "--n", "99"]):
        assert main(["--url", live_url, "generate", str(passage), *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("mcq-client: ")
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "Cannot read"), (b"\xff\xfe\x00", "not UTF-8 text (byte 0)")],
)
def test_bad_input_is_one_line_and_status_2(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passage = tmp_path / "passage.txt"
    if content is not None:
        passage.write_bytes(content)

    assert main(["--url", NOBODY, "generate", str(passage)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("url", [NOBODY, "localhost:8000", "http://["])
def test_an_address_where_nobody_answers_is_one_line_and_status_1(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url", url, "adapters"]) == 1
    error = capsys.readouterr().err
    assert url.removeprefix("http://") in error
    assert error.count("\n") == 1
