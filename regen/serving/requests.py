"""Bodies of requests and responses; other fields in a request are refused."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model, model_validator
from pydantic.config import JsonDict

from regen.data.critiques import LONGEST
from regen.serving.interactions import MOST, Interaction

MOST_NARRATIVES = 32  # in one request
MOST_PURCHASES = 1_000  # in one history; models read far fewer
MOST_TURNS = 50  # in one conversation
MOST_RECOMMENDED = 100  # items in one answer
OF_USER, OF_HISTORY = "of_user", "of_history"  # tags of the two kinds of narratives, which pydantic puts into errors
IDENTIFIER = 200  # characters of an id or a query
_SOMETHING = r"[^\s\x00-\x1f\x7f-\x9f]"  # a character that is neither white space nor control
_TITLE_OR_ITEM: JsonDict = {
    "anyOf": [
        {"required": ["title"], "properties": {"title": {"type": "string", "pattern": _SOMETHING}}},
        {"required": ["item_id"], "properties": {"item_id": {"type": "string"}}},
    ]
}

Number = Annotated[float, Field(gt=-MOST, lt=MOST)]
Identifier = Annotated[str, Field(min_length=1, max_length=IDENTIFIER)]


class Sent(BaseModel):
    """A part of a request: exact types, no other keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown_key(cls, sent: Any) -> Any:
        """Drops all unknown keys but one: pydantic builds an error for each, and a body may have 100,000."""
        if not isinstance(sent, dict):
            return sent
        others = {key for key in sent if key not in cls.model_fields}
        if len(others) <= 1:
            return sent
        others.remove(next(key for key in sent if key in others))
        return {key: value for key, value in sent.items() if key not in others}


class Purchase(Sent):
    """One purchase and its review; the id is enough for a known item."""

    model_config = ConfigDict(json_schema_extra=_TITLE_OR_ITEM)

    title: str | None = Field(None, description="Of the item; needed where item_id is left out or unknown.")
    rating: Number | None = Field(None, description="Stars, on the scale of the training data.")
    review: str | None = None
    review_title: str | None = None
    item_id: Identifier | None = Field(None, description="As GET /v1/items gives it.")
    category: str | None = None
    brand: str | None = None
    price: Number | None = Field(None, description="In dollars.")
    description: str | None = None

    @model_validator(mode="after")
    def _has_an_item(self) -> Self:
        if self.item_id is None and not re.search(_SOMETHING, self.title or ""):
            raise ValueError("give the item's title, or its item_id")
        return self

    def interaction(self) -> Interaction:
        return Interaction(**dict(self))


class OfUser(Sent):
    """A narrative for a user of the data that the service was started with."""

    user_id: Identifier
    feature: str


class OfHistory(Sent):
    """A narrative for a history; the latest purchases are read, as many as in training."""

    history: list[Purchase] = Field(
        min_length=1, max_length=MOST_PURCHASES, fail_fast=True, description="Oldest first."
    )
    feature: str


class NarrativesRequest(Sent):
    """One or more narratives, in the order in which they are answered."""

    narratives: list[OfUser | OfHistory] = Field(min_length=1, max_length=MOST_NARRATIVES, fail_fast=True)
    stream: bool = Field(False, description="Send the texts as server-sent events while they are written.")


class SentTurn(Sent):
    """An item that was recommended, and what the user said about it."""

    item_id: Identifier
    critique: str = Field(max_length=LONGEST)


class RecommendationsRequest(Sent):
    """What to recommend to whom; the client keeps the turns of its conversation and sends them all."""

    history: list[Purchase] = Field(
        min_length=1, max_length=MOST_PURCHASES, fail_fast=True, description="Purchases, oldest first."
    )
    critique: str | None = Field(None, max_length=LONGEST, description="What the user says about the last purchase.")
    turns: list[SentTurn] = Field(
        [],
        max_length=MOST_TURNS,
        fail_fast=True,
        description="What was recommended since then, oldest first.",
    )
    k: int = Field(10, ge=1, le=MOST_RECOMMENDED, description="How many items.")
    narrative: bool = Field(False, description="Write about the first item, too; for a model of task=converse.")
    stream: bool = Field(False, description="Send server-sent events: items first, then the text as it is written.")


class RecommendedItem(BaseModel):
    """An item and how well it fits; scores compare within one answer only."""

    item_id: str
    title: str
    score: float


class RecommendationsResponse(BaseModel):
    """Items, the best first, and what there is to say about the first one."""

    model: str
    data: str = Field(description="Fingerprint of the data that the model was trained on.")
    items: list[RecommendedItem]
    narrative: str | None = None


def request_model(features: tuple[str, ...], *, places: int) -> type[NarrativesRequest]:
    """The request model of a service.

    Args:
        features: Features that the model writes.
        places: Narratives that the service holds at one time, which bounds a request.
    """
    feature: Any = (Literal[features], Field(description="What to write."))
    user: Any = create_model("OfUser", __base__=OfUser, __doc__=OfUser.__doc__, feature=feature)
    history: Any = create_model("OfHistory", __base__=OfHistory, __doc__=OfHistory.__doc__, feature=feature)
    one: Any = Annotated[Annotated[user, Tag(OF_USER)] | Annotated[history, Tag(OF_HISTORY)], Discriminator(_kind)]
    most = min(MOST_NARRATIVES, places)
    narratives: Any = (list[one], Field(min_length=1, max_length=most, fail_fast=True))
    return create_model(
        "NarrativesRequest", __base__=NarrativesRequest, __doc__=NarrativesRequest.__doc__, narratives=narratives
    )


class WrittenNarrative(BaseModel):
    """A narrative and how much of its history the model could place."""

    feature: str
    text: str
    confidence: float = Field(description="Share of the purchases read whose item the model knows.")
    unknown_items: list[str] = Field(description="Id, or else title, of the items that lower it.")


class NarrativesResponse(BaseModel):
    """Narratives in the order of the request."""

    model: str
    data: str = Field(description="Fingerprint of the data that the model was trained on.")
    narratives: list[WrittenNarrative]


class KnownItem(BaseModel):
    """An item of the training data."""

    item_id: str
    title: str | None
    brand: str | None
    category: str | None
    price: float | None
    description: str | None


class ItemsResponse(BaseModel):
    """Items that hold every word of the query, the best known first."""

    items: list[KnownItem]


class Health(BaseModel):
    """Whether narratives can be written."""

    status: Literal["ok"]


class Problem(BaseModel):
    """What is wrong with a request, or why it cannot be answered now."""

    detail: str


def _kind(one: Any) -> str:
    has_user = "user_id" in one if isinstance(one, dict) else isinstance(one, OfUser)
    return OF_USER if has_user else OF_HISTORY
