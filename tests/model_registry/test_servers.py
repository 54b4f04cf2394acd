"""The same registry on PostgreSQL and S3, with its explicit migration."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from model_registry import ModelRegistry
from model_registry.errors import RegistryUnavailableError, SchemaError
from model_registry.index.database import Database
from model_registry.index.migrate import migrate
from model_registry.index.tables import metadata
from tests.model_registry.adapter_files import publish, write_adapter


def test_what_works_in_a_directory_works_on_servers(
    server_registry: ModelRegistry, tmp_path: Path
) -> None:
    first = publish(server_registry, write_adapter(tmp_path / "1", b"\x01"))
    second = publish(server_registry, write_adapter(tmp_path / "2", b"\x02"))
    assert publish(server_registry, tmp_path / "1") == first
    server_registry.set_alias("mcq-vi", "production", 1, expected=0)
    snapshot = server_registry.snapshot()
    for subject in (server_registry, snapshot):
        assert subject.resolve("mcq-vi") == first
        assert subject.resolve("mcq-vi/2") == second
    assert server_registry.verify("mcq-vi/2") == second
    files = server_registry.fetch(first)
    original = (tmp_path / "1" / "adapter_model.safetensors").read_bytes()
    assert (files / "adapter_model.safetensors").read_bytes() == original
    server_registry.set_alias("mcq-vi", "production", 2)
    assert server_registry.rollback_alias("mcq-vi", "production").number == 1
    assert server_registry.snapshot(snapshot).aliases == {"mcq-vi": {"production": 1}}


def test_a_database_is_migrated_explicitly(postgres_url: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    Path(store).mkdir()
    with pytest.raises(SchemaError, match="migrate"):
        ModelRegistry.open(postgres_url, store)
    migrate(postgres_url)
    migrate(postgres_url)
    ModelRegistry.open(postgres_url, store).close()
    migrate(postgres_url, "base")
    with pytest.raises(SchemaError):
        ModelRegistry.open(postgres_url, store)


def test_migrations_arrive_at_the_declared_tables(postgres_url: str, tmp_path: Path) -> None:
    migrated = f"sqlite:///{tmp_path}/migrated.sqlite"
    for url in (postgres_url, migrated):
        migrate(url)
        database = Database.at(url)
        with database.read() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        database.close()
    ModelRegistry.open(tmp_path / "fresh").close()
    shapes: list[list[str]] = []
    for path in (tmp_path / "migrated.sqlite", tmp_path / "fresh" / "registry.sqlite"):
        engine = sa.create_engine(f"sqlite:///{path}")
        with engine.connect() as connection:
            inspector = sa.inspect(connection)
            shapes.append(
                sorted(
                    f"{table}.{column['name']} {column['type']} {column['nullable']}"
                    for table in inspector.get_table_names()
                    for column in inspector.get_columns(table)
                )
            )
            assert connection.execute(sa.text("SELECT revision FROM registry_state")).all() == [
                (0,)
            ]
        engine.dispose()
    assert shapes[0] == shapes[1]


def test_an_index_of_another_schema_is_refused(tmp_path: Path) -> None:
    ModelRegistry.open(tmp_path / "r").close()
    engine = sa.create_engine(f"sqlite:///{tmp_path}/r/registry.sqlite")
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SchemaError, match="9999"):
        ModelRegistry.open(tmp_path / "r")


def test_a_database_that_is_down_is_unavailable_and_keeps_its_password(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnavailableError) as error:
        ModelRegistry.open("postgresql://mcq:geheim@127.0.0.1:9/none", str(tmp_path))
    assert "geheim" not in str(error.value)
