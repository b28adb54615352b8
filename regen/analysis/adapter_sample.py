"""A finished run opened for analysis: its adapter, its LM's tokens, and a sample of the test users' interactions."""

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
from regen.data.datamodule import NarrativeDataset
from regen.data.histories import Example
from regen.data.prepare import item_rows, load_tables
from regen.data.tables import Tables
from regen.embeddings.encode import cf_interactions
from regen.embeddings.fusion import CFVectors, Fused
from regen.models.adapter import Adapter
from regen.pipeline import load_run, opened_run
from regen.training.run import WEIGHTS, Run

SIGNALS = ("both", "cf", "content")  # encoders whose vectors are CF, content or both


@dataclass(frozen=True)
class AdapterSample:
    """A finished run's adapter, the LM's tokens, and a sample of the test users' interactions.

    Attributes:
        run: Where it comes from.
        adapter: As trained.
        cf_dim: How many of the fused dimensions are CF; the others are content.
        histories: Fused vectors of the histories that hold a sampled interaction, padded on the left.
        mask: True where `histories` holds an interaction.
        rows: For each sampled interaction the row of its history in `histories`.
        positions: Its place there, counted from the end: -1 is the latest.
        interactions: `user_id`, `item_id`, `title` and `popularity` (interactions that CF was fitted on) of each.
        available: How many distinct interactions the test users have.
        seed: Of the sample.
        token_embeddings: What the run's LM embeds each of its tokens as.
        tokenizer: The LM's.
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
        """What enters the adapter for each sampled interaction."""
        return self.histories[self.rows, self.positions]

    @cached_property
    def soft(self) -> Float[Tensor, "sample lm_dim"]:
        """The soft token of each sampled interaction."""
        with torch.no_grad():
            return self.adapter(self.histories, self.mask)[self.rows, self.positions]


def newest_run(runs: Path, *, encoders: Collection[str] = SIGNALS) -> Path:
    """The folder of the run that finished last, of those of `task=narrate` with one of the given encoders.

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

    An interaction that several narratives' histories hold counts once, in the first of them. Relative paths in the
    run's config hold from where it was started, whatever the working folder is now.

    Args:
        folder: The run's, `outputs/runs/<...>`.
        interactions: The most to draw.
        seed: Of the draw.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If the run is not finished, or its encoder has neither CF nor content.
    """
    with opened_run(folder) as run:
        if run.config.encoder.name not in SIGNALS:
            raise ValueError(
                f"{folder}: encoder={run.config.encoder.name} has neither CF nor content in it. "
                f"Give a run with encoder={', '.join(SIGNALS)}."
            )
        loaded, tables = load_run(run), load_tables(run.inputs.prepared.path)
    assert loaded.model.adapter is not None  # only encoder=text has none
    test = loaded.data.splits["test"]
    places, available = _places(test.examples, interactions, seed)
    examples, rows = np.unique(places[:, 1], return_inverse=True)
    batch = test.collate(examples.tolist())
    return AdapterSample(
        run=run,
        adapter=loaded.model.adapter,
        cf_dim=_cf_dim(test),
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


def _cf_dim(dataset: NarrativeDataset) -> int:
    assert isinstance(dataset.vectors, Fused)
    return sum(part.dim for part in dataset.vectors.parts if isinstance(part, CFVectors))


def _places(examples: Sequence[Example], most: int, seed: int) -> tuple[Int[np.ndarray, "sample 3"], int]:
    """Interaction row, example and position from the end of drawn interactions, and how many there were."""
    first: dict[int, tuple[int, int]] = {}
    for index, example in enumerate(examples):
        for at, row in enumerate(example.rows.tolist(), start=-len(example.rows)):
            first.setdefault(row, (index, at))
    places = np.array([(row, *place) for row, place in first.items()])
    drawn = np.random.default_rng(seed).choice(len(places), size=min(most, len(places)), replace=False)
    return places[np.sort(drawn)], len(places)


def _described(tables: Tables, rows: Int[np.ndarray, " sample"], split: Split) -> pl.DataFrame:
    """User, item, title and popularity of interactions."""
    item = item_rows(tables)
    seen = np.bincount(cf_interactions(tables, split)["item"].to_numpy(), minlength=len(tables.items))
    interactions = tables.interactions.select("user_id", "item_id")[rows]
    items = item.to_numpy()[rows]
    return interactions.with_columns(tables.items["title"].gather(items), popularity=pl.Series(seen[items]))


@torch.no_grad()
def _token_embeddings(lm: Any, tokens: int) -> Float[Tensor, "tokens lm_dim"]:
    """What the embedding module returns for each token; some LMs have spare rows after the last one."""
    embed = lm.get_input_embeddings()
    ids = torch.arange(min(tokens, embed.weight.shape[0]))
    return torch.cat([embed(chunk).float() for chunk in ids.chunk(8)])
