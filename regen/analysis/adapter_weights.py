"""What a trained adapter makes of CF and of content (paper 6).

The linear adapter's soft token is `W_cf e + W_content s + b`, so both parts can be read from its weights. For every
adapter, CF's share is also an attribution, gradient times input; `attribution_share` says how the two relate.
"""

from collections.abc import Collection, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int
from omegaconf import OmegaConf
from scipy.linalg import subspace_angles
from torch import Tensor

from regen.data.datamodule import NarrativeDataset
from regen.data.histories import Example
from regen.data.prepare import item_rows, load_tables
from regen.data.tables import Tables
from regen.embeddings.encode import Split, cf_interactions
from regen.embeddings.fusion import CFVectors, Fused
from regen.models.adapter import Adapter, LinearAdapter
from regen.pipeline import ENCODER_PARTS, plain
from regen.training.run import WEIGHTS, Run, load, read_run, started_in

POPULARITY_EDGES = (1, 5, 10, 20, 50)
"""Lower bounds of the popularity buckets after the first, which holds items that CF never saw."""


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


@dataclass(frozen=True)
class Projection:
    """The linear adapter as the paper writes it: `soft = cf @ e + content @ s + bias`."""

    cf: Float[Tensor, "lm_dim cf_dim"]
    content: Float[Tensor, "lm_dim content_dim"]
    bias: Float[Tensor, " lm_dim"]

    def parts(self, fused: Float[Tensor, "sample in_dim"], *, centred: bool = False) -> "Parts":
        """The projected CF and content parts of each interaction.

        Args:
            fused: Fused vectors, CF first.
            centred: Measure both parts from their mean over the sample. A part's mean is the same for every
                interaction, so that the bias can cancel it; what is left tells one interaction from another.
        """
        cf, content = fused[:, : self.cf.shape[1]] @ self.cf.T, fused[:, self.cf.shape[1] :] @ self.content.T
        return Parts(cf - cf.mean(dim=0), content - content.mean(dim=0)) if centred else Parts(cf, content)


@dataclass(frozen=True)
class Parts:
    """The projected CF part `W_cf e` and content part `W_content s` of soft tokens."""

    cf: Float[Tensor, "sample lm_dim"]
    content: Float[Tensor, "sample lm_dim"]

    @property
    def norms(self) -> tuple[Float[Tensor, " sample"], Float[Tensor, " sample"]]:
        """L2 norms of the CF and of the content parts."""
        return self.cf.norm(dim=1), self.content.norm(dim=1)

    @property
    def cosines(self) -> Float[Tensor, " sample"]:
        """Cosine of each CF part with its content part; nan where one of them is zero."""
        return (self.cf * self.content).sum(dim=1) / (self.cf.norm(dim=1) * self.content.norm(dim=1))


