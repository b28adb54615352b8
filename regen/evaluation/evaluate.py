"""Stage `evaluate`: a run's predictions and scores as files in its folder, and tables over runs."""

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from omegaconf import DictConfig, OmegaConf

from regen.data.datamodule import NarrativeDataset
from regen.data.prepare import load_tables
from regen.embeddings.content import embed_texts
from regen.evaluation.comparison import Cell, Comparison, compare
from regen.evaluation.scoring import (
    EXAMPLES,
    SCORES,
    Scores,
    ScoringOptions,
    score_predictions_file,
    score_run_files,
    scores_to_text,
)
from regen.pipeline import build_engine, plain
from regen.runtime.costs import EVALUATED, KEY, TRAINED, PeakMemory, Stopwatch
from regen.runtime.shards import RayEngine
from regen.storage import identity
from regen.storage.artefacts import fingerprint, write_atomically
from regen.training.run import WEIGHTS, LoadedRun, Run, load, locked, read_run

logger = logging.getLogger(__name__)
PREDICTIONS = "predictions.jsonl"
EVALUATION = EVALUATED  # written last: the settings that the predictions and scores beside it were made with


def evaluate_from_config(cfg: DictConfig) -> None:
    """`python evaluate.py`: one of `run=`, `runs=` and `predictions=`; the last two together make one table.

    Raises:
        ValueError: If none or several of them are given, or `diagnose=true` without `run=`, or `against=` without
            `runs=`.
    """
    given = [name for name in ("run", "runs", "predictions") if cfg[name] is not None]
    if cfg.against is not None and given != ["runs"]:
        raise ValueError(f"against={cfg.against} takes runs=FOLDER alone; got {' and '.join(given) or 'none'}.")
    if len(given) != 1 and given != ["runs", "predictions"]:
        raise ValueError(
            "Give one of run=, runs= and predictions=, or runs= and predictions= for one table; "
            f"got {' and '.join(given) or 'none'}."
        )
    if cfg.diagnose and given != ["run"]:
        raise ValueError(f"diagnose=true takes run=FOLDER, because it generates anew; got {given[0]}=.")
    theirs = None
    if cfg.predictions is not None:
        path = Path(cfg.predictions)
        theirs = Path("outputs/predictions") / path.name.split(".")[0]
        scores = score_predictions_file(path, theirs, embed=embedder(cfg.evaluation), options=options(cfg.evaluation))
        _show(f"{scores_to_text(scores)}\n{theirs / SCORES}")
    if cfg.against is not None:
        compare_sides(cfg.runs, cfg.against, resamples=cfg.evaluation.resamples, seed=cfg.evaluation.seed)
    elif cfg.runs is not None:
        folder = Path(cfg.runs)
        cells = grid_cells(folder) or run_cells(folder)
        if not cells:
            raise FileNotFoundError(f"runs={folder}: neither the folder of a grid nor one that holds runs.")
        if theirs is not None:
            cells += cells_beside(cells, theirs)
        compare_cells(cells, folder, resamples=cfg.evaluation.resamples, seed=cfg.evaluation.seed)
    if cfg.run is not None:
        run = read_run(Path(cfg.run))
        run.cfg.evaluation, run.cfg.engine = cfg.evaluation, cfg.engine
        with locked(run):
            if cfg.force or not evaluation_is_current(run):
                evaluate_run(load(run), run_logger=None)
        _show(f"{scores_to_text(json.loads((run.folder / SCORES).read_text()))}\n{run.folder / SCORES}")
        if cfg.diagnose:
            from regen.evaluation.diagnosis import write_diagnosis

            report = write_diagnosis(run.folder)
            _show(f"\n{report.read_text(encoding='utf-8')}\n{report}")


def evaluation_is_current(run: Run) -> bool:
    """Whether the run's folder holds scores made with its evaluation settings."""
    path = run.folder / EVALUATION
    files = (PREDICTIONS, EXAMPLES, SCORES)
    if not (path.is_file() and all((run.folder / name).is_file() for name in files)):
        return False
    return bool(json.loads(path.read_text())["fingerprint"] == _evaluation_recipe(run))


def evaluate_run(loaded: LoadedRun, run_logger: Any) -> None:
    """Generates for the test users and scores; leaves predictions, per-example statistics and scores in the folder."""
    run, evaluation = loaded.run, loaded.run.cfg.evaluation
    (run.folder / EVALUATION).unlink(missing_ok=True)
    watch, memory = Stopwatch(), PeakMemory()
    predictions = _generate(loaded, watch)
    costs: dict[str, float | None] = {
        f"{name}_ms": 1000 * seconds / len(predictions) for name, seconds in watch.seconds.items()
    }
    costs["memory_gib"] = memory.gib()
    write_atomically(run.folder / PREDICTIONS, predictions.write_ndjson)
    scores = score_run_files(
        predictions,
        run.folder,
        train=_narratives(loaded.data.splits["train"]),
        validation=_narratives(loaded.data.splits["validation"]),
        embed=embedder(evaluation),
        planted=load_tables(run.inputs.prepared.path).planted,
        options=options(evaluation),
    )
    record = json.dumps({"fingerprint": _evaluation_recipe(run), "settings": plain(evaluation), KEY: costs}, indent=2)
    write_atomically(run.folder / EVALUATION, lambda path: path.write_text(record))
    logger.info("scored: %s", run.folder)
    if run_logger is not None:
        _log_to(run_logger, loaded, predictions, scores)


