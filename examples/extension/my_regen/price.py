"""A part of an encoder: what each purchase cost."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regen.data.histories import Example
from regen.data.prepare import item_rows, load_tables
from regen.data.tables import Tables
from regen.storage.artefacts import Artefact, build


@dataclass(frozen=True)
class Prices:
    """The logarithm of the price of each interaction's item, or 0 where it is unknown."""

    of_interaction: np.ndarray
    dim: int = 1

    def __call__(self, example: Example, *, draw: int) -> np.ndarray:
        return self.of_interaction[example.rows][:, None]


@dataclass(frozen=True)
class PricePart:
    """Adds one dimension to the fused vector.

    Attributes:
        name: Of the part, in `encoder.parts`.
        unit: Prices are divided by it.
    """

    name: str
    unit: float

    def request(self, prepared: str) -> dict:
        """What names the artefact: the stage, its options and its inputs."""
        config, inputs = {"unit": self.unit}, {"prepared": prepared}
        return {"stage": "price", "version": 1, "config": config, "inputs": inputs, "libraries": ()}

    def encode(self, prepared: Artefact, *, root: Path, force: bool = False) -> Artefact:
        def make(folder: Path) -> dict[str, int]:
            prices = load_tables(prepared.path).items["price"].fill_null(0.0).to_numpy()
            np.save(folder / "prices.npy", np.log1p(prices / self.unit).astype(np.float32))
            return {"items": len(prices)}

        return build(**self.request(prepared.fingerprint), root=root, make=make, force=force)

    def load(self, made: Artefact, tables: Tables) -> Prices:
        return Prices(np.load(made.path / "prices.npy")[item_rows(tables).to_numpy()])
