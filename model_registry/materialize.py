"""Adapters as the folder that vLLM's filesystem resolver reads: one directory per engine name.

vLLM wants `base_model_name_or_path` to be its own name of the base, letter by letter, so the
configuration is a rewritten copy; the original keeps its digest. A directory appears whole or not
at all.
"""

import json
import shutil
from pathlib import Path

from model_registry.adapter import AdapterVersion
from model_registry.errors import InvalidAdapterError, RegistryUnavailableError
from model_registry.staging import CONFIG, WEIGHTS, staging_directory

_MARK = ".materialized.json"


def materialize(
    version: AdapterVersion, files: Path, destination: Path, base_model_name: str | None
) -> Path:
    """Write `destination/<engine name>/`; what is there already is left alone.

    Raises:
        InvalidAdapterError: vLLM cannot serve this adapter (`not_for_vllm`).
    """
    settings = version.manifest.adapter
    if settings.modules_to_save:
        raise InvalidAdapterError(
            "not_for_vllm", f"{version.ref} stores whole modules; merge it and serve the variant"
        )
    if settings.rank_pattern or settings.alpha_pattern:
        raise InvalidAdapterError(
            "not_for_vllm", f"{version.ref} has ranks per module; merge it and serve the variant"
        )
    target = destination / version.engine_name
    config = json.loads((files / CONFIG).read_text())
    if base_model_name is not None:
        config["base_model_name_or_path"] = base_model_name
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    if _is_there(target, version, text):
        return target
    with staging_directory(destination / ".staging") as staging:
        aside = staging / version.engine_name
        try:
            aside.mkdir()
            shutil.copyfile(files / WEIGHTS, aside / WEIGHTS)
            (aside / CONFIG).write_text(text)
            (aside / _MARK).write_text(json.dumps({"digest": version.digest}) + "\n")
            if target.exists():
                target.rename(staging / "old")
            aside.rename(target)
        except OSError as error:
            detail = error.strerror or str(error)
            raise RegistryUnavailableError(f"The folder {destination}", detail) from error
    return target


def prune(destination: Path, keep: set[str]) -> list[str]:
    """Remove directories of ours that are no longer wanted; strangers' are left alone."""
    removed: list[str] = []
    for path in sorted(destination.iterdir()) if destination.is_dir() else ():
        if path.name not in keep and (path / _MARK).is_file():
            shutil.rmtree(path)
            removed.append(path.name)
    return removed


def _is_there(target: Path, version: AdapterVersion, config: str) -> bool:
    try:
        mark = json.loads((target / _MARK).read_text())
        same = mark == {"digest": version.digest} and (target / CONFIG).read_text() == config
        size = version.manifest.files[WEIGHTS].size
        return same and (target / WEIGHTS).stat().st_size == size
    except (OSError, ValueError):
        return False
