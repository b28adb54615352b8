"""Narratives in conversational recommendation: `from regen import NarrativeModel` loads a trained model."""

from typing import Any

__all__ = ["NarrativeModel"]


def __getattr__(name: str) -> Any:
    """Loads torch and the like only for those who ask: every command imports this package."""
    if name == "NarrativeModel":
        from regen.serving import NarrativeModel

        return NarrativeModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
