"""Tables of a model card."""

from collections.abc import Mapping
from typing import Any


def score_text(score: Mapping[str, Any] | None, decimals: int) -> str:
    """A score with its interval; an empty text without a value."""
    if score is None or score["value"] is None:
        return ""
    bounds = [score["low"], score["high"]]
    interval = "" if None in bounds else f" [{', '.join(f'{bound:.{decimals}f}' for bound in bounds)}]"
    return f"{score['value']:.{decimals}f}{interval}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *rows])
