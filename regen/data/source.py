"""What every source is: input files, and a way to write the prepared tables."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from regen.data.tables import NARRATIVE_KEY, Tables


class Source(Protocol):
    """Where rows come from."""

    def files(self) -> dict[str, Path]:
        """Input files by their role; what is in them identifies the artefact."""

    def write(self, folder: Path) -> dict[str, int]:
        """Writes `items.parquet`, `interactions.parquet` and `narratives.parquet`, checked and sorted.

        Returns:
            How many rows were read, kept and dropped for which reason: `<table>.read`, `<table>.kept`,
            `<table>.dropped.<reason>`; other names for what else was noticed.
        """


class TablesSource(ABC):
    """A source whose tables fit into memory."""

    @abstractmethod
    def read(self) -> tuple[Tables, dict[str, int]]:
        """The three tables, checked, and the counts."""

    def write(self, folder: Path) -> dict[str, int]:
        """Reads everything, then writes it."""
        tables, counts = self.read()
        write_tables(tables, folder)
        return counts


def write_tables(tables: Tables, folder: Path) -> None:
    """Writes tables whose interactions are in the order of histories."""
    tables.items.sort("item_id").write_parquet(folder / "items.parquet")
    tables.interactions.write_parquet(folder / "interactions.parquet")
    tables.narratives.sort(NARRATIVE_KEY).write_parquet(folder / "narratives.parquet")
    if tables.planted is not None:
        tables.planted.write_parquet(folder / "planted.parquet")
