"""Generation as a map over shards of a split: what each shard gave waits in the run's folder for the others."""

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
        run: The run's folder.
        reopen: Loads a run from its folder.
        parts: Where the shard's file goes.
        generation: Options of a `GenerationConfig`.
        batch_size: The most rows decoded at one time.
        seed: Of sampling.
        precision: `int8` for narrower weights of the LM.
    """

    run: Path
    reopen: Callable[[Path], Any]
    parts: Path
    generation: Mapping[str, Any]
    batch_size: int
    seed: int
    precision: str | None

    def __call__(self, rows: tuple[int, int]) -> Path:
        """Takes examples from the first to before the second; returns the shard's file."""
        path = self.parts / f"{rows[0]:09d}.ndjson"
        if not path.is_file():
            loaded = _loaded(self.run, self.reopen)
            written = generate_narratives(
                loaded.model,
                loaded.data.splits["test"].part(*rows),
                tokenizer=loaded.lm.tokenizer,
                generation=self.generation,
                batch_size=self.batch_size,
                seed=self.seed,
                precision=self.precision,
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
    generation: Mapping[str, Any],
    batch_size: int,
    seed: int,
    precision: str | None,
) -> pl.DataFrame:
    """Narratives of a finished run's test users, as `generate_narratives` gives them.

    Args:
        folder: Of the run.
        reopen: Loads a run from its folder, also in another process.
        examples: How many its test split has.
        size: How many make a shard.
        engine: Works on the shards.
        recipe: What the predictions depend on; shards of another recipe are forgotten.
        generation: Options of a `GenerationConfig`.
        batch_size: The most rows decoded at one time.
        seed: Of sampling.
        precision: `int8` for narrower weights of the LM.
    """
    parts = folder.resolve() / PARTS / recipe
    for other in parts.parent.glob("*"):
        if other != parts:
            shutil.rmtree(other)
    parts.mkdir(parents=True, exist_ok=True)
    shards = [(start, min(start + size, examples)) for start in range(0, examples, size)]
    work = GenerateShard(folder.resolve(), reopen, parts, generation, batch_size, seed, precision)
    files = sorted(engine.map(work, shards, name="generate"))
    predictions = pl.concat([pl.read_ndjson(file, schema=PREDICTION_COLUMNS) for file in files])
    shutil.rmtree(parts.parent)
    return predictions


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, reopen: Callable[[Path], Any]) -> Any:
    return reopen(folder)
