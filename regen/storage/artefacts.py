"""Artefact folders: each is built once, under a lock, and named after the request that it answers.

A stage turns a config and input artefacts into one folder `<stage>-<fingerprint>`. The fingerprint covers everything
that can change the result: the same request finds the same folder, and any other request makes a new one.
"""

import errno
import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from regen.storage import mirror
from regen.storage.atomic import appearing_whole, locked_folder, remove_leftovers, write_atomically
from regen.storage.fingerprints import file_hash, fingerprint, plain_json
from regen.storage.mirror import MANIFEST

__all__ = [
    "Artefact",
    "DamagedArtefactError",
    "appearing_whole",
    "build",
    "expected_folder",
    "file_hash",
    "fingerprint",
    "installed_versions",
    "open_artefact",
    "write_atomically",
]

log = logging.getLogger(__name__)

RECIPE_KEYS = ("stage", "version", "config", "inputs", "libraries")

_Stat = tuple[int, int]  # size, modification time in ns
_verified: dict[Path, dict[str, _Stat]] = {}


class DamagedArtefactError(ValueError):
    """An artefact folder is incomplete, altered or has no readable manifest."""


@dataclass(frozen=True)
class Artefact:
    """A finished folder and its manifest, which records how it was made."""

    path: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that can change the content, 12 hex digits."""
        return str(self.manifest["fingerprint"])


def open_artefact(path: Path) -> Artefact:
    """Opens an artefact folder after checking every file's size and hash.

    Hashes are computed once per process; later calls compare sizes and modification times.

    Raises:
        FileNotFoundError: If there is no such folder.
        DamagedArtefactError: If the folder differs from its manifest.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such artefact folder. Run the stage that builds it, or correct the path.")
    manifest = _read_manifest(path)
    key = path.resolve()
    if _verified.get(key) != _stats(path, manifest):
        _verified.pop(key, None)
        _verify_files(path, manifest)
        _verified[key] = _stats(path, manifest)
    return Artefact(path, manifest)


def build(
    stage: str,
    *,
    root: Path,
    config: Mapping[str, Any],
    make: Callable[[Path], Mapping[str, int]],
    inputs: Mapping[str, str] | None = None,
    libraries: Sequence[str] = (),
    version: int = 1,
    force: bool = False,
) -> Artefact:
    """Returns the artefact of a request; builds it if there is no intact one.

    Args:
        stage: Name of the stage, first part of the folder's name.
        root: Folder that holds all artefacts.
        config: The part of the config that this stage depends on, as plain JSON values.
        make: Writes the files into the folder that it gets, and returns row counts.
        inputs: Fingerprint or file hash of each input, by its name.
        libraries: Distributions whose versions can change the result.
        version: Of the stage's own code; raise it when the same config starts to give other files.
        force: Whether to build even if there is an intact artefact.

    Raises:
        TypeError, ValueError: If `config` is not plain JSON; see `fingerprint`.
        ModuleNotFoundError: If a distribution in `libraries` is not installed.
        ValueError: If `$REGEN_MIRROR` is set and cannot be reached. An artefact that was built is kept.
        OSError: If the disk is full. Other errors of `make` pass through with a note.
    """
    recipe = _recipe(stage, config, inputs or {}, libraries, version)
    folder = root / f"{stage}-{fingerprint(recipe)}"
    if not force and (found := _reusable(folder, recipe, warn=False)):
        return found
    with locked_folder(folder):
        if not force and (found := _reusable(folder, recipe, warn=True)):
            return found
        if not force and mirror.fetch(folder) and (found := _reusable(folder, recipe, warn=True)):
            return found
        built = _build_locked(folder, recipe, make)
        mirror.push(folder)
        return built


def expected_folder(
    root: Path,
    *,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    libraries: Sequence[str],
    version: int,
) -> Path:
    """Folder in which `build` puts the artefact of a request. The arguments are those of `build`."""
    return root / f"{stage}-{fingerprint(_recipe(stage, config, inputs, libraries, version))}"


def _recipe(
    stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], libraries: Sequence[str], version: int
) -> dict[str, Any]:
    return {
        "stage": stage,
        "version": version,
        "config": plain_json(config, "config"),
        "inputs": plain_json(inputs, "inputs"),
        "libraries": installed_versions(libraries),
    }


