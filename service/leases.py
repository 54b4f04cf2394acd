"""Tells the registry what this replica has loaded: garbage collection spares it, people see it."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable

from mcq.errors import McqError
from model_registry.adapter import AdapterVersion
from model_registry.follow import RegistryFollower

log = logging.getLogger("mcq.leases")

_TTL_S = 300.0
_RENEWAL_S = _TTL_S / 3
"""One lost renewal must not cost the lease."""


class LeaseKeeper:
    """Renews the leases of a replica for as long as it runs; an outage of the registry only delays
    it."""

    def __init__(
        self,
        follower: RegistryFollower,
        held: Callable[[], Iterable[AdapterVersion]],
        interval_s: float,
    ) -> None:
        self._follower = follower
        self._held = held
        self._interval_s = interval_s
        self._said: frozenset[str] = frozenset()
        self._due = 0.0
        self._has_failed = False
        self.replica = f"{socket.gethostname()}-{os.getpid()}"

    async def run(self) -> None:
        """Look every `interval_s` seconds; write when something changed, or a lease grows old."""
        while True:
            versions = {str(version.ref): version for version in self._held()}
            is_old = bool(versions) and time.monotonic() >= self._due
            if versions.keys() != self._said or is_old:
                await self._say(versions.values())
            await asyncio.sleep(self._interval_s)

    async def release(self) -> None:
        """Nothing is held any more."""
        if self._said:
            await self._say(())

    async def _say(self, versions: Iterable[AdapterVersion]) -> None:
        held = list(versions)
        try:
            await asyncio.to_thread(self._renew, held)
        except McqError as error:
            # A registry on a read-only volume has no leases, and nobody collects garbage there.
            log.log(logging.DEBUG if self._has_failed else logging.WARNING, "no leases: %s", error)
            self._has_failed = True
        except Exception:
            log.exception("the leases could not be renewed")
            self._has_failed = True
        else:
            self._has_failed = False
        # After a failure too: an outage is no reason to ask every two seconds.
        self._said = frozenset(str(version.ref) for version in held)
        self._due = time.monotonic() + (_RENEWAL_S / 10 if self._has_failed else _RENEWAL_S)

    def _renew(self, held: list[AdapterVersion]) -> None:
        self._follower.registry.renew_leases(self.replica, held, ttl_s=_TTL_S)
