"""Trained models for their users: load, narrate, recommend, export, serve."""

from regen.generation.prepared import Prepared
from regen.serving.interactions import Interaction, RequestError
from regen.serving.items import Item, Items
from regen.serving.model import NarrativeModel
from regen.serving.narrative import Narrative

__all__ = ["Interaction", "Item", "Items", "Narrative", "NarrativeModel", "Prepared", "RequestError"]
