"""The swap test: does a narrative change with its history when one item is exchanged?

One interaction (item and review) of a test user is replaced by another user's, and the narrative is generated again.
A model that reads the history writes about the new item if the *final* one was swapped, and still about the final one
if an earlier one was swapped. A model that recites does neither. There is one soft token per interaction (paper 4.2),
so a swap changes exactly one soft token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from regen.data.datamodule import NarrativeDataset
from regen.data.histories import Example
from regen.evaluation.estimate_tables import estimate_table
from regen.evaluation.recovery import NEED, planted_labels
from regen.evaluation.similarity import Embed, similarity_column, unit_vectors
from regen.evaluation.text_metrics import Metric, by_name, mean_metric
from regen.generation.narratives import generate_narratives
from regen.models.soft_token_lm import SoftTokenLM

log = logging.getLogger(__name__)

FINAL, OTHER = "final", "other"
POSITIONS = (FINAL, OTHER)
Narrate = Callable[[Sequence[Example]], list[str]]
"""Writes one narrative per example, independent of the other examples."""

_SAMPLING_OPTIONS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def _label(kind: str, of: str, when: str, display: str) -> Metric:
    return mean_metric(f"{kind}_{of}_{when}", display, of=f"{kind}_compared", is_share=True)


MEASURES: dict[str, Metric] = by_name(
    (
        mean_metric("changed", "Narratives that changed at all", is_share=True),
        mean_metric("similarity", "Similarity, before and after"),
        mean_metric("stranger_similarity", "Similarity, before and the other user's narrative"),
        mean_metric("moved", "Gain in similarity to the other user's narrative"),
        _label("trait", "new", "after", "Names the new item's trait, after"),
        _label("trait", "new", "before", "Names the new item's trait, before (chance)"),
        _label("trait", "old", "after", "Names the old final item's trait, after"),
        _label("trait", "old", "before", "Names the old final item's trait, before"),
        _label("need", "new", "after", "Names the other user's need, after"),
        _label("need", "new", "before", "Names the other user's need, before (chance)"),
        _label("need", "old", "after", "Names the user's own need, after"),
        _label("need", "old", "before", "Names the user's own need, before"),
    )
)


def greedy_narrator(
    model: SoftTokenLM,
    dataset_of: Callable[[Sequence[Example]], NarrativeDataset],
    *,
    generation: Mapping[str, Any],
    **options: Any,
) -> Narrate:
    """Narrates with a trained model, greedily, so that nothing but the history differs between two calls.

    A swap keeps the length of a history. So soft tokens give the same batches and padding before and after a swap, and
    an unswapped example gets the same narrative again. With histories as words (`encoder=text`) lengths change, and
    rounding may differ.

    Args:
        model: in evaluation mode, on the device to use.
        dataset_of: tokenises examples and finds their vectors.
        generation: options of a `GenerationConfig`; those for sampling are ignored.
        options: further options of `generate_narratives`.
    """
    greedy = {name: value for name, value in generation.items() if name not in _SAMPLING_OPTIONS}

    def narrate(examples: Sequence[Example]) -> list[str]:
        narratives = generate_narratives(model, dataset_of(examples), generation=greedy, **options)
        return narratives["prediction"].to_list()

    return narrate


def with_interaction(example: Example, place: int, row: int) -> Example:
    """A copy of the example with another interaction at one position of its history.

    If the final review is withheld, the review of the new final item is withheld too. At other positions the new review
    is shown.

    Args:
        example: the original.
        place: position in the history, from 0.
        row: row of the new interaction in the sorted interactions.
    """
    rows, withheld = example.rows.copy(), example.withheld.copy()
    rows[place] = row
    if place != len(rows) - 1:
        withheld[place] = False
    return replace(example, rows=rows, withheld=withheld)


def swap_test(
    examples: Sequence[Example],
    narrate: Narrate,
    *,
    item_of: Int[np.ndarray, " interactions"],
    embed: Embed,
    planted: pl.DataFrame | None = None,
    seed: int = 0,
) -> pl.DataFrame:
    """Swaps the final interaction of every history, and in a second pass one earlier interaction, and narrates again.

    The new interaction is the final one of another user's example of the same feature, with an item that the history
    does not contain. Both passes use the same one. A history of one interaction has no second swap, and an example is
    skipped if no other user has a new item. The `noise` control draws other noise for another final interaction, so it
    changes without reading.

    Args:
        examples: test narratives with their histories.
        narrate: writes the narratives; must be deterministic.
        item_of: item of each interaction.
        embed: sentence embeddings.
        planted: truth of a `synthetic` world (see `recovery_columns`), whose traits are those of the final item; None
            for other sources.
        seed: determines who is swapped with whom and where, whatever the order of examples.

    Returns:
        A row per swap: `user_id, feature, item_id, position` (`final` or `other`), `place` (from the end, 0 is the
        final one), `other_user`, `before`, `after` (narratives), `examples` (1) and the statistics of `MEASURES`:
        `changed` (0 or 1), `similarity` (cosine of before and after), `stranger_similarity` (cosine of before and the
        other user's narrative), `moved` (gain in that cosine after the swap) and, with `planted`, counts of labels. A
        label is compared if the reference names the user's value and the other user has another value.
        `<kind>_new_after` counts narratives that name the other user's value and no other; the rest are analogous.

    Raises:
        ValueError: when nothing can be swapped.
    """
    swaps = _drawn(examples, item_of, seed)
    if not swaps:
        raise ValueError(
            f"nothing can be swapped among {len(examples)} test narratives: two users of a feature must have different "
            "final items. Use more test users."
        )
    if skipped := len(examples) - len({swap.example for swap in swaps}):
        log.warning("%d of %d test narratives have no other user to swap with.", skipped, len(examples))
    before = narrate(examples)
    parts = []
    for position in POSITIONS:
        made = [swap for swap in swaps if swap.position == position]
        swapped = list(examples)
        for swap in made:
            row = int(examples[swap.donor].rows[-1])
            swapped[swap.example] = with_interaction(examples[swap.example], swap.place, row)
        after = narrate(swapped)
        parts.append(_swap_rows(examples, made, before, after))
    rows = pl.concat(parts)
    told, strangers, then = (rows[name].to_list() for name in ("before", "stranger", "after"))
    vectors = unit_vectors([*told, *strangers, *then], embed)
    stranger_before = np.array(similarity_column(told, strangers, vectors))
    rows = rows.with_columns(
        examples=pl.lit(1.0),
        changed=(pl.col("before") != pl.col("after")).cast(pl.Float64),
        similarity=pl.Series(similarity_column(told, then, vectors), dtype=pl.Float64),
        stranger_similarity=pl.Series(stranger_before, dtype=pl.Float64),
        moved=pl.Series(np.array(similarity_column(then, strangers, vectors)) - stranger_before, dtype=pl.Float64),
    )
    if planted is not None:
        rows = rows.hstack(pl.DataFrame(_label_columns(rows, planted)))
    return rows.drop("stranger", "reference")


def swap_summary(swaps: pl.DataFrame, *, resamples: int = 2000, seed: int = 0) -> pl.DataFrame:
    """Estimates of every measure: `feature`, `position` and the columns of `ESTIMATES`.

    Args:
        swaps: from `swap_test`.
        resamples: bootstrap resamples of users.
        seed: seed of the bootstrap.
    """
    metrics = [metric for metric in MEASURES.values() if set(metric.columns) <= set(swaps.columns)]
    return estimate_table(swaps, metrics, by=["feature", "position"], resamples=resamples, seed=seed)


@dataclass(frozen=True)
class _Swap:
    """One swap: `example` gets the final interaction of `donor` at `place`. Both are indices of examples."""

    example: int
    donor: int
    position: str
    place: int


def _drawn(examples: Sequence[Example], item_of: Int[np.ndarray, " interactions"], seed: int) -> list[_Swap]:
    """Draws the swaps: users of a feature form a random circle, and each takes from the next one with a new item."""
    rng = np.random.default_rng(seed)
    swaps = []
    for feature in sorted({example.feature for example in examples}):
        numbers_of: dict[str, list[int]] = {}
        for number, example in enumerate(examples):
            if example.feature == feature:
                numbers_of.setdefault(example.user_id, []).append(number)
        for numbers in numbers_of.values():
            numbers.sort(key=lambda number: (examples[number].item_id or "", examples[number].rows.tolist()))
        users = sorted(numbers_of)
        circle = [users[at] for at in rng.permutation(len(users))]
        place_of = {user: place for place, user in enumerate(circle)}
        for user in users:
            after = circle[place_of[user] + 1 :] + circle[: place_of[user]]
            for turn, number in enumerate(numbers_of[user]):
                draw = rng.random()
                own = set(item_of[examples[number].rows].tolist())
                candidates = (numbers_of[other][turn % len(numbers_of[other])] for other in after)
                donor = next((at for at in candidates if int(item_of[examples[at].rows[-1]]) not in own), None)
                if donor is None:
                    continue
                last = len(examples[number].rows) - 1
                swaps.append(_Swap(number, donor, FINAL, last))
                if last:
                    swaps.append(_Swap(number, donor, OTHER, int(draw * last)))
    return swaps


def _swap_rows(
    examples: Sequence[Example], swaps: Sequence[_Swap], before: Sequence[str], after: Sequence[str]
) -> pl.DataFrame:
    """Keys and texts of every swap; `stranger` is the donor's narrative."""
    own, donors = [examples[swap.example] for swap in swaps], [examples[swap.donor] for swap in swaps]
    columns = {
        "user_id": [example.user_id for example in own],
        "feature": [example.feature for example in own],
        "item_id": [example.item_id for example in own],
        "position": [swap.position for swap in swaps],
        "place": [len(example.rows) - 1 - swap.place for example, swap in zip(own, swaps, strict=True)],
        "other_user": [example.user_id for example in donors],
        "before": [before[swap.example] for swap in swaps],
        "after": [after[swap.example] for swap in swaps],
        "stranger": [before[swap.donor] for swap in swaps],
        "reference": [example.text for example in own],
    }
    schema = {name: pl.Int64() if name == "place" else pl.String() for name in columns}
    return pl.DataFrame(columns, schema=schema)


def _label_columns(rows: pl.DataFrame, planted: pl.DataFrame) -> dict[str, np.ndarray]:
    """Counts per swap: labels compared, and labels whose old or new value is named, before and after."""
    columns: dict[str, np.ndarray] = {}
    for label in planted_labels(planted):
        values = {
            of: [label.value_of_user.get(user) for user in rows[name]]
            for of, name in (("old", "user_id"), ("new", "other_user"))
        }
        referenced = label.named(rows["reference"].to_list())
        compared = np.array(
            [
                old in named and new is not None and new != old
                for old, new, named in zip(values["old"], values["new"], referenced, strict=True)
            ],
            dtype=np.float64,
        )
        kind = NEED if label.name == NEED else "trait"
        columns[f"{kind}_compared"] = columns.get(f"{kind}_compared", 0.0) + compared
        for when in ("before", "after"):
            named_values = label.named(rows[when].to_list())
            for of, wanted in values.items():
                right = np.array([named == {value} for named, value in zip(named_values, wanted, strict=True)])
                name = f"{kind}_{of}_{when}"
                columns[name] = columns.get(name, 0.0) + compared * right
    return columns
