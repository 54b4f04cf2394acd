"""Every setting of the service, read once from the environment in `__main__` and passed down."""

import difflib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from mcq.errors import McqError
from model_registry.bases.cache import default_cache_dir

ENV_PREFIX = "MCQ_"
SECRETS = frozenset({"admin_token"})
"""Settings whose values are never shown."""


class ConfigError(McqError, ValueError):
    """A setting is unknown or has a value that it cannot have."""


class ServiceConfig(BaseSettings):
    """Every setting of the service; `MCQ_<FIELD>` in the environment."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` for every interface."""

    port: int = 8000
    """Port to listen on; 0 takes a free one and logs it."""

    backend: Literal["engine", "reference", "echo"] = "engine"
    """What runs the model: our engine, transformers' `generate` (slow, the oracle), or `echo`,
    which needs no model and answers with made-up questions."""

    base_model: str = "embedded:qwen2.5-coder-1.5b-instruct"
    """Source of the base model: `hf:ORG/NAME`, a directory, a GGUF file, or `embedded:NAME`."""

    precision: Literal["auto", "fp32", "bf16", "fp16", "nf4", "dequantized"] = "auto"
    """How the base is held. `auto` is bf16, or fp16 where the model's files are; the engine on a
    CPU computes with its layers rounded to 8 bits, several times faster (`bf16` and `fp16` keep
    them exact). `nf4` and `dequantized` (NF4 turned back into bf16) are for adapters trained by
    QLoRA."""

    registry: str = "var/registry"
    """The adapter registry: a directory, or the URL of its index (`postgresql://…`)."""

    registry_store: str | None = None
    """Where the registry's files are when its index is a database: `s3://BUCKET/PREFIX` or a
    directory."""

    registry_poll_s: PositiveFloat = 2.0
    """How often new versions and moved aliases are looked for, in seconds."""

    admin_token: Annotated[SecretStr, Field(min_length=16)] | None = None
    """Who sends it as `Authorization: Bearer` may change the registry over HTTP; unset, nobody
    may. At least 16 characters."""

    default_adapter: str | None = None
    """What a request without `adapter` gets; the bare base model if unset."""

    verifier: str | None = "mcq-verifier"
    """The adapter that judges candidates of `balanced` and `best`; where the registry has none of
    that name for this base, or if unset, the bare base reads them."""

    max_adapters: PositiveInt = 32
    """How many adapters stay loaded at once; the one idle longest goes first."""

    max_merged: NonNegativeInt = 1
    """How many merged variants stay in memory at once, each as large as the base model; the one
    idle longest goes first. 0: none is served."""

    cache_dir: Path | None = None
    """Where converted base models are kept; the user's cache directory if unset."""

    min_context_words: PositiveInt = 20
    """Shorter contexts are refused: nothing worth asking fits in them."""

    max_context_words: PositiveInt = 1500
    """Longer contexts are refused; the base model's window may allow less."""

    max_questions: PositiveInt = 20
    """The most questions that one request may ask for."""

    candidates_per_question: PositiveInt = 4
    """How many completions may be drawn for one question before it counts as a shortfall."""

    candidates_balanced: PositiveInt = 8
    """How many completions are begun for one question of `quality: balanced`; those that cannot be
    verified end after a few words."""

    candidates_best: PositiveInt = 16
    """How many completions are begun for one question of `quality: best`."""

    request_timeout_s: PositiveFloat = 300.0
    """After this many seconds a request ends with what it has."""

    keep_alive_s: PositiveFloat = 15.0
    """A comment is sent into a silent event stream this often, so that proxies keep it open."""

    drain_timeout_s: NonNegativeFloat = 300.0
    """How long running requests may go on after SIGTERM."""

    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or lines for a terminal."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe messages that are logged."""

    @property
    def registry_state_file(self) -> Path | None:
        """Where the last known state of a registry on servers is kept, so that a replica can start
        while they are down; a directory needs none."""
        if "://" not in self.registry or self.registry.startswith("file://"):
            return None
        name = hashlib.sha256(self.registry.encode()).hexdigest()[:16]
        return (self.cache_dir or default_cache_dir()) / "registry-state" / f"{name}.json"


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse misspelt settings, which would otherwise be ignored in silence.

    Raises:
        ConfigError: A variable begins with `MCQ_` and is no setting.
    """
    known = {f"{ENV_PREFIX}{name.upper()}" for name in ServiceConfig.model_fields}
    for name in environment:
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; see docs/configuration.md"
            raise ConfigError(f"{name} is not a setting of the service{hint}")
