"""Schemas of the narrators' answers, checked by pydantic (paper, appendices B and F)."""

from typing import Annotated

from pydantic import BaseModel, StringConstraints

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
