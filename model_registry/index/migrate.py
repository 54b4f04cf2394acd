"""The explicit step that brings a database to this program's schema.

Never run by opening a registry.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

from model_registry.errors import RegistryUnavailableError
from model_registry.index.database import Database

_SCRIPTS = Path(__file__).parent.parent / "migrations"


def migrate(url: str, revision: str = "head") -> None:
    """Upgrade (or go back) to a revision; doing it again changes nothing.

    Raises:
        RegistryUnavailableError: The database cannot be reached, or refuses the change.
    """
    database = Database.unchecked(url)
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    try:
        with database.schema_change() as connection:
            config.attributes["connection"] = connection
            if revision == "base" or revision.startswith("-"):
                command.downgrade(config, revision)
            else:
                command.upgrade(config, revision)
    except DBAPIError as error:
        detail = str(error.orig).strip().splitlines()[0]
        raise RegistryUnavailableError(f"The index {database.label}", detail) from error
    finally:
        database.close()
