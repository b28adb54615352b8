"""Field names in the files of Amazon Reviews 2018 and 2023."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from regen.data.download import DATA_PAGE
from regen.data.json_lines import whole_lines
from regen.data.tables import DataError

_TYPES = {  # of our columns; all others are texts
    "timestamp": pl.Float64(),
    "rating": pl.Float64(),
    "description": pl.List(pl.String()),
    "category": pl.List(pl.String()),
    "features": pl.List(pl.String()),
}


def _unchanged(items: pl.DataFrame) -> pl.DataFrame:
    return items


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The fields in the files of one year.

    Attributes:
        year: Year of the data set; `source=amazon<year>` reads it.
        page: Web page of the data set.
        reviews: Maps each field of a review to our column.
        items: Maps each field of an item to our column.
        fill_gaps: Fills empty columns of items from other fields of the same item.
        notes: Boolean columns that `fill_gaps` adds. The stage counts the items where each is true.
    """

    year: int
    page: str
    reviews: Mapping[str, str]
    items: Mapping[str, str]
    fill_gaps: Callable[[pl.DataFrame], pl.DataFrame] = _unchanged
    notes: tuple[str, ...] = ()

    def keys(self, role: str) -> list[str]:
        """Names of the id fields, by which a file of this layout is recognised."""
        fields = self.reviews if role == "reviews" else self.items
        return [field for field, column in fields.items() if column.endswith("_id")]


def schema(fields: Mapping[str, str]) -> pl.Schema:
    """Polars types of the fields in a file."""
    return pl.Schema({field: _TYPES.get(column, pl.String()) for field, column in fields.items()})


def _fill_from_details(items: pl.DataFrame) -> pl.DataFrame:
    """Fills empty columns of the metadata of 2023.

    - No `store`: the brand or manufacturer in `details` becomes the brand, and color and size from `details` are
      appended to the description. Items with a store do not get color and size, because one item is all its variants.
    - No description: the list of features becomes the description.
    - No categories: the main category becomes the category.
    """
    items = items.with_columns(pl.col("description", "category", "features").map_batches(_without_blanks))
    no_store = (pl.col("brand").str.strip_chars() == "").fill_null(True)
    found = items.select(
        brand=_named("Brand", "Brand Name", "Manufacturer"), color=_named("Color", "Colour"), size=_named("Size")
    )
    found = found.select(pl.when(items.select(no_store).to_series()).then(pl.all()))
    described = items["description"].list.len().fill_null(0) > 0
    traits = found.select(
        pl.concat_list(pl.format("Color: {}.", "color"), pl.format("Size: {}.", "size")).list.drop_nulls()
    ).to_series()
    return items.with_columns(
        brand=pl.coalesce(pl.when(~no_store).then("brand"), found["brand"]),
        category=pl.when(pl.col("category").list.len() > 0)
        .then("category")
        .otherwise(pl.concat_list("main_category").list.drop_nulls()),
        description=pl.concat_list(
            pl.when(described).then("description").otherwise("features").fill_null(pl.lit([], pl.List(pl.String()))),
            traits,
        ),
        brand_from_details=found["brand"].is_not_null(),
        color_or_size_from_details=traits.list.len() > 0,
        description_from_features=~described & (pl.col("features").list.len() > 0).fill_null(False),
        category_from_main_category=(pl.col("category").list.len().fill_null(0) == 0)
        & pl.col("main_category").is_not_null(),
    )


def _named(*keys: str) -> pl.Expr:
    """Value of the first of these keys in `details`, as text."""
    found = [pl.col("details").str.json_path_match(f"$['{key}']").str.strip_chars() for key in keys]
    return pl.coalesce(pl.when(~value.is_in(["", "null"])).then(value) for value in found)


def _without_blanks(lists: pl.Series) -> pl.Series:
    return lists.list.eval(pl.element().filter(pl.element().str.strip_chars() != ""))


AMAZON_2018 = Layout(
    year=2018,
    page=DATA_PAGE,
    reviews={
        "reviewerID": "user_id",
        "asin": "item_id",
        "unixReviewTime": "timestamp",
        "overall": "rating",
        "summary": "review_title",
        "reviewText": "review_text",
    },
    items={
        "asin": "item_id",
        "title": "title",
        "description": "description",
        "category": "category",
        "price": "price",
        "brand": "brand",
    },
)
AMAZON_2023 = Layout(
    year=2023,
    page="https://amazon-reviews-2023.github.io/",
    reviews={
        "user_id": "user_id",
        "parent_asin": "item_id",
        "timestamp": "timestamp",
        "rating": "rating",
        "title": "review_title",
        "text": "review_text",
    },
    items={
        "parent_asin": "item_id",
        "title": "title",
        "description": "description",
        "categories": "category",
        "price": "price",
        "store": "brand",
        "main_category": "main_category",
        "features": "features",
        "details": "details",
    },
    fill_gaps=_fill_from_details,
    notes=(
        "brand_from_details",
        "color_or_size_from_details",
        "description_from_features",
        "category_from_main_category",
    ),
)


def check_layout(path: Path, role: str, layout: Layout) -> None:
    """Checks that the first line of a file does not have the keys of another year.

    Args:
        path: JSON lines or CSV.
        role: `reviews` or `metadata`.
        layout: The expected layout.

    Raises:
        DataError: If the file has the layout of another year.
    """
    first_line = next(whole_lines(path), b"").split(b"\n", 1)[0]
    try:
        keys = set(json.loads(first_line))
    except (ValueError, TypeError):
        return
    for other in (AMAZON_2018, AMAZON_2023):
        if not keys.issuperset(layout.keys(role)) and keys.issuperset(other.keys(role)):
            raise DataError(
                f"{path}: these {role} have the layout of Amazon Reviews {other.year} ({', '.join(other.keys(role))}), "
                f"but source=amazon{layout.year} expects {', '.join(layout.keys(role))}. Set source=amazon{other.year}."
            )
