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

ALONE = (
    "Not scored without the data behind the texts: ungrounded names and numbers, and identification among items. With "
    "runs=FOLDER of the same data they are."
)
SIDE = "runs"  # the setting by which the table of `against=` tells its two sides apart


@main("evaluate")
def run(config: EvaluateConfig) -> None:
    evaluate_from_config(config)


def evaluate_from_config(config: EvaluateConfig) -> None:
    """`python evaluate.py`: handles one of `run=`, `runs=` and `predictions=`, or the last two for one table.

    Raises:
        ValueError: If none or several of them are given, or another setting does not fit them.
    """
    _check_given(config)
    if config.run is not None:
        _evaluate_again(Path(config.run), config)
    elif config.runs is None:
        _score_predictions(config)
    elif config.against is not None:
        compare_sides(config.runs, config.against, config.evaluation, every=config.all)
    else:
        _compare_folder(Path(config.runs), config)


def _check_given(config: EvaluateConfig) -> None:
    given = [name for name in ("run", "runs", "predictions") if getattr(config, name) is not None]
    got = " and ".join(given) or "none"
    for name in ("against", "recommendations"):
        value = getattr(config, name)
        if value is not None and given != ["runs"]:
            raise ValueError(f"{name}={value} takes runs=FOLDER alone; got {got}.")
    beside = config.predictions or config.recommendations
    if config.note is not None and (config.runs is None or beside is None):
        raise ValueError(f"note={config.note!r} is about the file of runs=FOLDER predictions=FILE or recommendations=.")
    if len(given) != 1 and given != ["runs", "predictions"]:
        raise ValueError(
            f"Give one of run=, runs= and predictions=, or runs= and predictions= for one table; got {got}."
        )
    if config.diagnose and (given not in (["run"], ["runs"]) or config.against or config.recommendations):
        raise ValueError(f"diagnose=true takes run=FOLDER or runs=FOLDER alone; got {got}.")


def _evaluate_again(folder: Path, config: EvaluateConfig) -> None:
    """Scores a run again, if its scores are not current, and prints them."""
    from regen.evaluation.evaluate import evaluate_run, evaluation_is_current
    from regen.pipeline import diagnose, load_folder, load_run, read_run
    from regen.runtime.device import encoding_on
    from regen.training.run import locked

    run = read_run(folder)
    trainer = run.config.trainer
    if config.device is not None:
        trainer = replace(trainer, accelerator=str(config.device))
    settings = replace(run.config, evaluation=config.evaluation, engine=config.engine, trainer=trainer)
    run = replace(run, config=settings)
    with locked(run), encoding_on(trainer.accelerator):
        if config.force or not evaluation_is_current(run):
            evaluate_run(load_run(run), reopen=load_folder, anew=config.force)
    show_scores(run.folder)
    if config.diagnose:
        report = diagnose(run.folder)
        _show(f"\n{report.read_text(encoding='utf-8')}\n{report}")


def show_scores(folder: Path) -> None:
    """Prints the scores of a run's folder."""
    from regen.evaluation.scoring import SCORES, scores_to_text

    _show(f"{scores_to_text(json.loads((folder / SCORES).read_text()))}\n{folder / SCORES}")


def _compare_folder(folder: Path, config: EvaluateConfig) -> None:
    """Compares the runs in a folder, and another system beside them."""
    from regen.evaluation.cells import cells_beside, grid_cells, run_cells
    from regen.evaluation.comparison import Columns, compared_key

    cells = grid_cells(folder) or run_cells(folder)
    if not cells:
        raise FileNotFoundError(f"runs={folder}: neither the folder of a grid nor one that holds runs.")
    columns = Columns(config.columns, config.reference)
    theirs, note = None, config.note or ""
    if config.recommendations is not None:
        theirs = _scored_recommendations(Path(config.recommendations), cells, config.evaluation)
    elif config.predictions is not None:
        theirs, joined = _scored_beside(Path(config.predictions), cells, config.evaluation)
        note = " ".join(filter(None, [joined, note]))
    if theirs is not None:
        cells += cells_beside(cells, theirs, compared_key(cells, columns.key), note=note)
    compare_cells(cells, folder, columns, config.evaluation, every=config.all)
    if config.diagnose:
        _show_slices(cells, folder, columns, config.evaluation)


