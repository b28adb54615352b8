"""A shared copy of the artefacts that all machines reach: any fsspec path in `$REGEN_MIRROR`, such as s3://bucket/regen.

A machine fetches an artefact that another one built. Stages read local files, so the mirror holds whole folders. The
manifest is uploaded last, so that an interrupted upload is not taken for an artefact.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from tqdm import tqdm

from regen.storage.atomic import appearing_whole

VARIABLE = "REGEN_MIRROR"
MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


def fetch(folder: Path) -> bool:
    """Downloads an artefact from the mirror; the caller holds the artefact's lock and checks the files.

    Returns:
        False if there is no mirror, or no complete artefact of that name in it.

    Raises:
        ValueError: If the mirror cannot be reached.
    """
    if (place := _place(folder.name)) is None:
        return False
    files, remote = place
    try:
        if not files.exists(f"{remote}/{MANIFEST}"):
            return False
        with appearing_whole(folder) as partial:
            manifest = files.cat_file(f"{remote}/{MANIFEST}")
            for name in tqdm(_names(manifest), desc=f"fetch {folder.name}", unit="file"):
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                files.get_file(f"{remote}/{name}", str(partial / name))
            (partial / MANIFEST).write_bytes(manifest)
    except FileNotFoundError as error:
        logger.warning("%s is incomplete (%s), so it is built here.", remote, error)
        return False
    except Exception as error:
        raise _unreachable(error) from error
    logger.info("fetched %s from %s", folder.name, os.environ[VARIABLE])
    return True


def push(folder: Path) -> None:
    """Uploads a finished artefact to the mirror, if there is one; the manifest last.

    Raises:
        ValueError: If the mirror cannot be written to.
    """
    if (place := _place(folder.name)) is None:
        return
    files, remote = place
    try:
        if files.exists(f"{remote}/{MANIFEST}"):
            files.rm_file(f"{remote}/{MANIFEST}")
        names = [*_names((folder / MANIFEST).read_bytes()), MANIFEST]
        for name in tqdm(names, desc=f"push {folder.name}", unit="file"):
            files.makedirs(f"{remote}/{name}".rpartition("/")[0], exist_ok=True)
            files.put_file(str(folder / name), f"{remote}/{name}")
    except Exception as error:
        raise _unreachable(error) from error


def _place(name: str) -> tuple[Any, str] | None:
    """File system of the mirror and an artefact's folder in it; None if there is no mirror."""
    if not (url := os.environ.get(VARIABLE)):
        return None
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise _unreachable(error) from error
    return files, f"{root.rstrip('/')}/{name}"


def _names(manifest: bytes) -> list[str]:
    """Names of an artefact's files.

    Raises:
        ValueError: If one is outside the artefact's folder.
    """
    names = list(json.loads(manifest)["files"])
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"its manifest names {name!r}")
    return names


def _unreachable(error: Exception) -> ValueError:
    return ValueError(
        f"{VARIABLE}={os.environ[VARIABLE]}: {error}. Give a path that fsspec reads and writes, or unset the variable."
    )
