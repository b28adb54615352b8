"""Reads the runs of a report from disk: config, record, data and predictions. Builds nothing."""

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
_BY_NAME = ("feature", "encoder")  # settings that are shown by name
_CREDENTIALS = re.compile(r"(?<=//)[^/@\s]+@")  # credentials in a URL; reports are passed on


@dataclass(frozen=True)
class ReportedRun:
    """One cell and the content of its folder.

    Attributes:
        cell: The cell, as in the comparison.
        config: The resolved config; empty if there is none.
        record: Inputs, versions and results of training.
    """

    cell: Cell
    config: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.cell.folder

    @property
    def name(self) -> str:
        """The name of the folder; for a cell of a grid without a run, its number and status."""
        return f"cell {self.folder.name}, {self.status}" if (self.folder / CELL).is_file() else self.folder.name

    @property
    def encoder(self) -> str:
        return self.cell.encoder

    @property
    def finished(self) -> bool:
        """Whether the trained weights exist."""
        return self.cell.error is None and (self.folder / WEIGHTS).is_file()

    @property
    def status(self) -> str:
        """The status in a few words."""
        if self.cell.error is not None:
            return "failed"
        ranked = self.cell.recommends and (self.folder / EXAMPLES).is_file()
        if ranked or self.predictions is not None:
            return "finished"
        return "trained, wrote nothing yet" if self.finished else "not finished"

    @cached_property
    def predictions(self) -> pl.DataFrame | None:
        """The narratives for the test users; None if they are missing or cannot be read."""
        try:
            return read_predictions(self.folder / PREDICTIONS) if self.cell.error is None else None
        except (OSError, ValueError):
            return None

    @cached_property
    def inputs(self) -> dict[str, Artefact] | str:
        """The artefacts that it was trained on, by name; or a sentence about the problem with them."""
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
        """The prepared data, which include the reference narratives."""
        return None if isinstance(self.inputs, str) else self.inputs["prepared"]

    def _data_dir(self) -> Path | None:
        """The folder of its artefacts; a relative path counts from the folder where the run was started."""
        paths = self.config.get("paths")
        if not paths:
            return None
        start = Path(str(self.folder.resolve().parent).removesuffix(str(Path(paths["runs_dir"]))))
        here = start / paths["data_dir"]
        return here if here.is_dir() else Path(paths["data_dir"])


def open_runs(folder: Path) -> list[ReportedRun]:
    """Opens the cells of a grid, or the runs in a folder.

    Raises:
        FileNotFoundError: If the folder contains neither.
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
    configs = [dict(leaves(run.config)) for run in runs]
    for path, value in (configs[0] if configs else {}).items():
        if all(config.get(path, _ABSENT) == value for config in configs):
            node = shared
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = value
    return shared


def differing_settings(runs: Sequence[ReportedRun]) -> tuple[list[str], list[list[str]]]:
    """The dotted keys whose values differ between runs, and one row of values per run.

    Features and encoders are shown by name.
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
    """The prompt of every feature, and whether the review of its item is withheld."""
    found = (
        (name, str(options["prompt"]), bool(options["withhold_final_review"]))
        for run in runs
        for name, options in run.config.get("feature", {}).items()
    )
    return list(dict.fromkeys(found))


def withheld(run: ReportedRun, feature: str) -> bool:
    """Whether the model may not see the review of the item that the feature is about."""
    return bool(run.config.get("feature", {}).get(feature, {}).get("withhold_final_review"))


def _config(folder: Path) -> dict[str, Any]:
    """The resolved config of a run, or the one in the note of a grid's cell."""
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


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
