"""What narrators answer: JSON by schema, checked by pydantic (paper, appendices B and F)."""

from typing import Annotated

from pydantic import BaseModel, StringConstraints

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class ReasonsAndSummaries(BaseModel):
    """From the whole history with reviews, focused on the final purchase."""

    purchase_reason: Text | None
    purchase_reason_explanation: Text
    brief_user_summary: Text
    long_user_summary: Text
    user_profile: Text


class Endorsement(BaseModel):
    """From the history without the final review."""

    product_endorsement: Text
