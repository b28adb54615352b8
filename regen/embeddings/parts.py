"""The parts of an encoder (paper 4.2): CF, content, or a class of the user's own. Each has an artefact and vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regen.config.objects import plain
from regen.config.schema import Split
from regen.data.prepare import item_rows
from regen.data.tables import Tables
from regen.embeddings import fusion
from regen.embeddings.cf import ItemFactorizer
from regen.embeddings.encode import encode_cf, load_cf
from regen.embeddings.encode_content import encode_content, encode_items, load_content, load_item_content
from regen.runtime.shards import Engine
from regen.storage import identity
from regen.storage.artefacts import Artefact

CONTROLS = ("none", "random", "noise")
TEXT = "text"  # the history as words in the prompt
OURS = ("cf", "content")  # parts that are config groups


class Part(Protocol):
    """Turns prepared data into one vector per interaction."""

    def request(self, prepared: str) -> identity.Request:
        """What names the part's artefact, from the fingerprint of the prepared data."""

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        """Builds or reuses the part's artefact.

        Args:
            prepared: The prepared tables.
            root: Folder that holds artefacts.
            force: Build it anew.
        """

    def load(self, made: Artefact, tables: Tables) -> fusion.InteractionVectors:
        """The vectors of an artefact that `encode` built."""


@dataclass(frozen=True)
class CFPart:
    """Item factors of a CF model.

    Attributes:
        model: The CF model.
        recipe: Its config, which names the artefact.
        alpha: What the highest rating adds to a confidence.
        split: Who trains.
    """

    model: ItemFactorizer
    recipe: Mapping[str, Any]
    alpha: float
    split: Split

    def request(self, prepared: str) -> identity.Request:
        return identity.cf(prepared, self.recipe, identity.split(plain(self.split)))

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        return encode_cf(
            self.model, self.recipe, alpha=self.alpha, prepared=prepared, split=self.split, root=root, force=force
        )

    def load(self, made: Artefact, tables: Tables) -> fusion.InteractionVectors:
        return load_cf(made, tables)


@dataclass(frozen=True)
class ContentPart:
    """Sentence embeddings of item texts and reviews.

    Attributes:
        pretrained: `minilm`, a folder or a hub id of a sentence encoder.
        batch_size: The most texts of a step.
        engine: Where texts are encoded.
    """

    pretrained: str
    batch_size: int
    engine: Engine

    def request(self, prepared: str) -> identity.Request:
        return identity.content(prepared, identity.sentence_encoder(self.pretrained))

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        return encode_content(
            identity.sentence_encoder(self.pretrained),
            pretrained=self.pretrained,
            batch_size=self.batch_size,
            prepared=prepared,
            root=root,
            engine=self.engine,
            force=force,
        )

    def load(self, made: Artefact, tables: Tables) -> fusion.InteractionVectors:
        return load_content(made)


@dataclass(frozen=True)
class ItemContentPart:
    """Sentence embeddings of item texts alone: what `task=recommend` knows of purchases and of candidates.

    Attributes:
        pretrained: As for `ContentPart`.
        batch_size: As for `ContentPart`.
    """

    pretrained: str
    batch_size: int

    def request(self, prepared: str) -> identity.Request:
        return identity.item_content(prepared, identity.sentence_encoder(self.pretrained))

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        encoder = identity.sentence_encoder(self.pretrained)
        options: dict[str, Any] = {"pretrained": self.pretrained, "batch_size": self.batch_size, "force": force}
        return encode_items(encoder, prepared=prepared, root=root, **options)

    def load(self, made: Artefact, tables: Tables) -> fusion.InteractionVectors:
        return load_item_content(made, tables)


def interaction_vectors(
    encoder: str, parts: Sequence[fusion.InteractionVectors], tables: Tables, *, dim: int | None, seed: int
) -> fusion.InteractionVectors:
    """The vectors that enter the adapter.

    Args:
        encoder: Name of a control or of `text`; any other name fuses the parts.
        parts: Vectors of the encoder's parts, in order.
        tables: The prepared tables.
        dim: Width of a control's vectors.
        seed: Of a control's vectors.
    """
    if parts:
        return fusion.Fused(tuple(parts))
    if encoder == TEXT:
        return fusion.WordsOnly()
    assert dim is not None  # `training.preflight` has refused it
    if encoder == "none":
        return fusion.NoVectors(dim)
    if encoder == "noise":
        return fusion.NoiseVectors(dim, seed)
    return fusion.RandomVectors(item_rows(tables).to_numpy(), dim, seed)
