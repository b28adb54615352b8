"""Fusion: one vector per interaction, from whichever encoders a cell uses (paper 4.2), and the controls in their place.

All of these answer the same call: the vectors of one example's history. CF comes first in the concatenation.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from regen.data.histories import Example


@runtime_checkable
class InteractionVectors(Protocol):
    """What enters the adapter for a history."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        """Vectors of the example's history, oldest first; `draw` tells one visit of an example from the next."""


@dataclass(frozen=True)
class WordsOnly:
    """No vectors at all: the prompt holds the history (`encoder=text`)."""

    dim: int = 0

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class ItemVectors:
    """One vector per item, by interaction.

    Attributes:
        vectors: Of each item.
        item_of: Item row of each interaction.
    """

    vectors: Float[np.ndarray, "items dim"]
    item_of: np.ndarray

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.asarray(self.vectors[self.item_of[example.rows]], dtype=np.float32)


class CFVectors(ItemVectors):
    """Item factors, normalised by their mean norm."""


@dataclass(frozen=True)
class ContentVectors:
    """Sentence embeddings, by interaction: of item text and review, or of item text alone where that is withheld.

    Attributes:
        vectors: One unit vector per distinct text.
        reviewed: Row in `vectors` of each interaction with its review, -1 where it was not encoded.
        unreviewed: Row in `vectors` of each interaction without its review, -1 where it was not encoded.
    """

    vectors: Float[np.ndarray, "texts dim"]
    reviewed: np.ndarray
    unreviewed: np.ndarray

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        rows = np.where(example.withheld, self.unreviewed[example.rows], self.reviewed[example.rows])
        assert (rows >= 0).all(), f"user {example.user_id!r} has an interaction without a content vector"
        return np.asarray(self.vectors[rows], dtype=np.float32)


@dataclass(frozen=True)
class Fused:
    """Concatenation of several encoders' vectors."""

    parts: tuple[InteractionVectors, ...]

    @property
    def dim(self) -> int:
        return sum(part.dim for part in self.parts)

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.concatenate([part(example, draw=draw) for part in self.parts], axis=1)


@dataclass(frozen=True)
class RandomVectors:
    """Control: a fixed random vector per item, which is what item identity alone gives.

    Attributes:
        item_of: Item row of each interaction.
        dim: Width.
        seed: Of the vectors.
    """

    item_of: np.ndarray
    dim: int
    seed: int

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.stack([random_vector(int(item), self.dim, seed=self.seed) for item in self.item_of[example.rows]])


@dataclass(frozen=True)
class NoiseVectors:
    """Control: vectors drawn afresh at every visit, so nothing can be learned from them but the history's length."""

    dim: int
    seed: int

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return _unit([self.seed, int(example.rows[-1]), draw], (len(example.rows), self.dim))


@dataclass(frozen=True)
class NoVectors:
    """Control: nothing; the model puts one learned vector per position in their place."""

    dim: int

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.zeros((len(example.rows), self.dim), dtype=np.float32)


def item_vectors(vectors: InteractionVectors, items: int) -> Float[np.ndarray, "items dim"]:
    """Vector of each item of a catalogue, in the space of the vectors of purchases.

    Args:
        vectors: Of purchases. The controls know nothing of items, so each gets a fixed random vector.
        items: How many there are.

    Raises:
        ValueError: If a part has vectors of interactions only.
    """
    if isinstance(vectors, Fused):
        return np.concatenate([item_vectors(part, items) for part in vectors.parts], axis=1)
    if isinstance(vectors, RandomVectors | NoiseVectors | NoVectors):
        seed = 0 if isinstance(vectors, NoVectors) else vectors.seed
        return np.stack([random_vector(item, vectors.dim, seed=seed) for item in range(items)])
    if isinstance(vectors, ItemVectors):
        return np.asarray(vectors.vectors, dtype=np.float32)
    raise ValueError(
        f"task=recommend compares a history with items, and {type(vectors).__name__} has no vectors of items. Let the "
        "part of your encoder load a regen.embeddings.fusion.ItemVectors."
    )


def random_vector(item: int, dim: int, *, seed: int) -> Float[np.ndarray, " dim"]:
    """The fixed random vector of an item, a function of its row and the seed alone."""
    return _unit([seed, item], (dim,))


def _unit(seed: list[int], shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Normal vectors whose expected squared norm is one."""
    return (np.random.default_rng(seed).standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
