"""Fusion of the encoders' vectors into one vector per interaction (paper 4.2), and the controls.

All classes have the same interface: they return the vectors of one example's history.
"""

from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from regen.data.histories import Example

IN_MEMORY = 2**30  # bytes; a larger catalogue of vectors is mapped to a file


@runtime_checkable
class InteractionVectors(Protocol):
    """Returns the adapter's input for a history."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        """Vectors of the example's history, oldest first. `draw` seeds random vectors of one step."""


@dataclass(frozen=True)
class WordsOnly:
    """No vectors, because the prompt contains the history as text (`encoder=text`)."""

    dim: int = 0

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class ItemVectors:
    """The vector of each interaction's item.

    Attributes:
        vectors: Vector of each item.
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
    """Item factors of a CF model, divided by their mean norm."""


@dataclass(frozen=True)
class ContentVectors:
    """Sentence embeddings of each interaction: of item text and review, or of item text alone if it is withheld.

    Attributes:
        vectors: One unit vector per distinct text.
        reviewed: Row in `vectors` of each interaction with its review, -1 if not encoded.
        unreviewed: Row in `vectors` of each interaction without its review, -1 if not encoded.
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
    """Concatenation of the vectors of several encoders, in their order."""

    parts: tuple[InteractionVectors, ...]

    @property
    def dim(self) -> int:
        return sum(part.dim for part in self.parts)

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.concatenate([part(example, draw=draw) for part in self.parts], axis=1)


@dataclass(frozen=True)
class RandomVectors:
    """Control: a fixed random vector per item, which carries the item's identity only.

    Attributes:
        item_of: Item row of each interaction.
        dim: Width of a vector.
        seed: Seed of the vectors.
    """

    item_of: np.ndarray
    dim: int
    seed: int

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.stack([random_vector(int(item), self.dim, seed=self.seed) for item in self.item_of[example.rows]])


@dataclass(frozen=True)
class NoiseVectors:
    """Control: new random vectors at every step; only the length of the history carries information."""

    dim: int
    seed: int

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return _unit([self.seed, int(example.rows[-1]), draw], (len(example.rows), self.dim))


@dataclass(frozen=True)
class NoVectors:
    """Control: zeros, which the model replaces by one learned vector per position."""

    dim: int

    def __call__(self, example: Example, *, draw: int) -> Float[np.ndarray, "history dim"]:
        return np.zeros((len(example.rows), self.dim), dtype=np.float32)


def item_vectors(vectors: InteractionVectors, items: int) -> Float[np.ndarray, "items dim"]:
    """Vector of each item of the catalogue, in the space of the interaction vectors.

    Args:
        vectors: Interaction vectors. Controls have no item vectors, so items get fixed random vectors.
        items: Number of items.

    Returns:
        The vectors; mapped to a file if they have more than `IN_MEMORY` bytes.

    Raises:
        ValueError: If a part has no item vectors.
    """
    found, start = _room(items, vectors.dim), 0
    for part in vectors.parts if isinstance(vectors, Fused) else [vectors]:
        columns = found[:, start : start + part.dim]
        start += part.dim
        if isinstance(part, ItemVectors):
            columns[:] = part.vectors
        elif isinstance(part, RandomVectors | NoiseVectors | NoVectors):
            seed = 0 if isinstance(part, NoVectors) else part.seed
            for item in range(items):
                columns[item] = random_vector(item, part.dim, seed=seed)
        else:
            raise ValueError(
                f"task=recommend needs item vectors, and {type(part).__name__} has none. Let `load` of your encoder "
                "part return a regen.embeddings.fusion.ItemVectors."
            )
    return found


def _room(items: int, dim: int) -> Float[np.ndarray, "items dim"]:
    """An empty catalogue: in memory, or mapped to a temporary file that the system removes with the process."""
    if items * dim * 4 <= IN_MEMORY:
        return np.empty((items, dim), dtype=np.float32)
    with TemporaryFile() as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=(items, dim))


def random_vector(item: int, dim: int, *, seed: int) -> Float[np.ndarray, " dim"]:
    """The fixed random vector of an item, from its row and the seed."""
    return _unit([seed, item], (dim,))


def _unit(seed: list[int], shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Normal random vectors with an expected squared norm of one."""
    return (np.random.default_rng(seed).standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32)
