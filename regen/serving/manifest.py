"""The manifest of an exported folder, which detects missing and changed files."""

import json
from pathlib import Path

from regen.storage.fingerprints import file_hash

MANIFEST = "manifest.json"
CARD = "README.md"  # not in the manifest, because it may be edited after the export


def write_manifest(folder: Path) -> None:
    """Writes size and SHA-256 of every file in the folder except the card."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (MANIFEST, CARD))
    entries = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": file_hash(path)} for path in files
    }
    (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=2) + "\n", encoding="utf-8")


def check_manifest(folder: Path) -> frozenset[str]:
    """Checks every file of an exported folder; returns their names.

    Raises:
        FileNotFoundError: If the manifest or a file is missing.
        ValueError: If a file was changed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no exported model, because it has no {MANIFEST}. "
            "Export a finished run: regen export run=RUN_FOLDER out=FOLDER"
        )
    try:
        entries = dict(json.loads(path.read_text(encoding="utf-8"))["files"])
        expected = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a readable manifest ({error!r}). Export the run again.") from error
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            raise FileNotFoundError(f"{file}: missing. Export the run again, or fetch the whole folder.")
        if (found := file.stat().st_size) != size:
            raise ValueError(f"{file}: {found:,} bytes instead of {size:,}. Export the run again, or fetch it anew.")
        if file_hash(file) != digest:
            raise ValueError(f"{file}: changed since it was exported. Export the run again, or fetch it anew.")
    return frozenset(expected)
