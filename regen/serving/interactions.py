"""Checks a history that a user wrote; every error names the interaction and the fix."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from regen.data.tables import nearest
from regen.serving.items import Items

TEXT_CHARACTERS = 20_000  # more than any sentence encoder reads, so a cut changes no vector
MOST = 1e12  # largest rating or price
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class RequestError(ValueError):
    """The request is not valid; the message has the value, the limit and the fix."""


@dataclass(frozen=True)
class Interaction:
    """One purchase and its review.

    Attributes:
        title: Title of the item; optional if the model knows `item_id`.
        rating: Stars, on the scale of the training data.
        review: Text of the review.
        review_title: Title of the review.
        item_id: Id in the training data. It adds the CF factor, and the item's fields that are left out here.
        category: From general to special, like "Office Products - Pens".
        brand: Brand of the item.
        price: Price in dollars.
        description: Description of the item.
    """

    title: str | None = None
    rating: float | None = None
    review: str | None = None
    review_title: str | None = None
    item_id: str | None = None
    category: str | None = None
    brand: str | None = None
    price: float | None = None
    description: str | None = None


History = Sequence[Interaction | Mapping[str, Any]]
NAMES = tuple(field.name for field in fields(Interaction))
_NUMBERS = ("rating", "price")


def read_history(history: Any, items: Items, *, latest: int) -> list[Interaction]:
    """The latest interactions of a history, oldest first, checked, cleaned and completed from the known items.

    Control characters become spaces and lone surrogates question marks. Texts are cut at `TEXT_CHARACTERS`; blank
    texts become None. Fields of an interaction take precedence over those of the item table.

    Args:
        history: Interactions, or mappings with the same keys.
        items: Items of the training data.
        latest: How many interactions to keep; older ones are not checked.

    Raises:
        RequestError: If the history is not a list, is empty, or has an interaction that is not valid or has no title.
    """
    if not is_sequence(history):
        raise RequestError(f"a history is a list of interactions, not {_said(history)}.")
    if not history:
        raise RequestError("the history is empty; at least one interaction is needed.")
    first = max(0, len(history) - latest)
    return [
        _completed(_checked(one, f"history[{at}]"), items, f"history[{at}]")
        for at, one in enumerate(history[first:], start=first)
    ]


def is_sequence(value: Any) -> bool:
    """Whether a value is a sequence other than text or bytes."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _checked(one: Any, where: str) -> Interaction:
    if isinstance(one, Interaction):
        given: Mapping[Any, Any] = vars(one)
    elif isinstance(one, Mapping):
        given = one
    else:
        raise RequestError(f"{where}: a mapping like {{'title': …, 'review': …}} is needed, not {_said(one)}.")
    for name in given:
        if name not in NAMES:
            raise RequestError(
                f"{where}: there is no {shown(name)}. {nearest(name[:80] if isinstance(name, str) else '', NAMES)}"
            )
    checked: dict[str, Any] = {
        name: (_number if name in _NUMBERS else _text)(value, f"{where}.{name}") for name, value in given.items()
    }
    return Interaction(**checked)


def _completed(one: Interaction, items: Items, where: str) -> Interaction:
    item = None if one.item_id is None else items.get(one.item_id)
    if item is not None:
        one = replace(one, **{name: value for name, value in vars(item).items() if getattr(one, name) is None})
    if one.title is None:
        known = "no item_id" if one.item_id is None else f"item_id={one.item_id!r:.60} has none here"
        raise RequestError(f"{where}: no title, and {known}. Give the item's title.")
    return one


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(f"{where}={_said(value)} is no number. Leave it out if it is unknown.")
    if not abs(value) < MOST:  # true for NaN as well
        raise RequestError(f"{where}={shown(value)} is not within ±{MOST:.0e}. Leave it out if it is unknown.")
    return float(value)


def _text(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise RequestError(f"{where}={_said(value)} is no text.")
    whole = value[:TEXT_CHARACTERS].encode("utf-8", "replace").decode()
    return _CONTROL.sub(" ", whole).strip() or None


def shown(value: Any) -> str:
    """The beginning of a value's `repr`, for a message."""
    try:
        return f"{value!r:.60}"
    except ValueError:  # Python refuses to write integers of more than 4,300 digits
        return "a number of thousands of digits"


def _said(value: Any) -> str:
    return f"{shown(value)} ({type(value).__name__})"
