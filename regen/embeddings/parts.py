"""Interface of an encoder's parts (paper 4.2), such as CF and content, and the choice of the adapter's input."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from regen.data.prepare import item_rows
from regen.data.tables import Tables
from regen.embeddings import fusion
from regen.storage import identity
from regen.storage.artefacts import Artefact

CONTROLS = ("none", "random", "noise")
TEXT = "text"  # the history as text in the prompt
OURS = ("cf", "content")  # parts that are config groups


class Part(Protocol):
    """Turns prepared data into one vector per interaction."""

    def request(self, prepared: str) -> identity.Request:
        """Identity of the part's artefact, from the fingerprint of the prepared data."""

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        """Builds or reuses the part's artefact.

        Args:
            prepared: The prepared tables.
            root: Folder of the artefacts.
            force: Build again even if the artefact exists.
        """

    def load(self, made: Artefact, tables: Tables) -> fusion.InteractionVectors:
        """Loads the vectors of an artefact that `encode` built."""


def interaction_vectors(
    encoder: str, parts: Sequence[fusion.InteractionVectors], tables: Tables, *, dim: int | None, seed: int
) -> fusion.InteractionVectors:
    """The input vectors of the adapter.

    Args:
        encoder: Name of the encoder; used if it has no parts.
        parts: Vectors of the encoder's parts, in order. They are fused.
        tables: The prepared tables.
        dim: Width of a control's vectors.
        seed: Seed of a control's vectors.
    """
    if parts:
        return fusion.Fused(tuple(parts))
    if encoder == TEXT:
        return fusion.WordsOnly()
    assert dim is not None  # checked by `training.preflight`
    if encoder == "none":
        return fusion.NoVectors(dim)
    if encoder == "noise":
        return fusion.NoiseVectors(dim, seed)
    return fusion.RandomVectors(item_rows(tables).to_numpy(), dim, seed)
