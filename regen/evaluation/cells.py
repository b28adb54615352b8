"""Reads the cells of a grid, or the runs in a folder, for a comparison."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from regen.evaluation.comparison_cells import ENCODER, Cell, read_record, varying_settings
from regen.evaluation.scoring import EXAMPLES
from regen.runtime.costs import CELL
from regen.storage.identity import TRAINER_SETTINGS


def grid_cells(*folders: Path) -> list[Cell]:
    """The cells of multiruns, from the note of each job; a cell without a run has its job's folder."""
    paths = [
        path for folder in folders for path in sorted(folder.glob(f"*/{CELL}"), key=lambda path: int(path.parent.name))
    ]
    notes = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return _cells([(Path(note["run"] or job), note["config"], note["error"]) for job, note in notes])


def run_cells(*folders: Path) -> list[Cell]:
    """The runs in folders; a folder may be a run itself."""
    configs = sorted(
        path for folder in folders for name in ("config.yaml", "*/config.yaml") for path in folder.glob(name)
    )
    return _cells([(path.parent, yaml.safe_load(path.read_text(encoding="utf-8")), None) for path in configs])


def cells_beside(cells: list[Cell], folder: Path, key: str, *, note: str = "") -> list[Cell]:
    """Cells for another system: one in every block of a table, with the folder's name as the name of its column.

    Args:
        cells: The cells of the table.
        folder: The folder with the system's scores.
        key: The setting whose values are the columns.
        note: What the caption says about the system.

    Raises:
        ValueError: If the system and the table have no feature in common.
    """
    theirs = pl.read_parquet(folder / EXAMPLES, columns=["feature"], glob=False)["feature"].unique().sort().to_list()
    ours = {feature for cell in cells for feature in cell.features}
    if not ours & set(theirs):
        raise ValueError(
            f"The predictions are of feature {', '.join(theirs)}, the runs of {', '.join(sorted(ours))}. "
            "Give each line of the predictions its 'feature'."
        )
    blocks = {
        tuple((name, cell.value(name)) for name in varying_settings(cells) if name != key): cell for cell in cells
    }
    found = []
    for cell in blocks.values():
        encoder = folder.name if key == ENCODER else cell.encoder
        settings = {**cell.settings, "feature": ",".join(theirs)} | ({} if key == ENCODER else {key: folder.name})
        found.append(Cell(folder, encoder, 0, settings, note=note))
    return found


def _cells(found: list[tuple[Path, Mapping[str, Any], str | None]]) -> list[Cell]:
    """Cells with the settings in which they differ, apart from encoder, seed and feature."""
    flat = [_settings(config) for _, config, _ in found]
    keys = dict.fromkeys(key for row in flat for key in row)
    differing = [key for key in keys if len({str(row.get(key)) for row in flat}) > 1]
    named = {key.split(".")[0] for key in differing if key.endswith(".name")}
    kept = [key for key in differing if key.endswith(".name") or key.split(".")[0] not in named]
    if "vertical.name" in kept:  # settings of the source that follow from the vertical would repeat it
        verticals = {str(row.get("vertical.name")) for row in flat}
        values = {key: {(str(row.get("vertical.name")), str(row.get(key))) for row in flat} for key in kept}
        kept = [key for key in kept if not key.startswith("source.") or len(values[key]) > len(verticals)]
    settings = [
        {key.removesuffix(".name"): str(row[key]) for key in kept if key in row}
        | {"feature": ",".join(config["feature"])}
        for (_, config, _), row in zip(found, flat, strict=True)
    ]
    return [
        Cell(folder, config["encoder"]["name"], int(config["seed"]), of_cell, error, _parts(config["encoder"]))
        for (folder, config, error), of_cell in zip(found, _with_data(found, settings), strict=True)
    ]


def _parts(encoder: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of an encoder's parts; a custom part is a node with a name."""
    return tuple(part if isinstance(part, str) else str(part.get("name")) for part in encoder.get("parts", ()))


def _with_data(
    found: list[tuple[Path, Mapping[str, Any], str | None]], settings: list[dict[str, str]]
) -> list[dict[str, str]]:
    """Adds the data's fingerprint if runs with the same settings used different data: files may change, configs not."""
    data = [read_record(folder).get("inputs", {}).get("prepared") for folder, _, _ in found]
    of_settings: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for one, fingerprint_of in zip(settings, data, strict=True):
        if fingerprint_of is not None:
            of_settings.setdefault(tuple(one.items()), set()).add(fingerprint_of)
    if all(len(known) == 1 for known in of_settings.values()):
        return settings
    return [one | ({} if of is None else {"data": of}) for one, of in zip(settings, data, strict=True)]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that distinguish cells, by dotted key."""
    shown = ("encoder", "seed", "feature", "compare")  # the table shows these anyway
    machine = ("paths", "logger", "force", "trainer", "evaluation", "hydra", "max_cost", "engine", "score", "trials")
    flat: dict[str, Any] = {f"trainer.{key}": config.get("trainer", {}).get(key) for key in TRAINER_SETTINGS}
    for path, value in leaves({key: value for key, value in config.items() if key not in shown + machine}):
        if value != {}:
            flat["source.name" if path == ("source", "_target_") else ".".join(path)] = value
    return flat


def leaves(node: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of a nested mapping that are not mappings, or are empty ones, each with its path of keys."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value
