"""Runs one operation and kills itself, as `kill -9` would, before the n-th thing it does to the
outside.

    python -m tests.model_registry.killed OPERATION N DIRECTORY

What is done to the outside are writes to the store, commits of the index, and renames. Ends with
status 0 when the operation was over before its n-th effect.
"""

import os
import pathlib
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
from sqlalchemy.engine import Engine
from sqlalchemy.event import listen

from model_registry import ModelRegistry
from tests.model_registry.adapter_files import publish


class Countdown:
    """Kills the process when it has been called often enough."""

    def __init__(self, left: int) -> None:
        self._left = left

    def step(self, *_: Any) -> None:
        """One effect is about to happen."""
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a step before it."""

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.step()
            return function(*arguments, **options)

        return wrapped


def run(operation: str, directory: Path) -> None:
    """The operation, in a registry that is prepared for it."""
    with ModelRegistry.open(directory / "registry", actor="killed") as registry:
        _operate(registry, operation, directory)


def _operate(registry: ModelRegistry, operation: str, directory: Path) -> None:
    match operation:
        case "publish":
            publish(registry, directory / "new")
        case "alias":
            registry.set_alias("mcq-vi", "production", 2)
        case "gc":
            registry.collect_garbage(grace_s=0)
        case "fetch":
            registry.fetch(registry.resolve("mcq-vi/1"))
        case "merge":
            registry.merge("mcq-vi/1", directory / "base", dtype="bf16")
        case _:
            raise ValueError(operation)


def run_killed(operation: str, count: int, directory: Path) -> None:
    """Arm the countdown and run; to be called in a process of its own."""
    countdown = Countdown(count)
    obstore.put = countdown.before(obstore.put)
    obstore.delete = countdown.before(obstore.delete)
    os.link = countdown.before(os.link)
    os.fsync = countdown.before(os.fsync)
    pathlib.Path.rename = countdown.before(pathlib.Path.rename)
    pathlib.Path.replace = countdown.before(pathlib.Path.replace)
    listen(Engine, "commit", countdown.step)
    run(operation, directory)
