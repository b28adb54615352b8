"""Stage `side_by_side`: language models compare the narratives of two runs (paper 5.2, appendix H).

Every pair is judged in both orders, which reveals raters that prefer the first or the second text.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel

from regen.data.tables import DataError
from regen.narratives.agreement import agreement_of
from regen.narratives.histories import UserHistory, fenced
from regen.narratives.ledger import Ledger
from regen.narratives.prompts import HistoryLimits, Prompt, Request
from regen.narratives.raters import Rater, ask_raters
from regen.narratives.report import write_failures
from regen.runtime.shards import HERE, Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact, build
from regen.storage.fingerprints import fingerprint

ORDERS = ("a first", "b first")
VERDICTS = pl.Schema(
    {
        "user_id": pl.String(),
        "feature": pl.String(),
        "rater": pl.String(),
        "a_first": pl.String(),
        "b_first": pl.String(),
        "score": pl.Float64(),
    }
)
"""For each pair and rater the preference in each order, `a`, `b` or `tie`, and A's mean score: 1, 0 or ½ each."""


class Verdict(BaseModel):
    """Schema of the answer."""

    better: Literal["first", "second", "tie"]


PROMPT = Prompt("side_by_side", Verdict)


@dataclass(frozen=True)
class Pair:
    """Two narratives of one feature about one user."""

    history: UserHistory
    feature: str
    a: str
    b: str

    def request(self, limits: HistoryLimits, order: str) -> Request:
        """The request in one order."""
        first, second = (self.a, self.b) if order == ORDERS[0] else (self.b, self.a)
        texts = fenced({"kind": self.feature.replace("_", " "), "first": first, "second": second})
        return PROMPT.request(self.history, limits, texts=texts)


def compare_side_by_side(
    pairs: Sequence[Pair],
    raters: Sequence[Rater],
    *,
    max_cost: float | None,
    root: Path,
    force: bool = False,
    engine: Engine = HERE,
) -> Artefact:
    """Builds or reuses the verdicts on pairs: `verdicts.parquet`, `summary.json`, `failures.parquet`.

    Args:
        pairs: Pairs to compare.
        raters: The raters.
        max_cost: Maximum dollars for all raters together; None for no limit.
        root: Folder of the artefacts.
        force: Build again. Answers in the ledgers are still reused.
        engine: Sends the requests from this process or from a cluster.

    Raises:
        DataError: If there is no pair.
        ValueError: If `max_cost` would be exceeded, or all requests to a rater failed.
    """
    if not pairs:
        raise DataError("The two runs have no user and feature in common, so there is nothing to compare.")

    def make(folder: Path) -> dict[str, int]:
        rows: list[dict[str, Any]] = []
        failures: list[tuple[str, str, str]] = []
        asked = ask_raters(
            raters,
            lambda rater: (pair.request(rater.request_limits, order) for pair in pairs for order in ORDERS),
            total=len(ORDERS) * len(pairs),
            max_cost=max_cost,
            name="side by side",
            engine=engine,
        )
        for rater, ledger, report in asked:
            rows += [row for pair in pairs if (row := _verdict(pair, rater, ledger))]
            failures += report.failures
        verdicts = pl.DataFrame(rows, schema=VERDICTS, orient="row").sort("user_id", "feature", "rater")
        verdicts.write_parquet(folder / "verdicts.parquet")
        (folder / "summary.json").write_text(json.dumps(summary(verdicts), indent=2))
        write_failures(failures, folder)
        return {"pairs": len(pairs), "verdicts": len(verdicts), "failures": len(failures)}

    texts = [[pair.history.user_id, pair.feature, pair.a, pair.b] for pair in pairs]
    recipes = {rater.name: {**rater.recipe(), "prompts": PROMPT.hash} for rater in raters}
    request = identity.side_by_side(fingerprint({"pairs": texts}), recipes)
    return build(**request, root=root, make=make, force=force)


def summary(verdicts: pl.DataFrame, *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """A's win rate per feature and rater, the influence of the order, and the agreement of the raters.

    Args:
        verdicts: Rows of `VERDICTS`.
        resamples: Number of bootstrap samples over users.
        seed: Seed of the bootstrap.

    Returns:
        `features`: per feature and rater the number of pairs, A's win rate (ties count half) with its 95 % interval
        over users, the shares of pairs with the same verdict in both orders, and the share that depends on the order.
        `agreement`: per feature Krippendorff's alpha (ordinal) and exact agreement, if there are several raters.
    """
    generator = np.random.default_rng(seed)
    features, agreement = [], []
    for (feature, rater), part in verdicts.group_by(["feature", "rater"], maintain_order=True):
        by_user = part.group_by("user_id", maintain_order=True).agg(pl.col("score").mean())["score"].to_numpy()
        drawn = by_user[generator.integers(len(by_user), size=(resamples, len(by_user)))].mean(axis=1)
        same = part["a_first"] == part["b_first"]
        outcome = Counter(part.filter(same)["a_first"].to_list())
        features.append(
            {
                "feature": feature,
                "rater": rater,
                "pairs": len(part),
                "win_rate": float(by_user.mean()),
                "low": float(np.percentile(drawn, 2.5)),
                "high": float(np.percentile(drawn, 97.5)),
                **{f"{name}_in_both_orders": outcome[name] / len(part) for name in ("a", "b", "tie")},
                "order_dependent": int((~same).sum()) / len(part),
            }
        )
    names = verdicts["rater"].unique().sort().to_list()
    if len(names) > 1:
        for (feature,), part in verdicts.group_by(["feature"], maintain_order=True):
            wide = part.pivot(on="rater", index="user_id", values="score", aggregate_function="mean")
            units, alpha, exact = agreement_of(wide.select(names).cast(pl.Float64).to_numpy())
            agreement.append(
                {"feature": feature, "raters": names, "alpha": alpha, "exact_agreement": exact, "pairs": units}
            )
    return {"features": features, "agreement": agreement}


def _verdict(pair: Pair, rater: Rater, ledger: Ledger) -> dict[str, Any] | None:
    """Row of `VERDICTS` for a pair; None unless both orders were answered."""
    preferred = []
    for order, names in zip(ORDERS, ({"first": "a", "second": "b"}, {"first": "b", "second": "a"}), strict=True):
        found = ledger.answer(pair.request(rater.request_limits, order).key(rater.endpoint.settings()))
        if found is None:
            return None
        preferred.append(names.get(Verdict.model_validate_json(found.text).better, "tie"))
    return {
        "user_id": pair.history.user_id,
        "feature": pair.feature,
        "rater": rater.name,
        "a_first": preferred[0],
        "b_first": preferred[1],
        "score": float(np.mean([{"a": 1.0, "tie": 0.5, "b": 0.0}[name] for name in preferred])),
    }
