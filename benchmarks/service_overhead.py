"""What `POST /generate` costs beside the model: open-loop requests against `echo` over loopback.

    python -m benchmarks.service_overhead --rate 100 --seconds 20

The latency of a request counts from the moment it was due, so that a server that falls behind
cannot hide it; the client is a bare socket, since this machine runs it too. The backend's own time
is measured in-process and taken off.
"""

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import httpx

from mcq.prompts import prompt_format
from service.backends.base import CompletionRequest, Sampling
from service.backends.echo import EchoBackend

CONTEXT = (
    "Bộ nhớ RAM là nơi máy tính giữ tạm chương trình và dữ liệu đang được xử lí. RAM có tốc độ "
    "đọc, ghi nhanh hơn ổ đĩa rất nhiều, nhưng nội dung của nó bị mất khi máy tắt nguồn. Ngược "
    "lại, ổ đĩa cứng HDD hoặc ổ thể rắn SSD lưu dữ liệu lâu dài, kể cả khi không có điện."
)
_BODY = json.dumps({"context": CONTEXT}).encode()
REQUEST = (
    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: " + str(len(_BODY)).encode() + b"\r\n\r\n" + _BODY
)
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def main() -> None:
    """Start the service, load it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        settings = {"MCQ_BACKEND": "echo", "MCQ_PORT": str(port), "MCQ_REGISTRY": folder}
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env=os.environ | settings | {"MCQ_LOG_LEVEL": "warning"},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url)
            print(f"start to ready        {time.perf_counter() - started:6.2f} s")
            asyncio.run(_measure(port, arguments.rate, arguments.seconds))
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


async def _measure(port: int, rate: float, seconds: float) -> None:
    connections: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(16):
        connections.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    for _ in range(50):
        await _send(connections, time.perf_counter())
    start = time.perf_counter() + 0.1
    tasks: list[asyncio.Task[float]] = []
    for number in range(int(rate * seconds)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(_send(connections, due)))
    latencies = sorted(await asyncio.gather(*tasks))
    backend = await _backend_seconds()
    print(f"requests              {len(latencies):6d} at {rate:g} a second")
    print(f"backend alone         {backend * 1e3:6.2f} ms")
    for name, place in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        value = latencies[int(place * (len(latencies) - 1))]
        print(f"{name} / over backend    {value * 1e3:6.2f} / {(value - backend) * 1e3:.2f} ms")


async def _send(connections: "asyncio.Queue[Connection]", due: float) -> float:
    reader, writer = connection = await connections.get()
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise OSError(head.decode())
    await reader.readexactly(int(length[1]))
    connections.put_nowait(connection)
    return time.perf_counter() - due


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
