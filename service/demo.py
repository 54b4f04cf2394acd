"""`python -m service.demo`: one real answer from nothing.

Prepares the base model, puts the bundled adapters into the local registry, starts the service as a
process of its own, sends it a paragraph, and prints the questions as they stream in. Every step is
skipped when it was done before.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from mcq.errors import McqError
from mcq.question import Question

ADAPTERS = Path("adapters")
ADAPTER = "mcq-vi"
REGISTRY = Path("var/registry")
BASE_MODEL = "embedded:qwen2.5-coder-1.5b-instruct"
CONTEXT = (
    "Bộ nhớ RAM là nơi máy tính giữ tạm chương trình và dữ liệu đang được xử lí. RAM có tốc độ "
    "đọc, ghi nhanh hơn ổ đĩa rất nhiều, nhưng nội dung của nó bị mất khi máy tắt nguồn. Ngược "
    "lại, ổ đĩa cứng HDD hoặc ổ thể rắn SSD lưu dữ liệu lâu dài, kể cả khi không có điện, song "
    "tốc độ truy cập chậm hơn. Khi người dùng mở một tệp văn bản, hệ điều hành chép nội dung tệp "
    "từ ổ đĩa vào RAM để chỉnh sửa. Nếu mất điện trước khi lưu, những thay đổi mới nhất chỉ nằm "
    "trong RAM nên sẽ không còn."
)
_START_TIMEOUT_S = 600
_SEED = 1
"""The same draws at every run, so that on one machine the demo repeats itself."""


def main() -> int:
    """Run the demo; the exit status is 0 if at least one question came back."""
    parser = argparse.ArgumentParser(prog="python -m service.demo", description=__doc__)
    parser.add_argument("-n", type=int, default=2, help="how many questions (default 2)")
    parser.add_argument("--quality", default="balanced", choices=["fast", "balanced", "best"])
    parser.add_argument("--backend", default="engine", choices=["engine", "reference", "echo"])
    parser.add_argument("context", nargs="?", default=CONTEXT, help="a paragraph of your own")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        if arguments.backend != "echo":
            from model_registry.bases import prepare_base

            step("Base model", BASE_MODEL)
            prepare_base(BASE_MODEL)
        adapter = import_adapters()
        step("Adapter", adapter or "none is bundled: the bare base model answers")
        port = free_port()
        step("Service", f"http://127.0.0.1:{port} (backend {arguments.backend})")
        with running_service(arguments.backend, port) as base_url:
            quality = "fast" if arguments.backend == "echo" else arguments.quality
            count = ask(base_url, arguments.context, arguments.n, quality, adapter)
    except (McqError, httpx.HTTPError, OSError) as error:
        print(f"python -m service.demo: {error}", file=sys.stderr)
        return 1
    step("Done", f"{count} questions, {time.monotonic() - started:.0f} s in all")
    return 0 if count else 1


def step(name: str, text: str) -> None:
    """Say what happens."""
    print(f"\033[1m{name:<11}\033[0m {text}" if sys.stdout.isatty() else f"{name:<11} {text}")
    sys.stdout.flush()


def import_adapters() -> str | None:
    """Put the bundled adapters into the local registry, if they are not there; the name and number
    of the one that writes questions.

    The registry may hold newer versions, of the user's own: the demo shows what is bundled.
    """
    from model_registry import ModelRegistry

    bundled = sorted(path.parent for path in ADAPTERS.glob("*/manifest.json"))
    if not bundled:
        return None
    with ModelRegistry.open(REGISTRY) as registry:
        versions = [registry.import_directory(directory) for directory in bundled]
    return next((f"{v.name}/{v.number}" for v in versions if v.name == ADAPTER), None)


class running_service:  # noqa: N801 read as a verb
    """The service as a process of its own, for the length of a block; its log stays apart."""

    def __init__(self, backend: str, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._log = Path("var/demo.log")
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("MCQ_")} | {
            "MCQ_BACKEND": backend,
            "MCQ_BASE_MODEL": BASE_MODEL,
            "MCQ_PORT": str(port),
            "MCQ_REGISTRY": str(REGISTRY),
            "MCQ_LOG_FORMAT": "text",
        }

    def __enter__(self) -> str:
        self._log.parent.mkdir(exist_ok=True)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service"], env=self._environment, stderr=log
            )
        try:
            self._wait()
        except BaseException:
            self._process.kill()
            raise
        return self._url

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                tail = self._log.read_text().strip().splitlines()[-1:]
                raise OSError(f"the service did not start: {' '.join(tail)} (see {self._log})")
            try:
                if httpx.get(f"{self._url}/health/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise OSError(f"the service was not ready after {_START_TIMEOUT_S} s (see {self._log})")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(base_url: str, context: str, n: int, quality: str, adapter: str | None) -> int:
    """Send the paragraph, print each question as it arrives, and return how many came."""
    print(f"\n{context}\n")
    count = 0
    body: dict[str, Any] = {"context": context, "n": n, "quality": quality, "seed": _SEED}
    if adapter is not None:
        body["adapter"] = adapter
    for name, data in events(base_url, body):
        match name:
            case "question":
                count += 1
                show(count, Question.model_validate(data))
            case "done":
                usage = data["usage"]
                step(
                    "Answered", f"in {usage['seconds']:.1f} s, {usage['completion_tokens']} tokens"
                )
                if data["shortfall"]:
                    step("Shortfall", f"{data['shortfall']}: {data['shortfall_reasons']}")
            case "error":
                raise OSError(data["detail"])
            case _:
                pass
    return count


def events(base_url: str, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The events of one generation."""
    headers = {"Accept": "text/event-stream"}
    with httpx.stream(
        "POST", f"{base_url}/generate", json=body, headers=headers, timeout=600
    ) as answer:
        if answer.status_code != 200:
            raise OSError(json.loads(answer.read())["detail"])
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def show(number: int, question: Question) -> None:
    """Print one question for a person."""
    print(f"Câu {number}. {question.question}")
    for letter, text in question.options.items():
        print(f"  {'✓' if letter == question.key else ' '} {letter}. {text}")
    if question.evidence:
        print(f"    Dẫn chứng: “{question.evidence.text}”")
    for check in question.checks:
        if check.name == "verified":
            print(f"    Đã kiểm chứng: ước tính đúng với xác suất {check.detail}")
    flaws = [check.name for check in question.checks if not check.passed]
    print(f"    Lỗi biên soạn: {', '.join(flaws) if flaws else 'không'}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
