"""`regen evaluate` and `evaluate.py`: scores a run again, compares runs, or scores another system's predictions."""

import json
import re
import sys
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from regen.config.command_line import main
from regen.config.schema import EvaluateConfig, Evaluation

if TYPE_CHECKING:
    from regen.evaluation.comparison import Cell, Columns, Comparison

SIDE = "runs"  # the setting by which `against=` tells its two sides apart


@main("evaluate")
def run(config: EvaluateConfig) -> None:
    evaluate_from_config(config)


def evaluate_from_config(config: EvaluateConfig) -> None:
    """`python evaluate.py`: one of `run=`, `runs=` and `predictions=`; the last two together make one table.

    Raises:
        ValueError: If none or several of them are given, or `diagnose=true` without `run=`, or `against=` without
            `runs=`.
    """
    given = [name for name in ("run", "runs", "predictions") if getattr(config, name) is not None]
    if config.against is not None and given != ["runs"]:
        raise ValueError(f"against={config.against} takes runs=FOLDER alone; got {' and '.join(given) or 'none'}.")
    if len(given) != 1 and given != ["runs", "predictions"]:
        raise ValueError(
            "Give one of run=, runs= and predictions=, or runs= and predictions= for one table; "
            f"got {' and '.join(given) or 'none'}."
        )
    if config.recommendations is not None and given != ["runs"]:
        raise ValueError(
            f"recommendations={config.recommendations} takes runs=FOLDER alone; got {' and '.join(given) or 'none'}."
        )
    if config.diagnose and given != ["run"]:
        raise ValueError(f"diagnose=true takes run=FOLDER, because it generates anew; got {given[0]}=.")
    from regen.evaluation.cells import cells_beside, grid_cells, run_cells
    from regen.evaluation.comparison import Columns, compared_key
    from regen.evaluation.evaluate import embedder, evaluate_run, evaluation_is_current, options
    from regen.evaluation.scoring import SCORES, score_predictions_file, scores_to_text
    from regen.pipeline import diagnose, load_folder, load_run, read_run
    from regen.training.run import locked

    theirs = None
    if config.predictions is not None:
        path = Path(config.predictions)
        theirs = Path("outputs/predictions") / path.name.split(".")[0]
        embed, scoring = embedder(config.evaluation), options(config.evaluation)
        scores = score_predictions_file(path, theirs, embed=embed, options=scoring)
        _show(f"{scores_to_text(scores)}\n{theirs / SCORES}")
    if config.against is not None:
        assert config.runs is not None
        compare_sides(config.runs, config.against, config.evaluation)
    elif config.runs is not None:
        folder = Path(config.runs)
        cells = grid_cells(folder) or run_cells(folder)
        if not cells:
            raise FileNotFoundError(f"runs={folder}: neither the folder of a grid nor one that holds runs.")
        columns = Columns(config.columns, config.reference)
        if config.recommendations is not None:
            theirs = _scored_recommendations(Path(config.recommendations), cells, config.evaluation)
        if theirs is not None:
            cells += cells_beside(cells, theirs, compared_key(cells, columns.key))
        compare_cells(cells, folder, columns, config.evaluation)
    if config.run is not None:
        run = read_run(Path(config.run))
        trainer = run.config.trainer
        if config.device is not None:
            trainer = replace(trainer, accelerator=str(config.device))
        settings = replace(run.config, evaluation=config.evaluation, engine=config.engine, trainer=trainer)
        run = replace(run, config=settings)
        with locked(run):
            if config.force or not evaluation_is_current(run):
                evaluate_run(load_run(run), reopen=load_folder, anew=config.force)
        _show(f"{scores_to_text(json.loads((run.folder / SCORES).read_text()))}\n{run.folder / SCORES}")
        if config.diagnose:
            report = diagnose(run.folder)
            _show(f"\n{report.read_text(encoding='utf-8')}\n{report}")


def _scored_recommendations(path: Path, cells: "list[Cell]", evaluation: Evaluation) -> Path:
    """Scores another system's rankings for the test users of the first run; the folder of its scores."""
    from regen.evaluation.evaluate import options
    from regen.evaluation.recommend import score_recommendations_file
    from regen.evaluation.scoring import EXAMPLES
    from regen.pipeline import read_run

    scored = [cell for cell in cells if cell.recommends and (cell.folder / EXAMPLES).is_file()]
    if not scored:
        raise ValueError(f"recommendations={path}: none of these runs is a scored one of task=recommend.")
    theirs = Path("outputs/predictions") / path.name.split(".")[0]
    score_recommendations_file(path, theirs, like=read_run(scored[0].folder), options=options(evaluation))
    return theirs


def compare_sides(runs: str, against: str, evaluation: Evaluation) -> None:
    """Writes and shows a table of each encoder's runs against others of the same encoder, for instance two adapters.

    Args:
        runs: a folder of a grid or of runs, or a pattern that matches such folders or run folders.
        against: the same, for what they are compared with.
        evaluation: resamples and seed of the bootstrap.

    Raises:
        FileNotFoundError: If one of them matches no run.
        ValueError: If both are the same, or a side has two runs that differ in nothing but the seed they share.
    """
    from regen.evaluation.cells import grid_cells, run_cells
    from regen.evaluation.comparison import Columns, compare

    if runs == against:
        raise ValueError(f"runs= and against= are both {runs}; give the runs to compare with.")
    cells = []
    for name, pattern in (("runs", runs), ("against", against)):
        matches = [pattern] if Path(pattern).is_dir() else sorted(glob(pattern))  # noqa: PTH207 - absolute ones too
        folders = [Path(path) for path in matches]
        found = grid_cells(*folders) or run_cells(*folders)
        if not found:
            raise FileNotFoundError(f"{name}={pattern}: matches neither the folder of a grid nor runs.")
        cells += [replace(cell, settings={**cell.settings, SIDE: pattern}) for cell in found]
    columns = Columns(SIDE, against)
    comparison = compare(cells, columns=columns, resamples=evaluation.resamples, seed=evaluation.seed)
    sides = " vs ".join("-".join(re.findall(r"[\w=.]+", side)) for side in (runs, against))
    _publish(comparison, Path("outputs/comparisons") / sides, show=True)


def compare_cells(
    cells: "list[Cell]", folder: Path, columns: "Columns", evaluation: Evaluation, *, show: bool = True
) -> None:
    """Writes and shows the table over cells."""
    from regen.evaluation.comparison import compare

    comparison = compare(cells, columns=columns, resamples=evaluation.resamples, seed=evaluation.seed)
    _publish(comparison, folder, show=show)


def _publish(comparison: "Comparison", folder: Path, *, show: bool) -> None:
    comparison.write(folder)
    if show:
        _show(f"\n{comparison.to_terminal()}\n\n{folder / 'table.md'}")


def _show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
