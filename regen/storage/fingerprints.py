"""Hashes that identify a request (of its canonical JSON) or a file (of its bytes)."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

PROGRESS_FROM_BYTES = 256 * 2**20
CHUNK_BYTES = 2**20


def fingerprint(recipe: Mapping[str, Any]) -> str:
    """First 12 hex digits of the SHA-256 of a recipe's canonical JSON.

    Args:
        recipe: Nested mappings, sequences, strings, numbers, booleans and nulls. The order of keys does not matter.

    Raises:
        TypeError: If a key or value is not JSON; the message names the key.
        ValueError: If a number is NaN or infinite.
    """
    canonical = json.dumps(plain_json(recipe, "recipe"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hex; files over 256 MiB show a progress bar."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=size <= PROGRESS_FROM_BYTES) as bar,
    ):
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def plain_json(value: Any, where: str) -> Any:
    """Copies a value into plain JSON types; `where` names it in error messages."""
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is a {type(key).__name__}; a fingerprint needs string keys.")
        return {key: plain_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; a fingerprint needs finite numbers. Use null for 'not set'.")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__} ({value!r:.60}); a fingerprint needs plain JSON: "
        "mapping, list, string, number, boolean or null. Convert it first, for example str(path)."
    )
