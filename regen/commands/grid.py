"""Runs one cell (training, generation, scores), and writes the table over the cells of a grid."""

import json
import logging
import math
import sys
import traceback
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from regen.config.errors import check
from regen.config.objects import composed_values, plain
from regen.config.schema import TrainConfig
from regen.runtime.costs import CELL
from regen.runtime.threads import share_cores
from regen.storage.artefacts import write_atomically

if TYPE_CHECKING:
    from regen.evaluation.comparison import Cell, Columns

logger = logging.getLogger(__name__)
TRACEBACK = "traceback.txt"  # of a failed cell, in the job's folder


def run_cell(config: TrainConfig) -> float:
    """Trains and evaluates one cell, unless it is finished. A failed cell of a grid does not stop the other cells.

    Scores of a single run are printed. Those of a grid's cells are in its table.

    Returns:
        The best value of the monitored metric, by default the validation loss; nan for a failed cell of a grid.

    Raises:
        ValueError: If a trial of a search has no value. Optuna's sweeper notes an error as a failed trial; it cannot
            note nan.
    """
    from regen.commands.evaluate import show_scores
    from regen.pipeline import train_and_evaluate
    from regen.runtime.device import free_memory, share_gpus
    from regen.training.pruning import PrunedError
    from regen.training.run import is_main_process

    job = HydraConfig.get()
    share_cores(job.launcher)
    if config.trainer.accelerator != "cpu" and job.launcher.get("n_jobs", 1) != 1:
        share_gpus(int(job.job.num))
    _warn_of_idle_overrides(config, list(job.overrides.task))
    if job.mode is not RunMode.MULTIRUN:
        run, loss = train_and_evaluate(config)
        if config.score and is_main_process():
            show_scores(run)
        return loss
    if config.trainer.devices > 1 or config.trainer.strategy not in ("auto", "single_device"):
        raise ValueError(
            f"A sweep with trainer.devices={config.trainer.devices} and trainer.strategy={config.trainer.strategy} "
            "would start the whole sweep again in every process. Sweep single-device jobs, or run the cells one by one."
        )
    note: dict[str, Any] = {"overrides": list(job.overrides.task), "run": None, "error": None}
    folder = Path(job.runtime.output_dir)
    _announce(folder, int(job.job.num), note["overrides"])
    loss = float("nan")
    try:
        run, loss = train_and_evaluate(config)
        note["run"] = str(run.resolve())
    except PrunedError as pruned:
        note["error"] = str(pruned)
        logger.info("%s", pruned)
        loss = pruned.value
    except Exception as error:
        note["error"] = f"{type(error).__name__}: {error}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRACEBACK).write_text(traceback.format_exc(), encoding="utf-8")
        logger.error("This cell failed; the others go on. %s\nTraceback: %s", note["error"], folder / TRACEBACK)
    finally:
        _note(folder / CELL, plain(config), note)
        free_memory()
    if _is_search(job) and math.isnan(loss):  # raised here, so that the sweeper keeps no frame of the failed trial
        monitor = config.training.monitor
        raise ValueError(note["error"] or f"{monitor} is nan: the loss diverged, or the trial had no validation step.")
    return loss


