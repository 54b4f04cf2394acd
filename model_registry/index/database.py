"""Connections and transactions. Writers take turns; readers see whole transactions only."""

import datetime
import os
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.event import listens_for
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as SaTimeoutError

from model_registry.canonical import canonical_json, sha256_digest
from model_registry.errors import RegistryUnavailableError, SchemaError
from model_registry.index import tables

INDEX_FILE = "registry.sqlite"
_BUSY_TIMEOUT_S = 30
_MIGRATION_LOCK = 7_266_352


def now(offset_s: float = 0) -> str:
    """UTC as text that sorts like time."""
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset_s)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Transaction:
    """One open write transaction; all of it happens or none of it."""

    connection: Connection
    revision: int
    actor: str

    def execute(self, statement: sa.Executable) -> sa.CursorResult[Any]:
        """Run one statement."""
        return self.connection.execute(statement)

    def record(self, action: str, subject: str, detail: Mapping[str, object]) -> None:
        """Write a line of the audit log, chained to the line before."""
        last = self.execute(
            sa.select(tables.audit.c.digest).order_by(tables.audit.c.id.desc()).limit(1)
        ).scalar()
        row: dict[str, object] = {
            "at": now(),
            "actor": self.actor,
            "action": action,
            "subject": subject,
            "detail": canonical_json(detail).decode(),
        }
        row["digest"] = audit_digest(last, row)
        self.execute(sa.insert(tables.audit).values(row))


def audit_digest(previous: str | None, row: Mapping[str, object]) -> str:
    """The digest a line of the audit log must have after the given one."""
    fields = {key: row[key] for key in ("at", "actor", "action", "subject", "detail")}
    return sha256_digest(canonical_json([previous or "", fields]))


class Database:
    """The index behind one URL."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label

    @classmethod
    def in_directory(cls, directory: Path) -> "Database":
        """The SQLite index of a plain directory; created whole on first use."""
        path = directory / INDEX_FILE
        if not path.exists():
            _create_sqlite(path)
        writable = os.access(path, os.W_OK) and os.access(directory, os.W_OK)
        # A read-only volume cannot hold SQLite's lock files, and its content cannot change either.
        mode = "" if writable else "?immutable=1"
        database = cls(_sqlite_engine(f"file:{_uri_path(path)}{mode}"), str(path))
        return database._checked()

    @classmethod
    def at(cls, url: str) -> "Database":
        """An index on a server (or a SQLite file by URL), migrated beforehand."""
        database = cls.unchecked(url)
        return database._checked()

    @classmethod
    def unchecked(cls, url: str) -> "Database":
        """As `at`, for the migration itself."""
        parsed = sa.engine.make_url(url)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        label = parsed.render_as_string(hide_password=True)
        if parsed.get_backend_name() == "sqlite":
            path = Path(parsed.database or "")
            return cls(_sqlite_engine(f"file:{_uri_path(path)}"), label)
        engine = sa.create_engine(
            parsed, pool_pre_ping=True, pool_recycle=600, connect_args={"connect_timeout": 5}
        )
        return cls(engine, label)

    def _checked(self) -> "Database":
        try:
            self.check_schema()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def label(self) -> str:
        """The URL without its password, for messages."""
        return self._label

    @contextmanager
    def schema_change(self) -> Generator[Connection]:
        """One transaction for a migration; two at a time would wait for each other."""
        with self._translated(), self._engine.connect() as raw:
            connection = raw.execution_options(registry_write=True)
            with connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
                yield connection

    def close(self) -> None:
        """Give connections back."""
        self._engine.dispose()

    def check_schema(self) -> None:
        """Refuse an index that this program's statements do not fit."""
        with self.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                raise SchemaError(self._label, None, tables.SCHEMA_REVISION)
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        if found != tables.SCHEMA_REVISION:
            raise SchemaError(self._label, found, tables.SCHEMA_REVISION)

    @contextmanager
    def read(self) -> Generator[Connection]:
        """A view of one moment, however many queries it takes."""
        with self._translated(), self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def write(self, actor: str, *, visible: bool = True) -> Generator[Transaction]:
        """One write transaction; the only one at this moment, in any process.

        One that no snapshot shows (a lease, an announcement) does not count as a new revision.
        """
        with self._translated(), self._engine.connect() as raw:
            connection = raw.execution_options(registry_write=True)
            with connection.begin():
                state = tables.registry_state
                # Also without a step the row is locked, which is what makes writers take turns.
                step = state.c.revision + (1 if visible else 0)
                connection.execute(sa.update(state).values(revision=step))
                revision = connection.execute(sa.select(state.c.revision)).scalar_one()
                yield Transaction(connection, revision, actor)

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (OperationalError, InterfaceError, SaTimeoutError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            detail = str(cause).strip().splitlines()[0] if str(cause).strip() else "no reply"
            raise RegistryUnavailableError(f"The index {self._label}", detail) from error


def create_schema(connection: Connection) -> None:
    """All tables at the newest revision; what the migrations arrive at step by step."""
    tables.metadata.create_all(connection)
    connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
    connection.execute(
        sa.text("INSERT INTO alembic_version VALUES (:revision)"),
        {"revision": tables.SCHEMA_REVISION},
    )
    connection.execute(sa.insert(tables.registry_state).values(id=1, revision=0))


def _create_sqlite(path: Path) -> None:
    """Build the file aside and link it into place: two first users cannot meet half a schema."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        engine = _sqlite_engine(f"file:{_uri_path(aside)}")
        with engine.begin() as connection:
            create_schema(connection)
        engine.dispose()
        with suppress(FileExistsError):  # then somebody else was first
            os.link(aside, path)
    except OSError as error:
        detail = error.strerror or str(error)
        raise RegistryUnavailableError(f"The registry folder {path.parent}", detail) from error
    except OperationalError as error:
        raise RegistryUnavailableError(
            f"The registry folder {path.parent}", str(error.orig)
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()


def _sqlite_engine(uri: str) -> Engine:
    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=sa.pool.QueuePool)

    @listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        write = connection.get_execution_options().get("registry_write", False)
        # IMMEDIATE takes the write lock at once; upgrading a read lock later could deadlock.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _uri_path(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
