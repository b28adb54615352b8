"""Text templates and words of the synthetic source.

Item texts and reviews name traits. Narratives name traits and the hidden need.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from regen.data.tables import nearest

LEXICON = Path(__file__).parent / "lexicon"
TRAITS = ("category", "brand", "colour", "price_band")

DESCRIPTIONS = (
    "A {price_band} {category} from {brand}, finished in {colour}.",
    "{brand} {category} with a {colour} body; {price_band} range.",
    "This {colour} {category} belongs to the {price_band} line by {brand}.",
)
PRAISE = (
    "Good {category}, works well.",
    "The {colour} looks nice on this {category}.",
    "{brand} makes a decent {category}.",
    "Happy with this {colour} one from {brand}.",
    "Does its job. I would buy {brand} again.",
    "Solid {category} for a {price_band} price.",
)
BLAME = (
    "Not impressed with this {category}.",
    "The {colour} faded quickly.",
    "Expected more from {brand}.",
    "A weak {category} for a {price_band} price.",
)
REVIEW_TITLES = ("Works", "As described", "My opinion", "After a month", "Short review")

NARRATIVES: dict[str, tuple[str, ...]] = {
    "purchase_reason": (
        "The customer needed a {brand} {category} for {need}.",
        "Wanted a {category} by {brand} to help with {need}.",
        "Bought this {brand} {category} because of {need}.",
        "A {category} from {brand} was needed for {need}.",
    ),
    "purchase_reason_explanation": (
        "The history points to {need}, and the last purchase fits it: a {colour} {category} made by {brand} for this.",
        "Earlier purchases go together with {need}. A {colour} {category} from {brand} serves the same purpose.",
        "Past orders suggest {need}, so the {colour} {brand} {category} adds to what the customer already has.",
    ),
    "product_endorsement": (
        "Meet the {brand} {category}: a {price_band} choice in {colour} that makes {need} easier every day.",
        "If you care about {need}, this {colour} {category} by {brand} is the {price_band} pick for you.",
        "Made for {need}: the {price_band} {colour} {category} from {brand} fits right in with what you own.",
    ),
    "brief_user_summary": (
        "This customer shops with {need} in mind. The latest order was a {category} from {brand}.",
        "A buyer who is busy with {need}. Most recently they chose a {brand} {category}.",
        "Much of what they buy serves {need}. Their newest item is a {category} by {brand}.",
    ),
    "long_user_summary": (
        "This customer's orders belong together: they serve {need}, and each item adds to it. The most recent one is a "
        "{colour} {category} by {brand}, from the {price_band} range. They review what they buy and return for more.",
        "Across the whole history one purpose stands out, which is {need}. The latest order, a {price_band} {category} "
        "from {brand} in {colour}, continues it. They try different makers and write short, honest reviews.",
        "They buy steadily and with a purpose: {need} explains most of the orders. Last came a {colour} {brand} "
        "{category} of the {price_band} kind. Their reviews are short and say what worked.",
    ),
    "user_profile": (
        "{category} buyer keen on {need}",
        "{need} shopper with a {category}",
        "Busy with {need}, bought a {category}",
    ),
}


@dataclass(frozen=True)
class Lexicon:
    """Words of one vertical.

    Attributes:
        traits: Values of each visible trait.
        prices: Lowest and highest price of each price band.
        needs: For each need, the phrases that name it in narratives.
    """

    traits: dict[str, list[str]]
    prices: dict[str, tuple[float, float]]
    needs: dict[str, list[str]]

    @staticmethod
    def load(vertical: str) -> "Lexicon":
        """Reads the words of a vertical.

        Raises:
            ValueError: If the vertical is unknown.
        """
        known = sorted(path.stem for path in LEXICON.glob("*.yaml"))
        if vertical not in known:
            raise ValueError(
                f"vertical={vertical}: the synthetic source has no words for it. {nearest(vertical, known)}"
            )
        words = yaml.safe_load((LEXICON / f"{vertical}.yaml").read_text(encoding="utf-8"))
        prices = {band: (float(low), float(high)) for band, (low, high) in words["price_band"].items()}
        traits = {name: list(words[name]) for name in TRAITS}
        return Lexicon(traits, prices, words["need"])

    def forms(self, label: str) -> dict[str, list[str]]:
        """For each value of a label (`need` or a trait), the lowercase phrases that name it."""
        if label == "need":
            return self.needs
        return {value: [value.lower()] for value in self.traits[label]}


def filled(templates: tuple[str, ...], words: list[dict[str, str]], rng: np.random.Generator) -> list[str]:
    """One sentence for each set of words, from a random template."""
    chosen = rng.integers(len(templates), size=len(words))
    texts = [templates[template].format(**row) for template, row in zip(chosen, words, strict=True)]
    return [text[0].upper() + text[1:] for text in texts]