def installed_versions(distributions: Sequence[str]) -> dict[str, str]:
    """Version of each distribution, without a local suffix such as `+cpu`.

    Raises:
        ModuleNotFoundError: If one is not installed.
    """
    return {name: _installed_version(name) for name in distributions}


def _installed_version(distribution: str) -> str:
    try:
        return metadata.version(distribution).partition("+")[0]
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(f"'{distribution}' is not installed. Run: pip install {distribution}") from None


def _reusable(folder: Path, recipe: Mapping[str, Any], *, warn: bool) -> Artefact | None:
    """Returns the artefact in a folder if it is intact and answers the request."""
    try:
        artefact = open_artefact(folder)
        if artefact.fingerprint != fingerprint(recipe):
            raise DamagedArtefactError(f"{folder}: the manifest is that of {artefact.fingerprint}.")
    except FileNotFoundError:
        return None
    except (DamagedArtefactError, OSError) as problem:
        if warn:
            log.warning("%s: damaged artefact, building it anew: %s", recipe["stage"], problem)
        return None
    log.info("%s: reused %s", recipe["stage"], folder)
    return artefact


def _build_locked(folder: Path, recipe: dict[str, Any], make: Callable[[Path], Mapping[str, int]]) -> Artefact:
    start = time.monotonic()
    remove_leftovers(folder)
    try:
        with appearing_whole(folder) as partial:
            manifest = _manifest(partial, recipe, counts=make(partial))
            text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            (partial / MANIFEST).write_text(text, encoding="utf-8")
    except BaseException as error:
        if _is_disk_full(error):
            raise _disk_full(folder) from error
        error.add_note(f"while building {folder}; the unfinished build was removed")
        raise
    _verified[folder.resolve()] = _stats(folder, manifest)
    log.info("%s: built %s in %.1f s", recipe["stage"], folder, time.monotonic() - start)
    return Artefact(folder, manifest)


def _manifest(partial: Path, recipe: dict[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    return {
        **recipe,
        "fingerprint": fingerprint(recipe),
        "counts": {name: int(count) for name, count in counts.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_with": {"python": platform.python_version(), "regen": _own_version()},
        "files": {
            path.relative_to(partial).as_posix(): {"size": path.stat().st_size, "sha256": file_hash(path)}
            for path in files
        },
    }


def _own_version() -> str:
    try:
        return metadata.version("regen")
    except metadata.PackageNotFoundError:
        return "not installed"


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        expected = fingerprint({key: manifest[key] for key in RECIPE_KEYS})
        for entry in manifest["files"].values():
            int(entry["size"]), str(entry["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtefactError(f"{path / MANIFEST}: not a readable manifest ({error!r}).") from error
    if manifest.get("fingerprint") != expected:
        raise DamagedArtefactError(f"{path / MANIFEST}: altered; its recipe does not have its fingerprint.")
    return dict(manifest)


def _verify_files(path: Path, manifest: Mapping[str, Any]) -> None:
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise DamagedArtefactError(f"{file}: missing. Delete the folder or run its stage again.")
        if (size := file.stat().st_size) != entry["size"]:
            raise DamagedArtefactError(f"{file}: {size:,} bytes instead of {entry['size']:,}. Run its stage again.")
        if file_hash(file) != entry["sha256"]:
            raise DamagedArtefactError(f"{file}: its content changed after it was built. Run its stage again.")


def _stats(path: Path, manifest: Mapping[str, Any]) -> dict[str, _Stat]:
    """Size and modification time of each file in the manifest that exists."""
    stats = {name: (path / name).stat() for name in manifest["files"] if (path / name).is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _is_disk_full(error: BaseException) -> bool:
    """Whether the disk is full; some libraries report it by an error class of their own."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "no space left on device" in str(error).lower()


def _disk_full(folder: Path) -> OSError:
    free = shutil.disk_usage(folder.parent).free / 2**30
    return OSError(
        errno.ENOSPC,
        f"disk full while building {folder}. The unfinished build was removed ({free:.1f} GiB are free now in "
        f"{folder.parent}); nothing already built was lost. Free some space or set paths.data_dir to a larger disk.",
    )
