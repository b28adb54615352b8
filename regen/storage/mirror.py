"""A second home of artefacts that all machines reach: any fsspec path in `$REGEN_MIRROR`, such as s3://bucket/regen.

What one machine built, another fetches instead of building it. Stages work on local files, which libraries can map into
memory; the mirror holds whole folders of them, each with its manifest last, so that half an upload is none.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

VARIABLE = "REGEN_MIRROR"
MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


def fetch(folder: Path) -> bool:
    """Brings an artefact from the mirror to its folder; False where there is no mirror, or it has no such artefact.

    The files are not checked here. The caller holds the artefact's lock.

    Raises:
        ValueError: If the mirror cannot be reached.
    """
    if (place := _place(folder.name)) is None:
        return False
    files, remote = place
    partial = folder.with_name(f".{folder.name}.partial-fetched")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if not files.exists(f"{remote}/{MANIFEST}"):
            return False
        manifest = files.cat_file(f"{remote}/{MANIFEST}")
        for name in tqdm(_names(manifest), desc=f"fetch {folder.name}", unit="file"):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{remote}/{name}", str(partial / name))
        (partial / MANIFEST).write_bytes(manifest)
    except FileNotFoundError as error:
        logger.warning("%s is incomplete (%s), so it is built here.", remote, error)
        shutil.rmtree(partial, ignore_errors=True)
        return False
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _unreachable(error) from error
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    logger.info("fetched %s from %s", folder.name, os.environ[VARIABLE])
    return True


def push(folder: Path) -> None:
    """Copies a finished artefact to the mirror, where there is one; its manifest goes last.

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
    """The mirror's file system and an artefact's folder there."""
    if not (url := os.environ.get(VARIABLE)):
        return None
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise _unreachable(error) from error
    return files, f"{root.rstrip('/')}/{name}"


def _names(manifest: bytes) -> list[str]:
    """Files of an artefact, each inside its folder.

    Raises:
        ValueError: If one would lie elsewhere.
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
