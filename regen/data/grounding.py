"""Grounding: finds names and numbers of a text that do not occur in the user's history, without a language model.

The check compares words. It finds an invented brand, price or year, but no false claim in common words. It may flag a
true name that the history does not contain, such as a holiday. So compare shares of flagged texts, not single flags.
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
    """Brands of one word. They also count as names at the start of a sentence."""
    brands = items["brand"].drop_nulls().unique()
    return frozenset(brand for brand in brands if len(brand.split()) == 1)


def claims(text: str, brands: Collection[str] = frozenset()) -> list[str]:
    """Names and numbers in a text: words with a digit, capitalised words inside a sentence, brands at its start."""
    names = [name for name in _NAME.findall(text) if name[0].isupper() and not _PERSON.fullmatch(name.casefold())]
    return [*_NUMBER.findall(text), *names, *(word for word in _FIRST.findall(text) if word in brands)]


def ungrounded(text: str, history: str, brands: Collection[str] = frozenset()) -> list[str]:
    """Names and numbers of a text that are not whole words of the history, ignoring case.

    Args:
        text: A narrative.
        history: Case-folded text from `history_texts`.
        brands: Brands of the catalogue, from `brand_names`.
    """
    return [claim for claim in claims(text, brands) if not any(_occurs(form, history) for form in _forms(claim))]


def _forms(claim: str) -> set[str]:
    """Spellings to search for: without a possessive or plural s, thousands separators or zero decimals."""
    plain = claim.casefold().replace("\u2019", "'")
    forms = {plain, plain.removesuffix("'s"), plain.removesuffix("s"), plain.removesuffix("'")}
    if plain[0].isdigit():
        forms |= {plain.replace(",", ""), re.sub(r"\.0+$", "", plain)}
    return forms


def _occurs(form: str, history: str) -> bool:
    return form in history and re.search(rf"(?<!\w){re.escape(form)}(?!\w)", history) is not None


def history_texts(tables: Tables, histories: Sequence[np.ndarray]) -> list[str]:
    """Case-folded text of each history: number of purchases, items, prices, ratings, reviews and dates.

    Args:
        tables: Prepared tables.
        histories: Interaction rows of each history.
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
    """Columns `feature`, `texts` and `ungrounded`: the share of narratives with an ungrounded name or number.

    Histories are those of the models, with all reviews.
    """
    features = sorted(tables.narratives["feature"].unique())
    examples = build_examples(tables, withhold=dict.fromkeys(features, False))
    brands = brand_names(tables.items)
    histories = history_texts(tables, [example.rows for example in examples])
    found = [bool(ungrounded(one.text, history, brands)) for one, history in zip(examples, histories, strict=True)]
    rows = pl.DataFrame({"feature": [one.feature for one in examples], "found": found}, schema_overrides=_FOUND)
    by_feature = rows.group_by("feature").agg(texts=pl.len(), ungrounded=pl.col("found").mean())
    return by_feature.sort("feature")
