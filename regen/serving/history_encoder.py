"""Encodes histories that users write, exactly as training encodes those of the data."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float

from regen.data.histories import withheld_reviews
from regen.data.history_words import review_text
from regen.data.tables import INTERACTIONS, ITEMS
from regen.embeddings.content import embed_texts
from regen.embeddings.fusion import random_vector
from regen.embeddings.interaction_texts import interaction_texts, item_parts
from regen.embeddings.vector_store import VECTOR_DTYPE
from regen.serving.interactions import Interaction
from regen.serving.items import Items

SERVED = ("cf", "content", "both", "none", "random")
"""Encoders that can encode new histories."""


@dataclass(frozen=True)
class EncodedHistory:
    """Vectors of a history.

    Attributes:
        fused: One vector per interaction, oldest first.
        known: Whether each item has a CF factor or random vector, if the encoder uses one.
    """

    fused: Float[np.ndarray, "history dim"]
    known: np.ndarray


@dataclass(frozen=True)
class HistoryEncoder:
    """Computes the fused vectors that the adapter reads.

    Attributes:
        encoder: Name of the encoder, one of `SERVED`.
        dim: Width of a fused vector.
        items: Items of the training data, with CF factors if the encoder uses them.
        sentence_encoder: Sentence encoder, if the encoder uses content.
        seed: Seed of random vectors.
    """

    encoder: str
    dim: int
    items: Items
    sentence_encoder: str | None
    seed: int

    def __call__(
        self, histories: Sequence[Sequence[Interaction]], *, withhold_final_review: bool
    ) -> list[EncodedHistory]:
        """Encodes histories together, so that the sentence encoder gets all texts in one batch.

        Args:
            histories: As returned by `read_history`.
            withhold_final_review: Whether to mask each final review and its copies.
        """
        flat = [one for history in histories for one in history]
        parts: list[np.ndarray] = []
        known = np.ones(len(flat), dtype=bool)
        if self.encoder in ("cf", "both"):
            factors = self._factors(flat)
            known = np.asarray(factors.any(axis=1))
            parts.append(factors)
        if self.encoder in ("content", "both"):
            withheld = [
                withheld_reviews([(one.review_title, one.review) for one in history], final=withhold_final_review)
                for history in histories
            ]
            parts.append(self._content(flat, np.concatenate(withheld)))
        if self.encoder == "random":
            rows = [self.items.row(one.item_id) for one in flat]
            known = np.array([row is not None for row in rows])
            parts.append(np.stack([self._random(row) for row in rows]))
        if self.encoder == "none":
            parts.append(np.zeros((len(flat), self.dim), dtype=np.float32))
        ends = np.cumsum([len(history) for history in histories])[:-1]
        fused = np.split(np.concatenate(parts, axis=1), ends)
        return [EncodedHistory(*pair) for pair in zip(fused, np.split(known, ends), strict=True)]

    def _factors(self, interactions: Sequence[Interaction]) -> Float[np.ndarray, "interactions factors"]:
        assert self.items.factors is not None
        factors = np.zeros((len(interactions), self.items.factors.shape[1]), dtype=np.float32)
        for at, one in enumerate(interactions):
            row = self.items.row(one.item_id)
            if row is not None:
                factors[at] = self.items.factors[row]
        return factors

    def _content(self, interactions: Sequence[Interaction], withheld: np.ndarray) -> Float[np.ndarray, "texts dim"]:
        assert self.sentence_encoder is not None
        items = pl.DataFrame(
            {name: [getattr(one, name) for one in interactions] for name in ITEMS.names()}, schema=ITEMS
        )
        reviews = pl.DataFrame(
            {
                "rating": [one.rating for one in interactions],
                "review_title": [one.review_title for one in interactions],
                "review_text": [one.review for one in interactions],
            },
            schema={name: INTERACTIONS[name] for name in ("rating", "review_title", "review_text")},
        )
        shown = ["" if hidden else review for review, hidden in zip(review_text(reviews), withheld, strict=True)]
        built = interaction_texts(item_parts(items), shown, pretrained=self.sentence_encoder)
        vectors = embed_texts(built.texts, pretrained=self.sentence_encoder)
        return vectors.astype(VECTOR_DTYPE).astype(np.float32)  # the precision in which training stores them

    def _random(self, row: int | None) -> Float[np.ndarray, " dim"]:
        return np.zeros(self.dim, dtype=np.float32) if row is None else random_vector(row, self.dim, seed=self.seed)