def newest_run(runs: Path, *, encoders: Collection[str] = tuple(ENCODER_PARTS)) -> Path:
    """The folder of the run that finished last, of those with one of the given encoders.

    Raises:
        FileNotFoundError: If there is none.
    """
    finished = sorted(runs.glob(f"*/{WEIGHTS}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in finished:
        if OmegaConf.load(path.parent / "config.yaml").encoder.name in encoders:
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
    folder = folder.resolve()
    with chdir(started_in(folder)):
        run = read_run(folder)
        if not run.finished:
            raise ValueError(f"{folder}: not finished, there is no {WEIGHTS} in it. Run its train.py command again.")
        if run.cfg.encoder.name not in ENCODER_PARTS:
            raise ValueError(
                f"{folder}: encoder={run.cfg.encoder.name} has neither CF nor content in it. "
                f"Give a run with encoder={', '.join(ENCODER_PARTS)}."
            )
        loaded, tables = load(run), load_tables(run.inputs.prepared.path)
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
        interactions=_described(tables, places[:, 0], Split(**plain(run.cfg.split))),
        available=available,
        seed=seed,
        token_embeddings=_token_embeddings(loaded.model.lm, len(loaded.lm.tokenizer)),
        tokenizer=loaded.lm.tokenizer,
    )


def split_projection(adapter: Adapter, cf_dim: int) -> Projection:
    """The CF and content blocks of a linear adapter's weight (paper 6).

    Raises:
        ValueError: If the adapter is not linear.
    """
    if not isinstance(adapter, LinearAdapter):
        raise ValueError(
            f"A {type(adapter).__name__} has no CF and content blocks to read. Give a run with adapter=linear, or use "
            "attribution_share, which every adapter has."
        )
    weight = adapter.projection.weight.detach()
    return Projection(weight[:, :cf_dim], weight[:, cf_dim:], adapter.projection.bias.detach())


def norm_share(cf: Float[Tensor, "sample dim"], content: Float[Tensor, "sample dim"]) -> Float[Tensor, " sample"]:
    """CF's share of a soft token's norm, |W_cf e| / (|W_cf e| + |W_content s|) (paper 6.2, Figure 6).

    Returns:
        0 to 1; nan where both parts are zero.
    """
    return _share(cf.norm(dim=1), content.norm(dim=1))


def attribution_share(
    adapter: Adapter,
    histories: Float[Tensor, "histories length in_dim"],
    mask: Bool[Tensor, "histories length"],
    *,
    rows: Int[Tensor, " sample"],
    positions: Int[Tensor, " sample"],
    cf_dim: int,
    batch_size: int = 64,
) -> Float[Tensor, " sample"]:
    """CF's share of soft tokens by gradient times input, for any adapter.

    What is attributed is the soft token h's projection on itself, <h(x), h/|h|> with the direction h/|h| held fixed;
    its squared norm has the same gradient but for a factor 2|h|, hence the same shares. Gradient times input is summed
    over the CF and over the content dimensions of the whole history, because a transformer adapter lets tokens speak
    of each other. The share is |A_cf| / (|A_cf| + |A_content|); the adapter's biases belong to neither.

    For the linear adapter A_cf = |W_cf e| cos(W_cf e, h), and so for content: the norm share weighs a part by its
    length, this one by how much of that length points along the soft token. They agree where both parts stand at the
    same angle to it. With orthogonal parts and no bias this is |W_cf e|^2 / (|W_cf e|^2 + |W_content s|^2).

    Args:
        adapter: Any adapter.
        histories: Fused vectors, CF first.
        mask: True where `histories` holds an interaction.
        rows: For each soft token the row of its history.
        positions: Its place in that history.
        cf_dim: How many of the fused dimensions are CF.
        batch_size: Soft tokens at a time.

    Returns:
        0 to 1; nan where neither block contributes.
    """
    contributions = [
        _contributions(adapter, histories[row], mask[row], position, cf_dim)
        for row, position in zip(_batches(rows, batch_size), _batches(positions, batch_size), strict=True)
    ]
    return _share(*torch.cat(contributions).T)


def cf_shares(sample: AdapterSample) -> dict[str, Float[Tensor, " sample"]]:
    """Every measure of CF's share that the adapter has, by name: attribution, and two norm shares of a linear one."""
    attributed = attribution_share(
        sample.adapter,
        sample.histories,
        sample.mask,
        rows=sample.rows,
        positions=sample.positions,
        cf_dim=sample.cf_dim,
    )
    if not isinstance(sample.adapter, LinearAdapter):
        return {"attribution": attributed}
    projection = split_projection(sample.adapter, sample.cf_dim)
    parts, centred = projection.parts(sample.fused), projection.parts(sample.fused, centred=True)
    return {
        "norms": norm_share(parts.cf, parts.content),
        "norms, parts centred": norm_share(centred.cf, centred.content),
        "attribution": attributed,
    }


def singular_values(block: Float[Tensor, "lm_dim block_dim"]) -> Float[Tensor, " rank"]:
    """Singular values of a block of the projection, largest first."""
    return torch.linalg.svdvals(block)


def principal_angles(
    first: Float[Tensor, "lm_dim first_dim"], second: Float[Tensor, "lm_dim second_dim"]
) -> Float[np.ndarray, " angles"]:
    """Angles between the column spaces of two blocks in degrees, smallest first; none if a block is zero.

    Two blocks with more columns together than the LM is wide share directions whatever they hold: compare
    `chance_angles`.
    """
    if not (first.any() and second.any()):
        return np.empty(0)
    return np.rad2deg(subspace_angles(first.double().numpy(), second.double().numpy()))[::-1]


def chance_angles(projection: Projection, *, seed: int = 0) -> Float[np.ndarray, " angles"]:
    """Principal angles between random blocks of the same shapes, as a floor for `principal_angles`."""
    generator = torch.Generator().manual_seed(seed)
    cf, content = (torch.randn(block.shape, generator=generator) for block in (projection.cf, projection.content))
    return principal_angles(cf, content)


def share_by_popularity(
    share: Float[Tensor, " sample"], popularity: Sequence[int] | pl.Series, *, edges: Sequence[int] = POPULARITY_EDGES
) -> pl.DataFrame:
    """Distribution of a share by how many interactions CF had of the item (paper 6.2).

    Args:
        share: CF's share of each interaction; nan counts nowhere.
        popularity: Training interactions of each one's item.
        edges: Lower bounds of the buckets after the first, ascending.

    Returns:
        A row per bucket that holds anything, least popular first: `bucket`, `interactions`, `mean`, `median`, `q10`,
        `q90`.
    """
    lows = [0, *edges]
    names = [_interval(low, high) for low, high in zip(lows, [*edges, None], strict=True)]
    bucket = np.digitize(np.asarray(popularity), edges)
    frame = pl.DataFrame({"order": bucket, "bucket": [names[at] for at in bucket], "share": share.numpy()})
    return _distributions(frame).drop("order")


def share_overall(share: Float[Tensor, " sample"]) -> pl.DataFrame:
    """The same columns as `share_by_popularity`, over all interactions."""
    return _distributions(pl.DataFrame({"order": 0, "bucket": "all", "share": share.numpy()})).drop("order")


def item_soft_tokens(sample: AdapterSample) -> tuple[pl.DataFrame, Float[Tensor, "items lm_dim"]]:
    """The mean soft token of every sampled item, most popular first.

    Returns:
        Columns `item_id`, `title`, `popularity`, `interactions` (in the sample), and a row of the tensor for each.
    """
    columns = ["item_id", "title", "popularity"]
    items = sample.interactions.group_by(columns).len("interactions").sort("popularity", "item_id", descending=True)
    item = sample.interactions.join(items.with_row_index("item"), on="item_id", maintain_order="left")["item"]
    index = torch.from_numpy(item.to_numpy().astype(np.int64))
    sums = torch.zeros(len(items), sample.soft.shape[1]).index_add(0, index, sample.soft)
    return items, sums / torch.bincount(index)[:, None]


def nearest_tokens(
    vectors: Float[Tensor, "vectors lm_dim"], token_embeddings: Float[Tensor, "tokens lm_dim"], *, count: int = 5
) -> tuple[Float[Tensor, "vectors count"], Int[Tensor, "vectors count"]]:
    """Cosines and ids of the LM tokens nearest to each vector, nearest first (paper 6.1)."""
    tokens = torch.nn.functional.normalize(token_embeddings, dim=1)
    batches = _batches(torch.nn.functional.normalize(vectors, dim=1), 256)
    cosines, ids = zip(*((batch @ tokens.T).topk(count, dim=1) for batch in batches), strict=True)
    return torch.cat(cosines), torch.cat(ids)


def nearest_token_table(sample: AdapterSample, *, items: int = 20, count: int = 5) -> pl.DataFrame:
    """The LM tokens nearest to the soft tokens of the most popular sampled items.

    Returns:
        A row per item: the columns of `item_soft_tokens`, `tokens` as text and their `cosines`, nearest first.
    """
    described, soft = item_soft_tokens(sample)
    cosines, ids = nearest_tokens(soft[:items], sample.token_embeddings, count=count)
    texts = [[sample.tokenizer.decode([token]) for token in row] for row in ids.tolist()]
    return described.head(items).with_columns(tokens=pl.Series(texts), cosines=pl.Series(cosines.tolist()))


def _batches(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _share(cf: Float[Tensor, " sample"], content: Float[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    return cf.abs() / (cf.abs() + content.abs())


def _contributions(
    adapter: Adapter,
    histories: Float[Tensor, "tokens length in_dim"],
    mask: Bool[Tensor, "tokens length"],
    positions: Int[Tensor, " tokens"],
    cf_dim: int,
) -> Float[Tensor, "tokens 2"]:
    """Gradient times input of one soft token per history, over the CF and the content dimensions."""
    entering = histories.detach().requires_grad_()
    soft = adapter(entering, mask)[torch.arange(len(histories)), positions]
    along = (soft * torch.nn.functional.normalize(soft.detach(), dim=1)).sum()
    (gradient,) = torch.autograd.grad(along, entering)
    by_dim = (gradient * histories * mask[..., None]).sum(dim=1)
    return torch.stack([by_dim[:, :cf_dim].sum(dim=1), by_dim[:, cf_dim:].sum(dim=1)], dim=1)


def _distributions(frame: pl.DataFrame) -> pl.DataFrame:
    share = pl.col("share")
    return (
        frame.with_columns(share.fill_nan(None))
        .group_by("order", "bucket")
        .agg(
            share.count().alias("interactions"),
            share.mean().alias("mean"),
            share.median().alias("median"),
            share.quantile(0.1, "linear").alias("q10"),
            share.quantile(0.9, "linear").alias("q90"),
        )
        .sort("order")
    )


def _interval(low: int, high: int | None) -> str:
    if high is None:
        return f"{low}+"
    return str(low) if high == low + 1 else f"{low}-{high - 1}"


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