def _show_slices(cells: "list[Cell]", folder: Path, columns: "Columns", evaluation: Evaluation) -> None:
    """Writes and prints where the runs differ."""
    from regen.evaluation.comparison_slices import slices_of, write_slices

    sections = slices_of(cells, columns=columns, resamples=evaluation.resamples, seed=evaluation.seed)
    path = write_slices(sections, folder)
    _show(f"\n{path.read_text(encoding='utf-8')}\n{path}")


def _folder_of_scores(path: Path) -> Path:
    """Folder for the scores of another system's file: the file's name, or its folder's for a `predictions.jsonl`."""
    name = path.name.split(".")[0]
    return Path("outputs/predictions") / (path.resolve().parent.name if name == "predictions" else name)


def _score_predictions(config: EvaluateConfig) -> None:
    """Scores another system's narratives and prints the scores."""
    from regen.evaluation.evaluate import embedder, options
    from regen.evaluation.prediction_files import read_predictions
    from regen.evaluation.scoring import SCORES, score_predictions, scores_to_text

    path, evaluation = Path(str(config.predictions)), config.evaluation
    theirs = _folder_of_scores(path)
    rows = read_predictions(path)
    scores = score_predictions(rows, theirs, embed=embedder(evaluation), options=options(evaluation))
    _show(f"{scores_to_text(scores)}\n{ALONE}\n{theirs / SCORES}")


def _scored_beside(path: Path, cells: "list[Cell]", evaluation: Evaluation) -> tuple[Path, str]:
    """Scores another system's narratives of the runs' test users; returns the folder of the scores and a note."""
    from regen.evaluation.beside_runs import join_with_runs
    from regen.evaluation.evaluate import embedder, options
    from regen.evaluation.scoring import score_predictions

    theirs = _folder_of_scores(path)
    joined = join_with_runs(path, [cell.folder for cell in cells if cell.error is None])
    scoring = replace(options(evaluation), brands=joined.brands)
    score_predictions(joined.predictions, theirs, embed=embedder(evaluation), options=scoring)
    return theirs, joined.note


def _scored_recommendations(path: Path, cells: "list[Cell]", evaluation: Evaluation) -> Path:
    """Scores another system's rankings for the test users of the first run; returns the folder of the scores."""
    from regen.evaluation.evaluate import options
    from regen.evaluation.recommend import score_recommendations_file
    from regen.evaluation.scoring import EXAMPLES
    from regen.pipeline import read_run

    scored = [cell for cell in cells if cell.recommends and (cell.folder / EXAMPLES).is_file()]
    if not scored:
        raise ValueError(f"recommendations={path}: none of these runs is a scored run of task=recommend.")
    theirs = _folder_of_scores(path)
    score_recommendations_file(path, theirs, like=read_run(scored[0].folder), options=options(evaluation))
    return theirs


def compare_sides(runs: str, against: str, evaluation: Evaluation, *, every: bool = False) -> None:
    """Writes and prints a table of runs against other runs of the same encoder, for instance of two adapters.

    Args:
        runs: Folder of a grid or of runs, or a pattern that matches such folders or run folders.
        against: Likewise, for the runs to compare with.
        evaluation: Resamples and seed of the bootstrap.
        every: Print every metric.

    Raises:
        FileNotFoundError: If one of them matches no run.
        ValueError: If both are equal, or a side has several runs with the same settings and seed.
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
    _publish(comparison, Path("outputs/comparisons") / sides, show=True, every=every)


def compare_cells(
    cells: "list[Cell]",
    folder: Path,
    columns: "Columns",
    evaluation: Evaluation,
    *,
    show: bool = True,
    every: bool = False,
) -> None:
    """Writes the table over cells, and prints it with `show`; with `every`, all metrics of it."""
    from regen.evaluation.comparison import compare

    comparison = compare(cells, columns=columns, resamples=evaluation.resamples, seed=evaluation.seed)
    _publish(comparison, folder, show=show, every=every)


def _publish(comparison: "Comparison", folder: Path, *, show: bool, every: bool) -> None:
    comparison.write(folder)
    if show:
        _show(f"\n{comparison.to_terminal(every=every)}\n\n{folder / 'table.md'}")


def _show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
