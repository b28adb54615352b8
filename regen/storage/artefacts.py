"""Artefact folders: built once, whole, under a lock, named by what made them.

A stage turns a config and input artefacts into one folder `<stage>-<fingerprint>`. The fingerprint covers everything
that may change the result, so the same request finds the same folder again and any other request makes a new one.
"""

import errno
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from regen.storage import mirror
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
    """A finished folder and the manifest that tells how it was made."""

    path: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that stand for everything that may change the content."""
        return str(self.manifest["fingerprint"])


def open_artefact(path: Path) -> Artefact:
    """Opens an artefact folder after checking every file's size and hash.

    The hashes are computed once per process; later calls only look whether sizes and modification times still hold.

    Raises:
        FileNotFoundError: there is no such folder.
        DamagedArtefactError: the folder is not what its manifest says; the message has the path and the difference.
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
    """Returns the artefact of a request, building it only if no good one exists.

    Args:
        stage: the stage's name, first part of the folder's name.
        root: the folder that holds all artefacts.
        config: the part of the config that this stage depends on, as plain JSON values.
        make: writes the files into the folder it is given and returns row counts.
        inputs: name of each input to its fingerprint or file hash.
        libraries: distributions whose versions may change the result.
        version: of the stage's own code; raise it when the same config starts to give other files.
        force: build anew even if a good artefact exists.

    Raises:
        TypeError, ValueError: `config` is not plain JSON; see `fingerprint`.
        ModuleNotFoundError: a distribution in `libraries` is not installed.
        ValueError: there is a mirror (`regen.storage.mirror`) and it cannot be reached; what was built by then is kept.
        OSError: the disk is full. Whatever else `make` raises passes through with a note.
    """
    recipe = _recipe(stage, config, inputs or {}, libraries, version)
    folder = root / f"{stage}-{fingerprint(recipe)}"
    if not force and (found := _reusable(folder, recipe, warn=False)):
        return found
    with _locked(folder, stage):
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
    """Where `build` puts the artefact of a request, whether it exists or not. Arguments as for `build`."""
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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file beside `path` and moves it there, so that `path` is never half-written.

    Args:
        path: the file to make or replace.
        write: gets the path of a new empty file and fills it.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        beside.chmod(0o644)  # mkstemp makes files that only their owner may read
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` to fill, which takes its place when the block ends; an error removes it.

    What stood at `folder` before stays there until then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=_partials(folder), dir=folder.parent))
    replaced = partial.with_name(f"{partial.name}-replaced")
    try:
        partial.chmod(0o755)  # mkdtemp makes folders that only their owner may read
        yield partial
        if folder.exists() or folder.is_symlink():
            folder.rename(replaced)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _remove(replaced)


def _partials(folder: Path) -> str:
    """What the names of a folder's unfinished versions begin with."""
    return f".{folder.name}.partial-"


def installed_versions(distributions: Sequence[str]) -> dict[str, str]:
    """Version of each distribution, without what follows a plus, which says for which machine it was compiled.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    return {name: _installed_version(name) for name in distributions}


def _installed_version(distribution: str) -> str:
    try:
        return metadata.version(distribution).partition("+")[0]
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(f"'{distribution}' is not installed. Run: pip install {distribution}") from None


def _reusable(folder: Path, recipe: Mapping[str, Any], *, warn: bool) -> Artefact | None:
    """Returns the artefact if the folder holds exactly what was asked for."""
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


@contextmanager
def _locked(folder: Path, stage: str) -> Iterator[None]:
    """Holds the lock of one artefact; says so when another process has it."""
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process is building %s, waiting for it", stage, folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build_locked(folder: Path, recipe: dict[str, Any], make: Callable[[Path], Mapping[str, int]]) -> Artefact:
    """Builds beside the folder and renames; the lock makes every partial found here a dead one."""
    start = time.monotonic()
    for leftover in folder.parent.glob(f"{_partials(folder)}*"):
        log.info("%s: removing %s, left by a build that was stopped", recipe["stage"], leftover)
        _remove(leftover)
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_disk_full(error: BaseException) -> bool:
    """Also for libraries that wrap the system's error in one of their own."""
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
