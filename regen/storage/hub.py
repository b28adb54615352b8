"""Uploads to the Hugging Face hub; the token comes from `HF_TOKEN` or the hub's own login."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError


def push(folder: Path, repository: str, *, kind: str, private: bool) -> str:
    """Uploads a folder to a repository, which is created if it does not exist.

    Args:
        folder: The folder to upload.
        repository: OWNER/NAME.
        kind: `model` or `dataset`.
        private: Whether a new repository is private.

    Returns:
        The repository's URL.

    Raises:
        ValueError: If the hub refuses the upload.
    """
    api = HfApi()
    try:
        url = api.create_repo(repository, repo_type=kind, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type=kind, commit_message="Written by regen")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        raise ValueError(
            f"push_to={repository}: the hub did not take it ({error}). Set HF_TOKEN to a token that may write there."
        ) from error
    return str(url)
