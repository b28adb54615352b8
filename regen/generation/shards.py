"""Generates in shards of a split, maybe on other machines; finished shards are kept in the run's folder."""

import functools
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from regen.generation.narratives import PREDICTION_COLUMNS, generate_narratives
from regen.runtime.shards import Engine
from regen.storage.artefacts import write_atomically

PARTS = "generated"


@dataclass(frozen=True)
class GenerateShard:
    """Writes the narratives of a range of test examples; called by an engine, maybe on another machine.

    Attributes:
        run: Folder of the run.
        reopen: Loads a run from its folder.
        parts: Folder of the shards' files.
        options: Of `generate_narratives`.
    """

    run: Path
    reopen: Callable[[Path], Any]
    parts: Path
    options: Mapping[str, Any]

    def __call__(self, rows: tuple[int, int]) -> Path:
        """Writes the narratives of rows `[first, second)`; returns the shard's file."""
        path = self.parts / f"{rows[0]:09d}.ndjson"
        if not path.is_file():
            loaded = _loaded(self.run, self.reopen)
            written = generate_narratives(
                loaded.model,
                loaded.data.splits["test"].part(*rows),
                tokenizer=loaded.lm.tokenizer,
                **self.options,
            )
            write_atomically(path, written.write_ndjson)
        return path


def generate_in_shards(
    folder: Path,
    reopen: Callable[[Path], Any],
    *,
    examples: int,
    size: int,
    engine: Engine,
    recipe: str,
    **options: Any,
) -> pl.DataFrame:
    """Narratives of a finished run's test users, as returned by `generate_narratives`.

    Args:
        folder: Folder of the run.
        reopen: Loads a run from its folder, also in another process.
        examples: Number of examples in the test split.
        size: Examples in a shard.
        engine: Runs the shards.
        recipe: Fingerprint of the settings; shards with another one are deleted.
        **options: `generation`, `batch_size`, `seed` and `precision` of `generate_narratives`.
    """
    parts = folder.resolve() / PARTS / recipe
    for other in parts.parent.glob("*"):
        if other != parts:
            shutil.rmtree(other)
    parts.mkdir(parents=True, exist_ok=True)
    shards = [(start, min(start + size, examples)) for start in range(0, examples, size)]
    work = GenerateShard(folder.resolve(), reopen, parts, options)
    files = sorted(engine.map(work, shards, name="generate"))
    predictions = pl.concat([pl.read_ndjson(file, schema=PREDICTION_COLUMNS) for file in files])
    shutil.rmtree(parts.parent)
    return predictions


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, reopen: Callable[[Path], Any]) -> Any:
    return reopen(folder)