class GridTable(Callback):
    """Hydra callback: writes the table of a multirun after each cell, and prints it at the end.

    All cells are checked and recorded before the first one starts. So a wrong value ends the multirun at once, and the
    table lists cells that are still missing.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _check_slurm(config.hydra.launcher._target_)
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)  # the file of an Optuna study will be in it
        for note in folder.glob(f"*/{CELL}"):  # from an earlier multirun in this folder
            note.unlink()
        if _is_search(config.hydra):
            from regen.training.pruning import end_interrupted_trials

            end_interrupted_trials(config.hydra.sweeper.storage, config.hydra.sweeper.study_name)
        planned = _planned_cells(config, kwargs["config_name"])
        for overrides, cfg in planned:
            try:
                check(cfg)
            except ConfigCompositionException as error:
                _end(f"{error} Cell: {' '.join(overrides)}", error)
        for number, (overrides, cfg) in enumerate(planned):
            _note(
                folder / str(number) / CELL,
                composed_values(cfg, complete=False),
                {"overrides": overrides, "run": None, "error": None},
            )
        if planned and any(config.compare.values()):
            from regen.evaluation.cells import grid_cells
            from regen.evaluation.comparison import compare

            try:
                compare(grid_cells(folder), columns=_columns(config), resamples=config.evaluation.resamples)
            except ValueError as error:
                _end(f"compare: {error}", error)

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        if HydraConfig.get().mode is RunMode.MULTIRUN and not _is_search(config.hydra):
            _compare(config, show=False)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if _is_search(config.hydra):
            from regen.analysis.search_page import write_search_page

            sweeper = config.hydra.sweeper
            page = write_search_page(sweeper.storage, sweeper.study_name, Path(config.hydra.sweep.dir))
            logger.info("search: %s", page or "no trial has a value yet")
            return
        cells = _compare(config, show=True)
        if failed := [cell for cell in cells if cell.error]:
            raise SystemExit(f"{len(failed)} of {len(cells)} cells failed; the table above names why.")


def _compare(config: DictConfig, *, show: bool) -> "list[Cell]":
    """Writes the table over the cells of a multirun, and prints it with `show`. Returns the cells."""
    from regen.commands.evaluate import compare_cells
    from regen.evaluation.cells import grid_cells

    folder = Path(config.hydra.sweep.dir)
    if cells := grid_cells(folder):
        compare_cells(cells, folder, _columns(config), config.evaluation, show=show)
    return cells


def _columns(config: DictConfig) -> "Columns":
    from regen.evaluation.comparison import Columns

    return Columns(config.compare.columns, config.compare.reference)


def _check_slurm(launcher: str) -> None:
    """Ends a multirun that would submit jobs on a machine without Slurm."""
    if launcher.endswith("SlurmLauncher") and (missing := [name for name in ("srun", "sbatch") if not which(name)]):
        _end(
            f"hydra/launcher=submitit_slurm: this machine has no {' and no '.join(missing)}. Run the command on a "
            "login node of the cluster, or use hydra/launcher=submitit_local."
        )


def _end(message: str, error: Exception | None = None) -> None:
    """Ends a multirun with an error. Hydra turns exceptions other than SystemExit into warnings."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2) from error


def _is_search(hydra: Any) -> bool:
    """Whether Optuna chooses the cells, from Hydra's own node."""
    return bool(hydra.sweeper._target_.endswith("OptunaSweeper"))


def _planned_cells(config: DictConfig, config_name: str) -> list[tuple[list[str], DictConfig]]:
    """Overrides and config of every cell of a multirun, in order; empty if Hydra will refuse them.

    Args:
        config: The config with Hydra's own node.
        config_name: Name of the primary config.
    """
    from hydra import compose
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not config.hydra.sweeper._target_.endswith(BasicSweeper.__name__):
        return []  # other sweepers choose cells one by one
    of_experiment = [f"{key}={values}" for key, values in (config.hydra.sweeper.params or {}).items()]
    try:
        parsed = OverridesParser.create().parse_overrides([*of_experiment, *config.hydra.overrides.task])
        jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        return [(job, compose(config_name, job)) for job in jobs]
    except (HydraException, OmegaConfBaseException):
        return []


def _announce(folder: Path, number: int, overrides: list[str]) -> None:
    """Logs which cell of the grid starts, by the overrides that not all cells share."""
    notes = [json.loads(path.read_text(encoding="utf-8"))["overrides"] for path in folder.parent.glob(f"*/{CELL}")]
    shared = set.intersection(*map(set, notes)) if len(notes) > 1 else set()
    own = " ".join(override for override in overrides if override not in shared)
    logger.info("cell %d of %d: %s", number + 1, max(len(notes), number + 1), own)


def _note(path: Path, config: Any, note: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda beside: beside.write_text(json.dumps({**note, "config": config}, indent=2)))


def _warn_of_idle_overrides(config: TrainConfig, overrides: list[str]) -> None:
    """Warns about overrides that have no effect in this config."""
    keys = [override.lstrip("+~").split("=")[0] for override in overrides]
    locations = " ".join(str(value) for value in config.source.node.values())
    names = (config.vertical.name, config.vertical.file, config.vertical.file_2023)
    idle = {
        "vertical": not any(word in locations for word in names if word),
        "adapter": config.encoder.name == "text",
        "cf": "cf" not in config.encoder.parts,
        "content": all(isinstance(part, str) and part != "content" for part in config.encoder.parts),
    }
    for key in keys:
        group = key.split(".")[0].split("@")[0]
        if idle.get(group, False):
            reason = "source" if group == "vertical" else f"encoder={config.encoder.name}"
            logger.warning("%s has no effect with this %s.", key, reason)