def _generate(loaded: LoadedRun, watch: Stopwatch) -> pl.DataFrame:
    """Narratives for the test users: here, at a server, or on a cluster.

    Raises:
        ValueError: If both a server and a cluster are to generate, or a server in a precision that is not its own.
    """
    from regen.generation.narratives import generate_narratives
    from regen.generation.shards import generate_in_shards
    from regen.generation.vllm_client import check_precision
    from regen.generation.vllm_decoder import server_of

    run, test, engine = loaded.run, loaded.data.splits["test"], build_engine(loaded.run.cfg)
    evaluation, tokenizer = run.cfg.evaluation, loaded.lm.tokenizer
    settings = {name: plain(evaluation)[name] for name in ("generation", "batch_size", "seed", "precision")}
    server = None
    if evaluation.endpoint is not None:
        check_precision(
            settings["precision"], setting="evaluation.precision", server=f"evaluation.endpoint={evaluation.endpoint}"
        )
        if isinstance(engine, RayEngine):
            raise ValueError(
                f"evaluation.endpoint={evaluation.endpoint} and engine=ray would both generate. Leave one of them out."
            )
        server = server_of(
            loaded.model, evaluation.endpoint, tokenizer=tokenizer, lm=run.cfg.lm.name, run=run.folder.name
        )
    if isinstance(engine, RayEngine):
        size, recipe = engine.narratives, _evaluation_recipe(run)
        return generate_in_shards(run.folder, examples=len(test), size=size, engine=engine, recipe=recipe, **settings)
    return generate_narratives(loaded.model, test, tokenizer=tokenizer, watch=watch, server=server, **settings)


def options(evaluation: DictConfig) -> ScoringOptions:
    """Scoring options of an `evaluation` config node."""
    return ScoringOptions(stemmer=evaluation.rouge_stemmer, resamples=evaluation.resamples, seed=evaluation.seed)


def embedder(evaluation: DictConfig) -> Callable[[list[str]], np.ndarray]:
    """Sentence embeddings for the similarity."""
    return partial(embed_texts, pretrained=evaluation.similarity)


