"""Recovery of planted labels: does a narrative name the right value of a label, and no other?

The `synthetic` source plants a need and visible traits per user, each with the wordings (*forms*) that name it. The
true answer is known, so this metric shows which signal an encoder carries, which BLEU and ROUGE cannot.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

NEED = "need"
PLANTED_COLUMNS = ("user_id", "label", "value", "forms")


@dataclass(frozen=True)
class PlantedLabel:
    """One label of the planted truth.

    Attributes:
        name: its name, for instance `need`.
        value_of_user: the true value of each user.
        value_of_form: the value that each wording names.
    """

    name: str
    value_of_user: Mapping[str, str]
    value_of_form: Mapping[str, str]

    def named(self, texts: Sequence[str]) -> list[frozenset[str]]:
        """The values of this label that each text names: whole words, in any case.

        The longest form wins, so "navy blue" does not also name "blue".
        """
        longest_first = sorted(self.value_of_form, key=lambda form: (-len(form), form))
        pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")
        return [frozenset(self.value_of_form[m.group()] for m in pattern.finditer(_normal(text))) for text in texts]


def planted_labels(planted: pl.DataFrame) -> list[PlantedLabel]:
    """The labels of a planted table, in alphabetical order.

    Raises:
        ValueError: when a form is blank or names two values of a label.
    """
    labels = []
    for label in sorted(planted["label"].unique()):
        rows = planted.filter(pl.col("label") == label)
        value_of_form: dict[str, str] = {}
        for value, forms in sorted(rows.select("value", "forms").iter_rows()):
            for form in map(_normal, forms):
                if not form:
                    raise ValueError(f"planted label {label!r}: value {value!r} has a blank form; remove it.")
                if value_of_form.setdefault(form, value) != value:
                    raise ValueError(
                        f"planted label {label!r}: the form {form!r} names both {value_of_form[form]!r} and {value!r}; "
                        "a form may name only one value."
                    )
        labels.append(PlantedLabel(label, dict(rows.select("user_id", "value").iter_rows()), value_of_form))
    return labels


def _normal(text: str) -> str:
    """Case-folded text with single spaces, so that forms match across any white space."""
    return " ".join(text.casefold().split())


def recovery_columns(predictions: pl.DataFrame, planted: pl.DataFrame) -> dict[str, list[float]]:
    """Per-example recovery statistics of every planted label.

    An example counts for a label when its reference names the user's value. It is right when the prediction names
    exactly that value and none of the label's other values.

    Args:
        predictions: columns `user_id, prediction, reference`.
        planted: columns `user_id, label, value, forms` (a list of strings), one row per user and label.

    Returns:
        For every label `recovery_<label>_right` and `recovery_<label>_named` (0 or 1 per example), and `trait_right`,
        `trait_named`: their sums over the labels other than `need`.

    Raises:
        ValueError: when a column is missing, a user has a label twice, or a predicted user has no planted label.
    """
    _check_planted(predictions, planted)
    users = predictions["user_id"].to_list()
    predicted, referenced = predictions["prediction"].to_list(), predictions["reference"].to_list()
    columns: dict[str, list[float]] = {}
    traits_right, traits_named = [0.0] * len(users), [0.0] * len(users)
    for label in planted_labels(planted):
        truth = [label.value_of_user.get(user) for user in users]
        named = [float(value in values) for value, values in zip(truth, label.named(referenced), strict=True)]
        right = [
            float(counts and values == {value})
            for counts, value, values in zip(named, truth, label.named(predicted), strict=True)
        ]
        columns |= {f"recovery_{label.name}_right": right, f"recovery_{label.name}_named": named}
        if label.name != NEED:
            traits_right = [total + one for total, one in zip(traits_right, right, strict=True)]
            traits_named = [total + one for total, one in zip(traits_named, named, strict=True)]
    return columns | {"trait_right": traits_right, "trait_named": traits_named}


def _check_planted(predictions: pl.DataFrame, planted: pl.DataFrame) -> None:
    """Raises a ValueError when the planted table cannot be the truth of these predictions."""
    missing = [column for column in PLANTED_COLUMNS if column not in planted.columns]
    if missing:
        raise ValueError(f"the planted table has no column {missing[0]!r}; it needs {', '.join(PLANTED_COLUMNS)}.")
    twice = planted.filter(pl.struct("user_id", "label").is_duplicated())
    if twice.height:
        user, label = twice.select("user_id", "label").sort("user_id", "label").row(0)
        raise ValueError(
            f"the planted table gives user {user!r} the label {label!r} twice; it may have one row per user and label."
        )
    unknown = sorted(set(predictions["user_id"]) - set(planted["user_id"]))
    if unknown:
        raise ValueError(
            f"{len(unknown)} predicted users are not in the planted table; the first is {unknown[0]!r}. "
            "Score a run with the planted table of the world it was trained on."
        )
