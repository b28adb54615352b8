"""What a model writes for a history."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Narrative:
    """A narrative and how much of its history the model could place.

    Attributes:
        text: The narrative; so is `str(narrative)`.
        confidence: Share of the interactions read whose item has a CF factor, for an encoder with CF (and whose item
            is known, for `random`); 1.0 for encoders that need no item table. It says how much of the input reached
            the model, not how likely the text is to be true.
        unknown_items: Id, or else title, of the items that lower it.
    """

    text: str
    confidence: float
    unknown_items: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text