def grid_cells(*folders: Path) -> list[Cell]:
    """The cells of multiruns, from their notes in each folder; one without a run has its job's folder instead."""
    from regen.commands.grid import CELL

    paths = [
        path for folder in folders for path in sorted(folder.glob(f"*/{CELL}"), key=lambda path: int(path.parent.name))
    ]
    notes = [(path.parent, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return _cells([(Path(note["run"] or job), note["config"], note["error"]) for job, note in notes])


def run_cells(*folders: Path) -> list[Cell]:
    """The runs in folders, or the runs that the folders are."""
    configs = sorted(
        path for folder in folders for name in ("config.yaml", "*/config.yaml") for path in folder.glob(name)
    )
    return _cells([(path.parent, plain(OmegaConf.load(path)), None) for path in configs])


def cells_beside(cells: list[Cell], folder: Path) -> list[Cell]:
    """What another system wrote as a column of every block of a table, named by its scored folder.

    Raises:
        ValueError: If none of its features is one of the table's.
    """
    theirs = pl.read_parquet(folder / EXAMPLES, columns=["feature"], glob=False)["feature"].unique().sort().to_list()
    ours = {feature for cell in cells for feature in cell.features}
    if not ours & set(theirs):
        raise ValueError(
            f"The predictions are of feature {', '.join(theirs)}, the runs of {', '.join(sorted(ours))}. "
            "Give each line of the predictions its 'feature'."
        )
    blocks = {tuple(sorted({**cell.settings, "feature": ""}.items())): cell for cell in cells}
    return [Cell(folder, folder.name, 0, {**cell.settings, "feature": ",".join(theirs)}) for cell in blocks.values()]


def compare_sides(runs: str, against: str, *, resamples: int, seed: int) -> None:
    """Writes and shows a table of each encoder's runs against others of the same encoder, for instance two adapters.

    Args:
        runs: a folder of a grid or of runs, or a pattern that matches such folders or run folders.
        against: the same, for what they are compared with.
        resamples: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        FileNotFoundError: If one of them matches no run.
        ValueError: If both are the same, or a side has two runs that differ in nothing but the seed they share.
    """
    if runs == against:
        raise ValueError(f"runs= and against= are both {runs}; give the runs to compare with.")
    cells = []
    for name, pattern in (("runs", runs), ("against", against)):
        matches = [pattern] if Path(pattern).is_dir() else sorted(glob(pattern))  # noqa: PTH207 - absolute ones too
        folders = [Path(path) for path in matches]
        found = grid_cells(*folders) or run_cells(*folders)
        if not found:
            raise FileNotFoundError(f"{name}={pattern}: matches neither the folder of a grid nor runs.")
        cells += [replace(cell, encoder=pattern, settings={**cell.settings, "encoder": cell.encoder}) for cell in found]
    comparison = compare(cells, subject=runs, baselines=[against], resamples=resamples, seed=seed)
    sides = " vs ".join("-".join(re.findall(r"[\w=.]+", side)) for side in (runs, against))
    _publish(comparison, Path("outputs/comparisons") / sides, show=True)


def compare_cells(cells: list[Cell], folder: Path, *, resamples: int, seed: int, show: bool = True) -> None:
    """Writes and shows the table over cells."""
    comparison = compare(cells, resamples=resamples, seed=seed)
    _publish(comparison, folder, show=show)


def _publish(comparison: Comparison, folder: Path, *, show: bool) -> None:
    comparison.write(folder)
    if show:
        _show(f"\n{comparison.to_terminal()}\n\n{folder / 'table.md'}")


def _cells(found: list[tuple[Path, Mapping[str, Any], str | None]]) -> list[Cell]:
    """Cells with the settings in which they differ, but for encoder, seed and feature."""
    flat = [_settings(config) for _, config, _ in found]
    differing = {key for row in flat for key in row if len({str(other.get(key)) for other in flat}) > 1}
    named = {key.split(".")[0] for key in differing if key.endswith(".name")}
    kept = sorted(key for key in differing if key.endswith(".name") or key.split(".")[0] not in named)
    if "vertical.name" in kept:  # a source's settings that follow the vertical would name it again
        verticals = {str(row.get("vertical.name")) for row in flat}
        values = {key: {(str(row.get("vertical.name")), str(row.get(key))) for row in flat} for key in kept}
        kept = [key for key in kept if not key.startswith("source.") or len(values[key]) > len(verticals)]
    settings = [
        {key.removesuffix(".name"): str(row[key]) for key in kept if key in row}
        | {"feature": ",".join(config["feature"])}
        for (_, config, _), row in zip(found, flat, strict=True)
    ]
    return [
        Cell(folder, config["encoder"]["name"], int(config["seed"]), of_cell, error)
        for (folder, config, error), of_cell in zip(found, _with_data(found, settings), strict=True)
    ]


def _with_data(
    found: list[tuple[Path, Mapping[str, Any], str | None]], settings: list[dict[str, str]]
) -> list[dict[str, str]]:
    """Adds the fingerprint of a run's data where the same settings made several: files change and configs do not."""
    records = [json.loads(path.read_text()) if (path := of[0] / TRAINED).is_file() else {} for of in found]
    data = [record.get("inputs", {}).get("prepared") for record in records]
    of_settings: dict[tuple[tuple[str, str], ...], set[str]] = {}
    for one, fingerprint_of in zip(settings, data, strict=True):
        if fingerprint_of is not None:
            of_settings.setdefault(tuple(one.items()), set()).add(fingerprint_of)
    if all(len(known) == 1 for known in of_settings.values()):
        return settings
    return [one | ({} if of is None else {"data": of}) for one, of in zip(settings, data, strict=True)]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make one cell another one, as dotted keys."""
    cell = ("encoder", "seed", "feature")  # what the table shows anyway
    machine = ("paths", "logger", "force", "trainer", "evaluation", "hydra", "max_cost", "engine")
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix.replace("_target_", "name") if prefix == "source._target_" else prefix] = node

    walk("", {key: value for key, value in config.items() if key not in cell + machine})
    return flat


def _narratives(dataset: NarrativeDataset) -> pl.DataFrame:
    rows = dataset.examples
    return pl.DataFrame(
        {
            "user_id": [row.user_id for row in rows],
            "feature": [row.feature for row in rows],
            "text": [row.text for row in rows],
        }
    )


def _evaluation_recipe(run: Run) -> str:
    return fingerprint(identity.evaluation(plain(run.cfg.evaluation), run.folder / WEIGHTS))


def _log_to(run_logger: Any, loaded: LoadedRun, predictions: pl.DataFrame, scores: Scores) -> None:
    """Scores named as in the tables; in W&B narratives, predictions and weights too."""
    from regen.training.wandb_records import final_metrics, record_results

    run_logger.log_metrics(final_metrics(scores))
    if type(run_logger).__name__ == "WandbLogger":
        files = [loaded.run.folder / name for name in (PREDICTIONS, EXAMPLES, SCORES, EVALUATION)]
        record_results(run_logger, loaded, predictions, files)
    run_logger.save()


def _show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
