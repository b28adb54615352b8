"""A history as a person writes it, checked: every complaint names the interaction and the fix."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from regen.data.tables import nearest
from regen.serving.items import Items

TEXT_CHARACTERS = 20_000  # far beyond the window of any sentence encoder, so that a cut changes no vector
MOST = 1e12  # of a rating or price
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class RequestError(ValueError):
    """What a caller asked for cannot be done; the message has the value, the limit and the fix."""


@dataclass(frozen=True)
class Interaction:
    """One purchase and what its buyer said of it.

    Attributes:
        title: Of the item; may be left out where `item_id` is known to the model.
        rating: Stars, on the scale of the training data.
        review: Text of the review.
        review_title: Its heading.
        item_id: The training data's id, which brings the CF factor and whatever else is left out about the item.
        category: "Office Products - Pens", from general to special.
        brand: Maker of the item.
        price: In dollars.
        description: Of the item.
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
    """The latest interactions of a history, oldest first, their texts cleaned, completed from the items that are known.

    Control characters become spaces, halves of surrogate pairs question marks; texts are cut at `TEXT_CHARACTERS`,
    and what is blank is left out. What an interaction says of its item goes before what the table says.

    Args:
        history: Interactions, or mappings with the names of an `Interaction`'s attributes.
        items: The training data's.
        latest: How many are kept; older ones are not looked at.

    Raises:
        RequestError: If it is no sequence, empty, or one of the interactions kept is not as described or has no title.
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
    """Whether a value can be a list of things: text and bytes are none."""
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
        raise RequestError(f"{where}={_said(value)} is no number. Leave it out where it is unknown.")
    if not abs(value) < MOST:  # nor NaN
        raise RequestError(f"{where}={shown(value)} is not within ±{MOST:.0e}. Leave it out where it is unknown.")
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
