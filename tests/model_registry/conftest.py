"""Fixtures of the registry's tests: plain directories, and PostgreSQL + S3 for those that ask."""

import itertools
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import sqlalchemy as sa

from model_registry import ModelRegistry
from model_registry.index.migrate import migrate
from tests.model_registry.adapter_files import write_adapter
from tests.model_registry.servers import ServerMissingError, run_postgres, run_s3

_BUCKET = "registry"
_databases = itertools.count(1)


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """A fresh registry in a plain directory."""
    return ModelRegistry.open(tmp_path / "registry", actor="tester")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter directory."""
    return write_adapter(tmp_path / "adapter")


@pytest.fixture(scope="session")
def postgres_server() -> Generator[str]:
    """One PostgreSQL for the whole run."""
    try:
        with run_postgres() as url:
            yield url
    except ServerMissingError as error:
        _skip_loudly(f"NOT TESTED on PostgreSQL: {error}")


@pytest.fixture(scope="session")
def s3_environment() -> Generator[dict[str, str]]:
    """One S3 server for the whole run."""
    try:
        with run_s3(_BUCKET) as environment:
            yield environment
    except ServerMissingError as error:
        _skip_loudly(f"NOT TESTED on S3: {error}")


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """An empty database of its own for a test."""
    name = f"test_{next(_databases)}"
    engine = sa.create_engine(
        postgres_server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres_server.rpartition("/")[0] + f"/{name}"


@pytest.fixture
def s3_url(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of its own in the bucket, with the environment set to reach it."""
    for key, value in s3_environment.items():
        monkeypatch.setenv(key, value)
    return f"s3://{_BUCKET}/prefix-{next(_databases)}"


@pytest.fixture
def server_registry(postgres_url: str, s3_url: str, tmp_path: Path) -> Generator[ModelRegistry]:
    """A registry on PostgreSQL and S3."""
    migrate(postgres_url)
    with ModelRegistry.open(
        postgres_url, s3_url, cache_dir=tmp_path / "cache", actor="tester"
    ) as registry:
        yield registry


def _skip_loudly(message: str) -> None:
    """On the terminal at once, not only among the skips at the end."""
    print(f"\n\n*** {message} ***\n", file=sys.__stderr__)
    pytest.skip(message)
