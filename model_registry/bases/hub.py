"""Fetch a base model from the Hugging Face Hub: configuration, tokenizer, safetensors weights."""

from pathlib import Path

from model_registry.bases.errors import DownloadError
from model_registry.bases.source import BaseModelSource

# No code and no pickles: `trust_remote_code` is never used, so neither is worth the download.
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]


def fetch_from_hub(source: BaseModelSource) -> Path:
    """Download what is missing of the model; offline, what was downloaded before is used.

    Raises:
        DownloadError: There is no such model or revision, it is gated, or the Hub is out of reach.
    """
    from httpx import HTTPError
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def failure(reason: str, remedy: str) -> DownloadError:
        return DownloadError(str(source), reason, remedy)

    try:
        folder = snapshot_download(
            source.location, revision=source.revision, allow_patterns=_WANTED
        )
    except GatedRepoError as error:
        raise failure("access is gated", "accept its terms on the Hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise failure("no such revision", "check what follows the @") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise failure("no such model", "check ORG/NAME; a private one needs HF_TOKEN") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, ConnectionError) as error:
        raise failure(
            "the Hub cannot be reached and the model was not downloaded before",
            "check the network and HF_ENDPOINT, or use `embedded:NAME` or a directory",
        ) from error
    return Path(folder)
