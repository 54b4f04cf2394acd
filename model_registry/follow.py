"""A reader that keeps up with the registry by itself and outlives its outages.

The snapshot is replaced as a whole by a thread of its own; whoever reads it does no I/O. The last
good one lies on the disk, so that a replica can start while the registry is down.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from model_registry.adapter import AdapterVersion
from model_registry.errors import RegistryError, RegistryUnavailableError, SchemaError
from model_registry.snapshot import RegistrySnapshot

if TYPE_CHECKING:
    from model_registry.registry import ModelRegistry
    from model_registry.variants import MergedVariant

_log = logging.getLogger(__name__)


class RegistryFollower:
    """Holds the newest snapshot; at most `interval_s` (and one query) behind the index.

    Args:
        open_registry: Opens the registry; called again after it failed.
        state_file: Where the last good snapshot is kept; None keeps none.
        interval_s: Time between two looks, each a single small query while nothing changes.
        on_change: Called in the follower's thread with every new snapshot.
    """

    def __init__(
        self,
        open_registry: "Callable[[], ModelRegistry]",
        *,
        state_file: Path | None = None,
        interval_s: float = 2.0,
        on_change: Callable[[RegistrySnapshot], None] | None = None,
    ) -> None:
        self._open = open_registry
        self._state_file = state_file
        self._interval_s = interval_s
        self._on_change = on_change
        self._registry: ModelRegistry | None = None
        self._snapshot: RegistrySnapshot | None = None
        self._fresh_at: float | None = None
        self._error: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._refreshing = threading.Lock()

    @property
    def snapshot(self) -> RegistrySnapshot:
        """The newest known state."""
        return self._snapshot or RegistrySnapshot()

    @property
    def registry(self) -> "ModelRegistry":
        """What is followed, for what a snapshot does not hold; asking it is I/O.

        Raises:
            RegistryUnavailableError: It was never reached since the start.
        """
        if self._registry is None:
            raise RegistryUnavailableError("The registry", self._error or "it was not opened yet")
        return self._registry

    def fetch(self, version: AdapterVersion) -> Path:
        """A directory with the version's verified files; copied there the first time.

        Raises:
            RegistryUnavailableError: The registry was never reached since the start.
        """
        return self.registry.fetch(version)

    def fetch_variant(self, variant: "MergedVariant") -> Path:
        """As `fetch`, the files of merged weights."""
        return self.registry.fetch_variant(variant)

    @property
    def age_s(self) -> float | None:
        """Seconds since the snapshot was last known to be the newest; None: not since the start."""
        return None if self._fresh_at is None else time.monotonic() - self._fresh_at

    @property
    def error(self) -> str | None:
        """Why the last look failed; None when it did not."""
        return self._error

    def start(self) -> "RegistryFollower":
        """Get a first snapshot, from the registry or else from the disk, and follow from then on.

        Raises:
            RegistryUnavailableError: Neither is to be had.
        """
        if not self.refresh():
            self._snapshot = self._load()
            if self._snapshot is None:
                raise RegistryUnavailableError("The registry", self._error or "no reply")
            _log.warning("the registry is down, serving the last known snapshot: %s", self._error)
        self._thread = threading.Thread(target=self._run, name="registry-follower", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread and give connections back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        if self._registry is not None:
            self._registry.close()

    def refresh(self) -> bool:
        """Look now; False when the registry cannot be reached (the old snapshot stays)."""
        with self._refreshing:
            previous = self._snapshot
            try:
                if self._registry is None:
                    self._registry = self._open()
                snapshot = self._registry.snapshot(previous)
            except (RegistryUnavailableError, SchemaError) as error:
                if self._error is None:
                    _log.warning("the registry cannot be read: %s", error)
                self._error = str(error)
                return False
            if self._error is not None:
                _log.info("the registry can be read again")
            self._error = None
            self._fresh_at = time.monotonic()
            self._snapshot = snapshot
        if snapshot is not previous:
            self._save(snapshot)
            if self._on_change is not None:
                self._on_change(snapshot)
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self.refresh()
            except RegistryError as error:
                self._error = str(error)
            except Exception:
                # A follower that dies would leave its replica behind for good, and silently.
                _log.exception("the registry could not be followed")

    def _save(self, snapshot: RegistrySnapshot) -> None:
        if self._state_file is None:
            return
        aside = self._state_file.with_name(f".{self._state_file.name}.{os.getpid()}")
        try:
            self._state_file.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(snapshot.to_json()))
            aside.replace(self._state_file)
        except OSError as error:
            _log.warning("the snapshot cannot be kept in %s: %s", self._state_file, error)

    def _load(self) -> RegistrySnapshot | None:
        if self._state_file is None:
            return None
        try:
            return RegistrySnapshot.from_json(json.loads(self._state_file.read_text()))
        except (OSError, ValueError) as error:
            _log.warning("no last known snapshot in %s: %s", self._state_file, error)
            return None
