"""Interface of the data sources."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Protocol

from regen.data.tables import NARRATIVE_KEY, Tables


class Source(Protocol):
    """Reads input files and writes the prepared tables."""

    def files(self) -> dict[str, Path]:
        """Input files by role. Their content identifies the artefact."""

    def write(self, folder: Path) -> dict[str, int]:
        """Writes validated and sorted `items.parquet`, `interactions.parquet` and `narratives.parquet`.

        A source with critiques also writes `critiques.parquet`.

        Returns:
            Row counts: `<table>.read`, `<table>.kept`, `<table>.dropped.<reason>`, and others specific to the source.
        """


class TablesSource(ABC):
    """A source whose tables fit into memory."""

    @abstractmethod
    def read(self) -> tuple[Tables, dict[str, int]]:
        """The three tables, validated, with interactions sorted, and row counts."""

    def write(self, folder: Path) -> dict[str, int]:
        """Reads and writes the tables."""
        tables, counts = self.read()
        tables.items.sort("item_id").write_parquet(folder / "items.parquet")
        tables.interactions.write_parquet(folder / "interactions.parquet")
        tables.narratives.sort(NARRATIVE_KEY).write_parquet(folder / "narratives.parquet")
        if tables.planted is not None:
            tables.planted.write_parquet(folder / "planted.parquet")
        if tables.critiques is not None:
            tables.critiques.write_parquet(folder / "critiques.parquet")
        return counts
