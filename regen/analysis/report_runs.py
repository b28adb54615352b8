"""The runs that a report is about, as they lie on disk: config, record, data and predictions. Nothing is built."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from regen.evaluation.cells import grid_cells, leaves, run_cells
from regen.evaluation.comparison import Cell
from regen.evaluation.evaluate import PREDICTIONS
from regen.evaluation.prediction_files import read_predictions
from regen.evaluation.scoring import EXAMPLES
from regen.runtime.costs import CELL
from regen.storage.artefacts import Artefact, open_artefact
from regen.training.run import RECORD, WEIGHTS

_ABSENT = object()
_BY_NAME = ("feature", "encoder")  # settings that a table shows by their names
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")  # of an address; a report is passed on


@dataclass(frozen=True)
class ReportedRun:
    """One cell and what its folder holds.

    Attributes:
        cell: What the comparison knows of it.
        config: As resolved when it ran; empty where there is none.
        record: Inputs, versions, and what training found.
    """

    cell: Cell
    config: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.cell.folder

    @property
    def name(self) -> str:
        """Its folder's; of a cell of a grid that has no run its number, and what became of it."""
        return f"cell {self.folder.name}, {self.status}" if (self.folder / CELL).is_file() else self.folder.name

    @property
    def encoder(self) -> str:
        return self.cell.encoder

    @property
    def finished(self) -> bool:
        """Whether the trained weights are there."""
        return self.cell.error is None and (self.folder / WEIGHTS).is_file()

    @property
    def status(self) -> str:
        """In a word or two."""
        if self.cell.error is not None:
            return "failed"
        ranked = self.cell.recommends and (self.folder / EXAMPLES).is_file()
        if ranked or self.predictions is not None:
            return "finished"
        return "trained, wrote nothing yet" if self.finished else "not finished"

    @cached_property
    def predictions(self) -> pl.DataFrame | None:
        """What the model wrote for the test users; None where it did not, or where the file cannot be read."""
        try:
            return read_predictions(self.folder / PREDICTIONS) if self.cell.error is None else None
        except (OSError, ValueError):
            return None

    @cached_property
    def inputs(self) -> dict[str, Artefact] | str:
        """The artefacts that it was trained on, by name; or what is wrong with them."""
        root = self._data_dir()
        if root is None or not self.record.get("inputs"):
            return "its folder does not say which data it was trained on."
        found = {}
        for name, fingerprint in self.record["inputs"].items():
            folders = sorted(root.glob(f"[!.]*-{fingerprint}"))
            if not folders:
                return f"its data are not in {root}: no {name} artefact {fingerprint}."
            try:
                found[name] = open_artefact(folders[0])
            except (OSError, ValueError) as error:
                return str(error)
        return found

    @property
    def data(self) -> Artefact | None:
        """The prepared data with their narratives."""
        return None if isinstance(self.inputs, str) else self.inputs["prepared"]

    def _data_dir(self) -> Path | None:
        """Where its artefacts lie; a relative path holds from where the run was started."""
        paths = self.config.get("paths")
        if not paths:
            return None
        start = Path(str(self.folder.resolve().parent).removesuffix(str(Path(paths["runs_dir"]))))
        here = start / paths["data_dir"]
        return here if here.is_dir() else Path(paths["data_dir"])


def open_runs(folder: Path) -> list[ReportedRun]:
    """The cells of a grid, or the runs in a folder.

    Raises:
        FileNotFoundError: If the folder holds neither.
    """
    cells = grid_cells(folder) or run_cells(folder)
    if not cells:
        raise FileNotFoundError(
            f"runs={folder}: neither the folder of a grid nor one that holds runs. "
            "Give outputs/runs, or a grid's outputs/grids/DATE/TIME."
        )
    distinct = {cell.folder if cell.error is None else number: cell for number, cell in enumerate(cells)}
    return [ReportedRun(cell, _config(cell.folder), _record(cell.folder)) for cell in distinct.values()]


def common_settings(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """The settings that all runs share, nested as in their configs."""
    shared: dict[str, Any] = {}
    for path, value in leaves(runs[0].config if runs else {}):
        if all(_at(run.config, path) == value for run in runs):
            node = shared
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = value
    return shared


def differing_settings(runs: Sequence[ReportedRun]) -> tuple[list[str], list[list[str]]]:
    """The dotted keys whose values are not the same in all runs, and a row of values for each run.

    A feature and an encoder are shown by their names.
    """
    settings = [
        {
            **{".".join(path): _shown(value) for path, value in leaves(run.config) if path[0] not in _BY_NAME},
            "encoder.name": run.encoder,
            "feature": " + ".join(run.config.get("feature", ())),
        }
        for run in runs
    ]
    keys = [
        key
        for key in dict.fromkeys(["encoder.name", "feature", *(key for row in settings for key in row), "seed"])
        if len({row.get(key) for row in settings}) > 1
    ]
    keys = [key for key in keys if not (key.endswith("._target_") and key.replace("_target_", "name") in keys)]
    return keys, [[row.get(key, "—") for key in keys] for row in settings]


def prompts(runs: Sequence[ReportedRun]) -> list[tuple[str, str, bool]]:
    """Every feature's prompt, and whether the review of the item it speaks of is withheld."""
    found = (
        (name, str(options["prompt"]), bool(options["withhold_final_review"]))
        for run in runs
        for name, options in run.config.get("feature", {}).items()
    )
    return list(dict.fromkeys(found))


def withheld(run: ReportedRun, feature: str) -> bool:
    """Whether the model may not see the review of the item that this feature speaks of."""
    return bool(run.config.get("feature", {}).get(feature, {}).get("withhold_final_review"))


def _config(folder: Path) -> dict[str, Any]:
    """As resolved by the run, or noted in a grid by a cell that has none."""
    for name in ("config.yaml", CELL):
        if (path := folder / name).is_file():
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            return _without_credentials(config["config"] if name == CELL else config)
    return {}


def _record(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _without_credentials(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_credentials(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_credentials(value) for value in node]
    return _CREDENTIALS.sub("…@", node) if isinstance(node, str) else node


def _at(node: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(node, Mapping) or key not in node:
            return _ABSENT
        node = node[key]
    return node


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
