"""The result of `NarrativeModel.narrate`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Narrative:
    """A narrative, and how much of its history the model knows.

    Attributes:
        text: The narrative; `str(narrative)` returns it, too.
        confidence: Share of the interactions whose item has a CF factor, or a random vector with `encoder=random`. It
            is 1.0 for other encoders. It is no probability that the text is true.
        unknown_items: Ids of the other items, or titles if they have no id.
    """

    text: str
    confidence: float
    unknown_items: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text
