"""Schemas of the narrators' answers, checked by pydantic (paper, appendices B and F; critiques: the second paper)."""

from typing import Annotated

from pydantic import BaseModel, StringConstraints, ValidationInfo, field_validator

from regen.data.critiques import LONGEST, names_item

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class ReasonsAndSummaries(BaseModel):
    """Answer to the request with the whole history, about the final purchase."""

    purchase_reason: Text | None
    purchase_reason_explanation: Text
    brief_user_summary: Text
    long_user_summary: Text
    user_profile: Text


class Endorsement(BaseModel):
    """Answer to the request without the final review."""

    product_endorsement: Text


class Critique(BaseModel):
    """Answer to the request about two items bought one after the other.

    It is None if nothing tells the items apart. The context may have `unnamed`: a title that the answer must not name,
    see `names_item`.
    """

    critique: Annotated[Text, StringConstraints(max_length=LONGEST)] | None

    @field_validator("critique")
    @classmethod
    def _name_nothing(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None and info.context and names_item(text, info.context["unnamed"]):
            raise ValueError(f"names the item that it leads to, {info.context['unnamed'][:80]!r}")
        return text
