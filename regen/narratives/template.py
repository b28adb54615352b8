"""`narrator=template`: writes narratives by fixed rules, without a language model.

This allows the use of real reviews without an endpoint. The texts state only facts of the user's rows: the most bought
category and brand, the ratings and the final item.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

from regen.narratives.histories import Purchase, UserHistory

VERSION = 1
_LIKED = 4.0  # stars; a purchase with at least this rating counts as liked


def narrate(history: UserHistory) -> dict[str, str | None]:
    """The six features of one user. The reason is None if no earlier purchase explains the final one."""
    earlier = history.purchases[:-1]
    final = history.final
    taste = _Taste(history.purchases)
    known = _Taste(history.without_final_review().purchases)
    name = _name(final)
    relation = _relation(final, earlier)
    return {
        "purchase_reason": _pick(history, "reason", _REASONS).format(name=name, relation=relation)
        if relation
        else None,
        "purchase_reason_explanation": _sentences(
            f"The customer bought {name} after {_count(len(earlier), 'earlier purchase')}",
            f"What came before points to it: {relation}" if relation else "Nothing in the history points to it",
            taste.ratings,
        ),
        "product_endorsement": _sentences(
            _pick(history, "pitch", _PITCHES).format(name=name),
            f"You often choose {known.favourites}" if known.favourites else None,
            f"It belongs to {_category(final)}" if final.category else None,
            known.liked,
        ),
        "brief_user_summary": _sentences(
            f"This customer made {_count(len(history.purchases), 'purchase')}"
            + (f", mostly {taste.favourites}" if taste.favourites else ""),
            taste.ratings or f"The latest is {name}",
        ),
        "long_user_summary": _sentences(
            f"This customer made {_count(len(history.purchases), 'purchase')}",
            f"Most of them are {taste.favourites}" if taste.favourites else None,
            taste.prices,
            taste.ratings,
            taste.liked,
            taste.disliked,
            f"The latest purchase is {name}",
        ),
        "user_profile": f"{taste.mood} buyer of {taste.main or 'various items'}",
    }


_REASONS = (
    "Bought {name} {relation}.",
    "The customer chose {name} {relation}.",
    "{name} was bought {relation}.",
)
_PITCHES = (
    "{name} is a good match for you",
    "Have a look at {name}",
    "We think that {name} suits you",
)


class _Taste:
    """Facts about a list of purchases, in words."""

    def __init__(self, purchases: Sequence[Purchase]) -> None:
        categories = Counter(_category(purchase) for purchase in purchases if purchase.category)
        brands = Counter(purchase.brand for purchase in purchases if purchase.brand)
        self.main = _most(categories)
        brand = _most(brands)
        parts = [self.main or "", f"from {brand}" if brand else ""]
        self.favourites = " ".join(part for part in parts if part)
        rated = [purchase for purchase in purchases if purchase.rating is not None]
        stars = sum(purchase.rating or 0.0 for purchase in rated)
        self.ratings = f"They give {stars / len(rated):.1f} stars on average" if rated else None
        self.mood = _mood(stars / len(rated)) if rated else "Quiet"
        prices = [purchase.price for purchase in purchases if purchase.price is not None]
        self.prices = f"They usually pay about {sum(prices) / len(prices):.0f} dollars" if prices else None
        best = [purchase for purchase in rated if (purchase.rating or 0.0) >= _LIKED]
        worst = [purchase for purchase in rated if (purchase.rating or 0.0) < _LIKED]
        self.liked = f"Among what was rated best is {_name(best[-1])}" if best else None
        self.disliked = f"Less liked was {_name(worst[-1])}" if worst else None


def _relation(final: Purchase, earlier: Sequence[Purchase]) -> str | None:
    same_item = sum(purchase.item_id == final.item_id for purchase in earlier)
    if same_item:
        return f"again, after {_count(same_item, 'earlier purchase')} of it"
    same_brand = sum(bool(final.brand) and purchase.brand == final.brand for purchase in earlier)
    if same_brand:
        return f"to go with {_count(same_brand, 'earlier purchase')} from {final.brand}"
    same_category = sum(bool(final.category) and purchase.category == final.category for purchase in earlier)
    if same_category:
        return f"to go with {_count(same_category, 'earlier purchase')} of {_category(final)}"
    return None


def _name(purchase: Purchase, limit: int = 60) -> str:
    title = purchase.title
    return title if len(title) <= limit else f"{title[:limit].rsplit(' ', 1)[0]} …"


def _category(purchase: Purchase) -> str:
    return (purchase.category or "").rpartition(" - ")[2]


def _most(counts: "Counter[str]") -> str | None:
    """The most frequent name; the alphabet breaks ties."""
    return min(counts, key=lambda name: (-counts[name], name)) if counts else None


def _mood(stars: float) -> str:
    return "Enthusiastic" if stars >= 4.5 else "Content" if stars >= 3.5 else "Critical"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _pick(history: UserHistory, purpose: str, options: Sequence[str]) -> str:
    """One of several wordings, always the same one for the same user."""
    digest = hashlib.sha256(f"{purpose} {history.user_id}".encode()).digest()
    return options[digest[0] % len(options)]


def _sentences(*parts: str | None) -> str:
    return " ".join(f"{part}." for part in parts if part)
