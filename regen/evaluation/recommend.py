"""Stage `evaluate` of `task=recommend`: ranks of the test users' next items, by the model and by other recommenders."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from regen.data.datamodule import LengthBatches
from regen.data.prepare import load_tables
from regen.data.synthetic import SyntheticSource
from regen.data.tables import NEXT_ITEM
from regen.evaluation.ceilings import ceilings
from regen.evaluation.comparison_blocks import CLOSED_FORM
from regen.evaluation.prediction_files import read_recommendations
from regen.evaluation.ranking import rank_of, ranking_statistics
from regen.evaluation.recommenders import baselines, best_of, content_neighbours
from regen.evaluation.scoring import EXAMPLES, Scores, ScoringOptions, write_scores
from regen.evaluation.text_metrics import CUTS
from regen.models.next_item import NextItemLM, bought_before
from regen.runtime.costs import Stopwatch
from regen.training.recommendation import NextItemData
from regen.training.run import LoadedRun, Run

logger = logging.getLogger(__name__)
SCORES = 2**26  # scores (users x items) in memory at a time: a quarter of a GiB
LEAST_COLD = 20  # with fewer users whose next item no training user bought, cold items are not reported
SHOWN = 20  # recommended items per user in the predictions


@torch.no_grad()
def rank_test_users(loaded: LoadedRun, watch: Stopwatch) -> pl.DataFrame:
    """Ranks each test user's next item among all items.

    Args:
        loaded: A finished run.
        watch: Times `prefill`.

    Returns:
        Columns `user_id`, `feature`, `item_id` (bought next), `rank`, `closed_form_rank`, `recommended` (the items
        ranked first), in the order of the split.
    """
    model, data = loaded.model, loaded.data
    assert isinstance(model, NextItemLM)
    assert isinstance(data, NextItemData)
    test = data.splits["test"]
    found: dict[int, tuple[int, int, list[int]]] = {}
    shown, size = min(SHOWN, len(data.titles)), max(1, SCORES // len(data.titles))
    with tqdm(total=len(test), desc="rank", unit="user") as bar:
        for indices in LengthBatches(test.lengths, data.eval_batch_size, shuffle=False):
            batch = test.collate(indices).on(model.device)
            wanted = batch.targets >= 0
            with watch.timing("prefill"):
                queries = model.queries(batch)[wanted]
            columns = [queries, batch.queries[wanted], bought_before(batch)[wanted], batch.targets[wanted]]
            rows: list[tuple[int, int, list[int]]] = []
            for ours, start, bought, target in zip(*(torch.split(column, size) for column in columns), strict=True):
                with watch.timing("prefill"):
                    scores = model.scores(ours, bought)
                    first = scores.topk(shown).indices.tolist()
                of_start = rank_of(model.scores(start, bought), target).tolist()
                rows += zip(rank_of(scores, target).tolist(), of_start, first, strict=True)
            found |= dict(zip(indices, rows, strict=True))
            bar.update(len(indices))
    ids = catalogue(loaded.run)
    ranked = [found[index] for index in range(len(test))]
    return pl.DataFrame(
        {
            "user_id": [one.user_id for one in test.examples],
            "feature": [one.feature for one in test.examples],
            "item_id": [one.item_id for one in test.examples],
            "rank": [row[0] for row in ranked],
            "closed_form_rank": [row[1] for row in ranked],
            "recommended": [[ids[item] for item in row[2]] for row in ranked],
        }
    )


def score_recommendations_file(path: Path, folder: Path, *, like: Run, options: ScoringOptions) -> Scores:
    """Scores another system's rankings for the test users of a run.

    An item that is not in a user's list counts as not found, so lists of fewer than 50 items lower the scores.

    Args:
        path: A file for `read_recommendations`.
        folder: Folder for `examples.parquet` and `scores.json`; created if absent.
        like: A scored run of `task=recommend`, which defines the test users and their next items.
        options: Resamples and seed.

    Raises:
        ValueError: If a test user is missing, or an item is unknown.
    """
    ours = pl.read_parquet(like.folder / EXAMPLES, glob=False).filter(system="model", feature=NEXT_ITEM)
    theirs = read_recommendations(path)
    users, targets = ours["user_id"].to_list(), ours["item_id"].to_list()
    if missing := [user for user in users if user not in theirs]:
        raise ValueError(
            f"{path}: {len(missing):,} of {len(users):,} test users of {like.folder} are missing, the first is "
            f"{missing[0]!r}."
        )
    known = set(catalogue(like))
    for user in users:
        if strange := [item for item in theirs[user] if item not in known]:
            raise ValueError(f"{path}: item {strange[0]!r} of user {user!r} is not in the catalogue of {like.folder}.")
    if (shortest := min(len(theirs[user]) for user in users)) < max(CUTS):
        logger.warning("%s: the shortest list has %d items; items outside a list count as not found.", path, shortest)
    ranks = [
        theirs[user].index(item) + 1 if item in theirs[user] else 0 for user, item in zip(users, targets, strict=True)
    ]
    cold = ours["cold_examples"].to_numpy() > 0 if "cold_examples" in ours.columns else np.zeros(len(users), dtype=bool)
    folder.mkdir(parents=True, exist_ok=True)
    return write_scores(ranking_statistics(users, targets, np.array(ranks), cold, system="model"), folder, options)


def catalogue(run: Run) -> list[str]:
    """Ids of the items that a run ranks."""
    path = run.inputs.prepared.path / "items.parquet"
    return pl.read_parquet(path, columns=["item_id"], glob=False)["item_id"].to_list()


def ranking_parts(predictions: pl.DataFrame, loaded: LoadedRun) -> pl.DataFrame:
    """Rows of `examples.parquet`: statistics of `rank_test_users` and of other recommenders for the same users."""
    data, run = loaded.data, loaded.run
    assert isinstance(data, NextItemData)
    test = data.splits["test"]
    ranks = {"model": predictions["rank"].to_numpy(), CLOSED_FORM: predictions["closed_form_rank"].to_numpy()}
    others = pl.read_parquet(baselines(run.config, run.inputs.prepared).path / "ranks.parquet", glob=False)
    keys = predictions.select("user_id", "item_id")
    for (system,), rows in others.group_by("system", maintain_order=True):
        joined = keys.join(rows, on=["user_id", "item_id"], how="left", maintain_order="left")["rank"]
        if joined.null_count() == 0:  # narratives may be about earlier items, which the others do not rank
            ranks[str(system)] = joined.to_numpy()
    exclude = run.config.task.exclude_bought
    if "content" in run.inputs.encoded:
        items = np.load(run.inputs.encoded["content"].path / "vectors.npy").astype(np.float32)
        users = {name: data.splits[name].examples for name in ("validation", "test")}
        _, ranks["content kNN"] = best_of(content_neighbours(items), users, test.item_of, exclude_bought=exclude)
    targets = np.array([test.items(index)[-1] for index in range(len(test))])
    names, items_bought = predictions["user_id"].to_list(), predictions["item_id"].to_list()
    cold = data.bought[targets] == 0
    if cold.sum() < LEAST_COLD:
        cold[:] = False
    parts = [ranking_statistics(names, items_bought, of, cold, system=system) for system, of in ranks.items()]
    source = run.config.source.build()
    if isinstance(source, SyntheticSource):
        parts += ceilings(
            source.truth(),
            test.examples,
            load_tables(run.inputs.prepared.path).items,
            test.item_of,
            critiques=run.config.data.critiques and run.config.narrator.name != "openai",
            exclude_bought=exclude,
        )
    return pl.concat(parts, how="diagonal").fill_null(0.0)
