"""What `POST /generate` costs beside the model: open-loop requests against `echo` over loopback.

    python -m benchmarks.service_overhead --rate 100 --seconds 20
    python -m benchmarks.service_overhead --against /path/to/another/checkout

The latency of a request counts from the moment it was due, so that a server that falls behind
cannot hide it; the client is a bare socket that spins before a request is due, since it would wake
up late otherwise. No two requests carry the same passage, so that no cache of texts answers. The
backend's own time is measured in-process and taken off. With `--against`, both checkouts serve at
once and are asked in turns, so that what else the machine does falls on both.
"""

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from mcq.prompts import prompt_format
from service.backends.base import CompletionRequest, Sampling
from service.backends.echo import EchoBackend

_SENTENCES = (
    "Bộ nhớ RAM là nơi máy tính giữ tạm chương trình và dữ liệu đang được xử lí.",
    "RAM có tốc độ đọc, ghi nhanh hơn ổ đĩa rất nhiều, nhưng nội dung của nó bị mất khi máy tắt "
    "nguồn.",
    "Ngược lại, ổ đĩa cứng HDD hoặc ổ thể rắn SSD lưu dữ liệu lâu dài, kể cả khi không có điện.",
)
CONTEXT = " ".join(_SENTENCES)
TRIVIAL = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
_SPIN_S = 0.002
_WARM_UP = 200
Connections = asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]


def main() -> None:
    """Start the service, or two of them, load it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=4, help="turns that the time is split into")
    parser.add_argument("--against", type=Path, help="root of another checkout to compare with")
    arguments = parser.parse_args()
    roots = [Path.cwd()] if arguments.against is None else [arguments.against, Path.cwd()]
    count = int(arguments.rate * arguments.seconds / arguments.rounds)
    with ExitStack() as stack:
        ports = [stack.enter_context(_service(root)) for root in roots]
        found = asyncio.run(_measure(ports, arguments.rate, count, arguments.rounds))
    backend = asyncio.run(_backend_seconds())
    print(f"requests  {count * arguments.rounds} at {arguments.rate:g} a second")
    print(f"backend alone  {backend * 1e3:.2f} ms")
    for root, (trivial, generate) in zip(roots, found, strict=True):
        print(f"{root}")
        for name, place in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
            all_of_it = _quantile(generate, place)
            print(
                f"  {name}  over backend {(all_of_it - backend) * 1e3:.2f} ms, "
                f"trivial route {_quantile(trivial, place) * 1e3:.2f} ms"
            )


@contextmanager
def _service(root: Path) -> Generator[int]:
    """A served checkout; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        settings = {"MCQ_BACKEND": "echo", "MCQ_PORT": str(port), "MCQ_REGISTRY": folder}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=os.environ | settings | {"MCQ_LOG_LEVEL": "warning"},
            cwd=root,
        )
        try:
            _wait(f"http://127.0.0.1:{port}")
            print(f"start to ready  {time.perf_counter() - started:.2f} s")
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait(url: str) -> None:
    while True:
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.02)


def _request(number: int) -> bytes:
    """A request of its own: the same words in another order within each sentence."""
    rng = random.Random(number)
    orders = [rng.sample(words, len(words)) for s in _SENTENCES if (words := s.rstrip(".").split())]
    context = " ".join(f"{' '.join(words).capitalize()}." for words in orders)
    body = json.dumps({"context": context}).encode()
    return (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
    )


async def _measure(
    ports: list[int], rate: float, count: int, rounds: int
) -> list[tuple[list[float], list[float]]]:
    """For each server, the latencies of a trivial route and of `POST /generate`."""
    numbers = iter(range(sys.maxsize))
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in ports]
    for port in ports:
        await _offered(port, [_request(next(numbers)) for _ in range(_WARM_UP)], rate)
    for _ in range(rounds):
        for port, (trivial, generate) in zip(ports, found, strict=True):
            trivial += await _offered(port, [TRIVIAL] * (count // 4), rate)
            generate += await _offered(port, [_request(next(numbers)) for _ in range(count)], rate)
    return found


async def _offered(port: int, requests: list[bytes], rate: float) -> list[float]:
    pool = Connections()
    for _ in range(16):
        pool.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    start = time.perf_counter() + 0.1
    tasks: list[asyncio.Task[float]] = []
    for number, request in enumerate(requests):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter() - _SPIN_S))
        while time.perf_counter() < due:  # noqa: ASYNC110 spinning is the point
            await asyncio.sleep(0)
        tasks.append(asyncio.create_task(_send(pool, request, due)))
    latencies = await asyncio.gather(*tasks)
    while not pool.empty():
        pool.get_nowait()[1].close()
    return latencies


async def _send(pool: Connections, request: bytes, due: float) -> float:
    reader, writer = connection = await pool.get()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise OSError(head.decode())
    await reader.readexactly(int(length[1]))
    pool.put_nowait(connection)
    return time.perf_counter() - due


def _quantile(latencies: list[float], place: float) -> float:
    return sorted(latencies)[int(place * (len(latencies) - 1))]


async def _backend_seconds() -> float:
    chosen = prompt_format("chat/1")
    request = CompletionRequest(
        chosen.render(CONTEXT, "vi"), Sampling(), grammar=chosen.grammar("vi")
    )
    times: list[float] = []
    for _ in range(50):
        start = time.perf_counter()
        async for _ in EchoBackend().complete(request):
            pass
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
