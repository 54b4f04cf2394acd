"""To and from the Hugging Face Hub: PEFT's layout, our manifest beside it, and a model card.

A revision is pinned by its commit before anything is read, so that what was checked is what is
taken. Nothing here runs while serving; the Hub is a place to carry adapters to and from.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_registry.adapter import AdapterVersion
from model_registry.errors import InvalidAdapterError, RegistryUnavailableError
from model_registry.portable import MANIFEST_FILE, RECORD_FILE
from model_registry.staging import CONFIG, WEIGHTS

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD_FILE = "README.md"


def download(repository: str, revision: str | None, destination: Path, *, token: str | None) -> str:
    """Fetch the files of an adapter repository into a folder of ours; returns the commit.

    Raises:
        RegistryUnavailableError: The Hub does not give them.
        InvalidAdapterError: The repository holds no adapter.
    """
    from huggingface_hub import (
        HfApi,
        hf_hub_download,  # pyright: ignore[reportUnknownVariableType]
    )
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        info = HfApi(token=token).model_info(repository, revision=revision)
        commit = info.sha or ""
        names = {sibling.rfilename for sibling in info.siblings or ()}
        for name in (WEIGHTS, CONFIG):
            if name not in names:
                raise InvalidAdapterError("missing_file", f"{repository} holds no {name}")
        for name in (WEIGHTS, CONFIG, MANIFEST_FILE, RECORD_FILE):
            if name in names:
                path = hf_hub_download(repository, name, revision=commit, token=token)
                # The Hub's cache is links; ours takes plain files only.
                shutil.copyfile(path, destination / name)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        first = str(error).strip().splitlines()
        raise RegistryUnavailableError(
            f"{repository} on the Hub", first[0] if first else ""
        ) from error
    return commit


def upload(
    folder: Path, version: AdapterVersion, repository: str, *, api: "HfApi", private: bool
) -> str:
    """Send an exported folder with a card as one commit, tagged; returns the commit."""
    (folder / CARD_FILE).write_text(model_card(version), encoding="utf-8")
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=f"{version.ref} {version.digest}",
    )
    api.create_tag(repository, tag=f"v{version.number}", revision=commit.oid, exist_ok=True)
    return commit.oid


def model_card(version: AdapterVersion) -> str:
    """README.md with the front matter that the Hub reads."""
    manifest = version.manifest
    adapter = manifest.adapter
    targets = ", ".join(adapter.target_modules)
    front: dict[str, Any] = {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "multiple-choice-questions"],
        "language": list(manifest.languages),
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items()), "---", ""]
    lines += [f"# {version.name}, version {version.number}", ""]
    if version.description:
        lines += [version.description, ""]
    lines += [
        f"- Digest of the manifest: `{version.digest}`",
        f"- Prompt format: `{manifest.prompt_format}`",
        f"- Precision of the base in training: `{manifest.precision}`",
        f"- Base: architecture `{manifest.base.arch}`, weights `{manifest.base.weights}`",
        f"- LoRA: rank {adapter.r}, alpha {adapter.lora_alpha:g}, "
        f"{'rank-stabilised, ' if adapter.use_rslora else ''}on {targets}",
        "",
    ]
    if manifest.data_statement:
        lines += ["## Data", "", manifest.data_statement.strip(), ""]
    for title, record in (("Evaluation", manifest.evaluation), ("Training", manifest.training)):
        if record:
            lines += [f"## {title}", "", "```json", _pretty(record), "```", ""]
    return "\n".join(lines)


def _pretty(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True)
