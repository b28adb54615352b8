"""Opens a finished run for analysis: its adapter, its LM's tokens and a sample of the test users' interactions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regen.config.schema import Split
from regen.data.histories import Example
from regen.data.prepare import item_rows, load_tables
from regen.data.tables import Tables
from regen.embeddings.encode import cf_interactions
from regen.embeddings.fusion import CFVectors, Fused
from regen.models.adapter import Adapter
from regen.pipeline import load_run, opened_run
from regen.training.run import WEIGHTS, Run

SIGNALS = ("both", "cf", "content")  # encoders of CF, content or both


@dataclass(frozen=True)
class AdapterSample:
    """A finished run's adapter, the LM's tokens, and a sample of the test users' interactions.

    Attributes:
        run: The run.
        adapter: The trained adapter.
        cf_dim: Number of CF dimensions, which come first; the other dimensions are content.
        histories: Fused vectors of the histories that contain a sampled interaction, padded on the left.
        mask: True where `histories` has an interaction.
        rows: For each sampled interaction, the row of its history in `histories`.
        positions: For each sampled interaction, its position in the history, from the end: -1 is the latest.
        interactions: `user_id`, `item_id`, `title` and `popularity` (interactions of the item that CF was fitted on).
        available: Number of distinct interactions of the test users.
        seed: Seed of the sample.
        token_embeddings: The LM's embedding of each token.
        tokenizer: The LM's tokenizer.
    """

    run: Run
    adapter: Adapter
    cf_dim: int
    histories: Float[Tensor, "histories length in_dim"]
    mask: Bool[Tensor, "histories length"]
    rows: Int[Tensor, " sample"]
    positions: Int[Tensor, " sample"]
    interactions: pl.DataFrame
    available: int
    seed: int
    token_embeddings: Float[Tensor, "tokens lm_dim"]
    tokenizer: Any

    @property
    def fused(self) -> Float[Tensor, "sample in_dim"]:
        """The adapter's input for each sampled interaction."""
        return self.histories[self.rows, self.positions]

    @cached_property
    def soft(self) -> Float[Tensor, "sample lm_dim"]:
        """The soft token of each sampled interaction."""
        with torch.no_grad():
            return self.adapter(self.histories, self.mask)[self.rows, self.positions]


def newest_run(runs: Path, *, encoders: Collection[str] = SIGNALS) -> Path:
    """The folder of the latest finished run of `task=narrate` with one of the given encoders.

    Raises:
        FileNotFoundError: If there is none.
    """
    finished = sorted(runs.glob(f"*/{WEIGHTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in finished:
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        if config["encoder"]["name"] in encoders and config.get("task", {}).get("name", "narrate") == "narrate":
            return path.parent
    raise FileNotFoundError(
        f"{runs}: no finished run with encoder={' or '.join(encoders)} among {len(finished)}. "
        "Train one: python train.py encoder=both adapter=linear"
    )


def open_adapter(folder: Path, *, interactions: int = 2000, seed: int = 0) -> AdapterSample:
    """Opens a finished run and draws interactions of its test users.

    An interaction in several histories counts once, in the first of them. Relative paths in the run's config count
    from the folder where it was started.

    Args:
        folder: Folder of the run, `outputs/runs/<...>`.
        interactions: The maximum number to draw.
        seed: Seed of the draw.

    Raises:
        FileNotFoundError: If the folder contains no run.
        ValueError: If the run is not finished, or its encoder has neither CF nor content.
    """
    with opened_run(folder) as run:
        if run.config.encoder.name not in SIGNALS:
            raise ValueError(
                f"{folder}: encoder={run.config.encoder.name} has neither CF nor content. "
                f"Give a run with encoder={', '.join(SIGNALS)}."
            )
        loaded, tables = load_run(run), load_tables(run.inputs.prepared.path)
    assert loaded.model.adapter is not None  # only encoder=text has none
    test = loaded.data.splits["test"]
    assert isinstance(test.vectors, Fused)
    places, available = _places(test.examples, interactions, seed)
    examples, rows = np.unique(places[:, 1], return_inverse=True)
    batch = test.collate(examples.tolist())
    return AdapterSample(
        run=run,
        adapter=loaded.model.adapter,
        cf_dim=sum(part.dim for part in test.vectors.parts if isinstance(part, CFVectors)),
        histories=batch.fused,
        mask=batch.history_mask,
        rows=torch.from_numpy(rows),
        positions=torch.from_numpy(places[:, 2]),
        interactions=_described(tables, places[:, 0], run.config.split),
        available=available,
        seed=seed,
        token_embeddings=_token_embeddings(loaded.model.lm, len(loaded.lm.tokenizer)),
        tokenizer=loaded.lm.tokenizer,
    )


def _places(examples: Sequence[Example], most: int, seed: int) -> tuple[Int[np.ndarray, "sample 3"], int]:
    """Draws interactions: row, example and position from the end of each. Also returns how many there are."""
    first: dict[int, tuple[int, int]] = {}
    for index, example in enumerate(examples):
        for at, row in enumerate(example.rows.tolist(), start=-len(example.rows)):
            first.setdefault(row, (index, at))
    places = np.array([(row, *place) for row, place in first.items()])
    drawn = np.random.default_rng(seed).choice(len(places), size=min(most, len(places)), replace=False)
    return places[np.sort(drawn)], len(places)


def _described(tables: Tables, rows: Int[np.ndarray, " sample"], split: Split) -> pl.DataFrame:
    """User, item, title and popularity of interactions."""
    seen = np.bincount(cf_interactions(tables, split)["item"].to_numpy(), minlength=len(tables.items))
    interactions = tables.interactions.select("user_id", "item_id")[rows]
    items = item_rows(tables).to_numpy()[rows]
    return interactions.with_columns(tables.items["title"].gather(items), popularity=pl.Series(seen[items]))


@torch.no_grad()
def _token_embeddings(lm: Any, tokens: int) -> Float[Tensor, "tokens lm_dim"]:
    """The output of the embedding module for each token, without the spare rows that some LMs have at the end."""
    embed = lm.get_input_embeddings()
    ids = torch.arange(min(tokens, embed.weight.shape[0]))
    return torch.cat([embed(chunk).float() for chunk in ids.chunk(8)])
