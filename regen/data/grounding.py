"""Grounding: which names and numbers of a text occur nowhere in its user's history. No language model takes part.

The check compares words. It finds an invented brand, price or year. It does not see a wrong claim in common words, and
it may flag a true name that the history does not spell out, such as a holiday. A single flag is a hint; compare shares.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import polars as pl

from regen.data.histories import build_examples
from regen.data.tables import Tables

_NUMBER = re.compile(r"\w*\d\w*(?:[.,]\d+)*")
_NAME = re.compile(r"(?<=[\w,&])[^\S\n][\"'(\u201c\u2018]?([^\W\d_][\w'\u2019]*)")  # a word that starts no sentence
_FIRST = re.compile(r"(?:^|[.!?\n]\s*)([^\W\d_][\w'\u2019]*)")
_FOUND = {"feature": pl.String, "found": pl.Boolean}
_PERSON = re.compile(r"i(?:['\u2019]\w+)?")  # "I", "I'm"


def brand_names(items: pl.DataFrame) -> frozenset[str]:
    """Brands of one word, which count as names at the start of a sentence too."""
    brands = items["brand"].drop_nulls().unique()
    return frozenset(brand for brand in brands if len(brand.split()) == 1)


def claims(text: str, brands: Collection[str] = frozenset()) -> list[str]:
    """Names and numbers in a text: words with a digit, capitalised words inside a sentence, brands at its start."""
    names = [name for name in _NAME.findall(text) if name[0].isupper() and not _PERSON.fullmatch(name.casefold())]
    return [*_NUMBER.findall(text), *names, *(word for word in _FIRST.findall(text) if word in brands)]


def ungrounded(text: str, history: str, brands: Collection[str] = frozenset()) -> list[str]:
    """The names and numbers of a text that the history does not contain as whole words, in any case.

    Args:
        text: A narrative.
        history: Everything known of the user's purchases, see `history_texts`; case-folded.
        brands: Of the catalogue, see `brand_names`.
    """
    return [claim for claim in claims(text, brands) if not any(_occurs(form, history) for form in _forms(claim))]


def _forms(claim: str) -> set[str]:
    """Ways to write it: without a possessive or plural s, a thousands separator, or decimals that are zero."""
    plain = claim.casefold().replace("\u2019", "'")
    forms = {plain, plain.removesuffix("'s"), plain.removesuffix("s"), plain.removesuffix("'")}
    if plain[0].isdigit():
        forms |= {plain.replace(",", ""), re.sub(r"\.0+$", "", plain)}
    return forms


def _occurs(form: str, history: str) -> bool:
    return form in history and re.search(rf"(?<!\w){re.escape(form)}(?!\w)", history) is not None


def history_texts(tables: Tables, histories: Sequence[np.ndarray]) -> list[str]:
    """Everything known of each history, case-folded: items, prices, ratings, reviews, dates and how many purchases.

    Args:
        tables: Prepared tables.
        histories: Rows of the interactions of each history.
    """
    needed = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *histories]))
    bought = tables.interactions[needed].join(tables.items, on="item_id", how="left", maintain_order="left")
    date = pl.from_epoch("timestamp").dt.strftime("%Y-%m-%d %B %d %Y")
    said = ["title", "description", "category", "brand", "price", "rating", "review_title", "review_text"]
    lines = bought.select(pl.concat_str(*said, date, separator=" ", ignore_nulls=True))
    texts = [line.casefold().replace("\u2019", "'") for line in lines.to_series()]
    at = [np.searchsorted(needed, rows) for rows in histories]
    return [" ".join([str(len(rows)), *(texts[row] for row in rows)]) for rows in at]


def ungrounded_shares(tables: Tables) -> pl.DataFrame:
    """Columns `feature`, `texts` and `ungrounded`: the share of narratives with a name or number that is not grounded.

    Histories are those that a model is given, with every review.
    """
    features = sorted(tables.narratives["feature"].unique())
    examples = build_examples(tables, withhold=dict.fromkeys(features, False))
    brands = brand_names(tables.items)
    histories = history_texts(tables, [example.rows for example in examples])
    found = [bool(ungrounded(one.text, history, brands)) for one, history in zip(examples, histories, strict=True)]
    rows = pl.DataFrame({"feature": [one.feature for one in examples], "found": found}, schema_overrides=_FOUND)
    by_feature = rows.group_by("feature").agg(texts=pl.len(), ungrounded=pl.col("found").mean())
    return by_feature.sort("feature")
