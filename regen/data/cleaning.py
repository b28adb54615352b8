"""Cleans texts, titles, categories and prices of scraped product files."""

import html
import re

import polars as pl

_TAGS = "a|abbr|b|big|blockquote|br|center|cite|code|dd|div|dl|dt|em|embed|font|form|h[1-6]|hr|i|iframe|img|input|li|"
_TAGS += "link|meta|object|ol|p|param|pre|script|small|span|strike|strong|style|sub|sup|table|tbody|td|th|thead|tr|u|ul"
TAG = rf"(?i)</?(?:{_TAGS})(?:\s[^<>]*=[^<>]*|\s*/)?>"  # by name, to keep "a < b" and "I <3 it"
_SCRIPT = r"(?is)<(?:script|style)\b.*?</(?:script|style)\s*>"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SUSPECT = ["&", "<", "[[", *(chr(code) for code in range(128) if _CONTROL.match(chr(code)))]
_VIDEO = re.compile(r"\[\[VIDEOID:[^\]]*\]\]")
_PRODUCT = re.compile(r"\[\[ASIN:\w+\s*([^\]]*)\]\]")
_AMOUNT = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3})+,\d{2}|\d+(?:\.\d+)?|\.\d+"
_PRICE = rf"^(?:(?i:price|from)\s*:?\s*)?(?:USD|US)?\s*\$?\s*({_AMOUNT})\s*(?:USD)?(?:\s*-\s*\$?\s*[\d,.]+)?$"
_EUROPEAN = r"^[\d.]*,\d{2}$"  # "1.234,50"
_NOTHING = ["", "-", "—", "None", "nan", "null"]  # placeholders of missing values
_INLINE = r"(?i)</?(?:b|big|em|i|small|strong|sub|sup|u)\s*/?>"  # tags inside words, as in "H<sub>2</sub>O"
_SCRAP = rf"(?:{TAG})|(?i:(?:<|&lt;)\s*(?:span|div|script|!--))|\bgetTime\b|\bfunction\s*\w*\(|\bvar \w+\s*=|^\s*$"
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_TWICE = re.compile(r"&amp;(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def clean_text(texts: pl.Series) -> pl.Series:
    """Removes HTML tags and control characters, and decodes entities. Blank texts become null.

    Amazon's `[[VIDEOID:…]]` is removed, and `[[ASIN:… title]]` becomes the title.
    """
    suspect = texts.str.contains_any(_SUSPECT).fill_null(False)
    if suspect.any():
        rows = suspect.arg_true()
        cleaned = pl.Series([_clean(text) for text in texts.gather(rows)], dtype=pl.String)
        cleaned = cleaned.str.replace_all(_SCRIPT, " ").str.replace_all(_INLINE, "").str.replace_all(TAG, " ")
        cleaned = cleaned.str.replace_all(r" {2,}", " ")
        texts = texts.scatter(rows, cleaned)
    stripped = texts.str.strip_chars()
    return stripped.set(stripped == "", None)


def _clean(text: str) -> str:
    text = unescape(text)
    text = _PRODUCT.sub(r"\1", _VIDEO.sub(" ", text)) if "[[" in text else text
    return _CONTROL.sub(" ", text)


def unescape(text: str) -> str:
    """Decodes HTML entities, twice if the whole text was escaped twice ("&amp;quot;").

    Only entities that end with a semicolon are decoded: "pens&notebooks" has none.
    """
    if "&" not in text:
        return text
    twice = _TWICE.search(text) and not _ENTITY.search(_TWICE.sub("", text))
    for _ in range(2 if twice else 1):
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    return text


def clean_titles(titles: pl.Series) -> pl.Series:
    """Cleans titles to one line each; null if the field contains part of a web page instead of a title."""
    titles = titles.str.replace_all(_INLINE, "")
    scrap = titles.str.contains(_SCRAP).fill_null(False)
    cleaned = clean_text(titles.set(scrap, None)).str.replace_all(r"\s+", " ")
    return cleaned.set(cleaned.str.contains(_SCRAP).fill_null(False), None)


def parse_prices(prices: pl.Series) -> pl.Series:
    """Parses prices in dollars: the lower end of a range ("$5.00 - $9.00"), null for anything else."""
    number = prices.str.strip_chars().str.extract(_PRICE, 1)
    european = number.str.contains(_EUROPEAN).fill_null(False)
    plain = number.str.replace_all(",", "", literal=True)
    swapped = number.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    return swapped.zip_with(european, plain).cast(pl.Float64, strict=False)


def unreadable(texts: pl.Series, values: pl.Series) -> pl.Series:
    """Mask of the texts that are not placeholders but have no parsed value."""
    return ~texts.str.strip_chars().is_in(_NOTHING).fill_null(True) & values.is_null()


def join_categories(paths: pl.Series) -> pl.Series:
    """Joins category paths as in the REGEN release: "Office Products - Pens".

    Args:
        paths: Lists of names, from general to specific. Names with markup and repeated names are dropped.
    """
    rows = pl.DataFrame({"row": pl.int_range(len(paths), eager=True), "name": paths})
    names = rows.explode("name", empty_as_null=True).filter(
        pl.col("name").is_not_null() & ~pl.col("name").str.contains(rf"{TAG}|^\s*$")
    )
    names = names.with_columns(clean_text(names["name"]).alias("name")).drop_nulls()
    names = names.unique(["row", "name"], keep="first", maintain_order=True)
    joined = names.group_by("row", maintain_order=True).agg(pl.col("name").str.join(" - "))
    return rows.select("row").join(joined, on="row", how="left", maintain_order="left")["name"]
