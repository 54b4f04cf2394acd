"""A real PostgreSQL and a real S3 server on loopback, for as long as the tests run."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_REGION": "us-east-1",
}


class ServerMissingError(Exception):
    """The server cannot be started on this machine; the message says why."""


def postgres_binaries() -> Path:
    """The newest installed PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise ServerMissingError("PostgreSQL is not installed (Debian package `postgresql`)")
    return Path(on_path).resolve().parent


@contextmanager
def run_postgres() -> Generator[str]:
    """URL of a database server with its data in a temporary directory."""
    binaries = postgres_binaries()
    directory = Path(tempfile.mkdtemp(prefix="mcq-postgres-"))
    prefix = _as_other_user(directory)
    data, port = directory / "data", free_port()
    try:
        initdb = [*prefix, str(binaries / "initdb"), "-D", str(data), "-U", "mcq", "-A", "trust",
                  "--no-sync", "-E", "UTF8", "--locale=C"]  # fmt: skip
        _run(initdb)
        options = (
            f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        )
        log = directory / "log"
        control = [*prefix, str(binaries / "pg_ctl"), "-D", str(data), "-l", str(log), "-w"]
        _run([*control, "-o", options, "start"])
        try:
            yield f"postgresql://mcq@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, check=False)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def run_s3(bucket: str) -> Generator[dict[str, str]]:
    """The environment that points obstore at a fresh server with one bucket."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(server, port)
        request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true"}
    finally:
        server.terminate()
        server.wait(timeout=10)


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(server: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ServerMissingError("moto's server does not start (PyPI package `moto[server]`)")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise ServerMissingError("moto's server does not answer")


def _as_other_user(directory: Path) -> list[str]:
    """PostgreSQL refuses to run as root; then it gets a user of its own."""
    if os.geteuid() != 0:
        return []
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(directory, user.pw_uid, user.pw_gid)
        return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    raise ServerMissingError("PostgreSQL refuses to run as root and there is no other user")


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd="/", timeout=60
        )
    except OSError as error:
        raise ServerMissingError(f"{command[0]}: {error}") from error
    if result.returncode != 0:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:]
        raise ServerMissingError(f"{Path(command[-1]).name}: {' '.join(last)}")
