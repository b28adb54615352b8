"""Upper bounds in a synthetic world: the scores of a perfect reader of CF, of the critique, or of both."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from regen.data.critiques import differences, named
from regen.data.histories import Example
from regen.data.synthetic import Truth
from regen.evaluation.ranking import statistics_frame
from regen.evaluation.text_metrics import CUTS

CF, CRITIQUE, JOINT = "perfect reader of CF", "perfect reader of the critique", "perfect reader of both"
LONGEST = 1000  # ranks that count for the reciprocal rank


def expected_statistics(
    users: list[str], items: list[str], chances: Float[np.ndarray, "users items"], *, system: str
) -> pl.DataFrame:
    """The statistics of `ranking_statistics`, in expectation, if items are ranked by their probabilities `chances`."""
    first = -np.sort(-chances, axis=1)[:, :LONGEST]
    places = np.arange(1, first.shape[1] + 1)
    columns = {
        **{f"recall_{k}": first[:, :k].sum(axis=1) for k in CUTS},
        "ndcg_10": (first[:, :10] / np.log2(1 + places[:10])).sum(axis=1),
        "mrr": (first / places).sum(axis=1),
    }
    return statistics_frame(users, items, columns, system=system)


def ceilings(
    truth: Truth,
    test: Sequence[Example],
    items: pl.DataFrame,
    item_of: np.ndarray,
    *,
    critiques: bool,
    exclude_bought: bool,
) -> list[pl.DataFrame]:
    """Statistics of the perfect readers for the test users, one frame per reader.

    Args:
        truth: The truth of the world.
        test: The test users.
        items: The catalogue, with texts.
        item_of: Row in the catalogue of each interaction's item.
        critiques: Whether users give critiques by the rules; if not, only the reader of CF exists.
        exclude_bought: Whether bought items are excluded from the candidates.
    """
    number = {item: at for at, item in enumerate(truth.item_ids)}
    order = np.array([number[item] for item in items["item_id"]])
    fitting = _Fitting(items)
    found: dict[str, list[np.ndarray]] = {name: [] for name in ((CF, CRITIQUE, JOINT) if critiques else (CF,))}
    for one in test:
        bought, target = item_of[one.rows[:-1]], int(item_of[one.rows[-1]])
        for name, of in found.items():
            chances = truth.chances(None if name == CRITIQUE else truth.need_of_user[one.user_id])[order]
            if name != CF:
                chances = chances * fitting.mask(int(bought[-1]), target)
            if exclude_bought:
                chances[bought] = 0
            of.append(chances / chances.sum())
    users = [one.user_id for one in test]
    targets = [str(one.item_id) for one in test]
    return [expected_statistics(users, targets, np.stack(of), system=name) for name, of in found.items()]


class _Fitting:
    """Finds the items that a critique could lead to."""

    def __init__(self, items: pl.DataFrame) -> None:
        self.items = items.to_dicts()
        self.titles = items["title"].fill_null("").str.to_lowercase()
        self.brands, self.categories = items["brand"], items["category"].str.to_lowercase()

    def mask(self, last: int, target: int) -> np.ndarray:
        """The items that differ from the last item as the critique says, which names how the target differs."""
        words = named(self.items[last], self.items[target])
        may = np.ones(len(self.items), dtype=bool)
        if "brand" in words:
            may &= (self.brands == words["brand"]).to_numpy()
        if "category" in words:
            may &= self.categories.str.ends_with(words["category"]).to_numpy()
        if "word" in words:
            may &= self.titles.str.contains(words["word"], literal=True).to_numpy()
        for at in np.flatnonzero(may):
            may[at] = words.items() <= differences(self.items[last], self.items[at]).items()
        return may
