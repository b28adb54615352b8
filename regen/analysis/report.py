"""The report of one grid: what it shows in sentences, its table, figures, test users, settings and commands.

It is one HTML file with its own style, script and images, and its content security policy forbids any network access.
Texts by reviewers and models are always escaped.
"""

import base64
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from regen.analysis.report_commands import grid_command, run_commands
from regen.analysis.report_figures import Chapter, adapter_chapters, data_chapters, write_files
from regen.analysis.report_plots import DotPlot, dot_plots
from regen.analysis.report_runs import ReportedRun, common_settings, differing_settings, open_runs, prompts
from regen.analysis.report_users import Panel, side_by_side
from regen.evaluation.comparison import Columns, compare
from regen.evaluation.comparison_blocks import Block, Column, cell_texts
from regen.evaluation.comparison_cells import ENCODER, Cell, grouped, load, varying_settings
from regen.evaluation.comparison_table import Comparison
from regen.evaluation.reading import reading
from regen.evaluation.statistics import FEW_SEEDS
from regen.evaluation.text_metrics import Metric
from regen.storage.artefacts import write_atomically

TEMPLATE = "report.html.j2"
FIGURES = "figures"  # folder next to the page with the figures as files
_UNSEEN = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")


ScoreRow = tuple[Metric, Sequence[tuple[Column, str, str, str, bool]]]
"""A row of the table: of each column value, interval, remark, and whether its difference holds."""


@dataclass(frozen=True)
class ShownBlock:
    """A block of the comparison as the page shows it."""

    block: Block
    reading: str
    caution: str
    leading: Sequence[ScoreRow]
    folded: Sequence[ScoreRow]
    plots: Sequence[DotPlot]


def write_report(
    folder: Path, out: Path | None = None, *, users: int = 20, seed: int = 0, figures: bool = True
) -> Path:
    """Writes the report of a grid or a folder of runs; trains nothing.

    The page contains the analysis figures; the folder `figures` next to it has them as files.

    Args:
        folder: Folder of a grid, of runs, or of one run.
        out: Path of the page; `report.html` in the folder if None.
        users: Number of test users per data set.
        seed: Seed for drawing users, and for the samples of the figures.
        figures: Whether to draw the analysis figures, which loads a model and takes a while.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: If the folder contains neither a grid nor runs.
        ValueError: If `users` is below 1, `out` is a folder, or two runs have the same settings and seed.
    """
    if users < 1:
        raise ValueError(f"users={users}: give how many test users to show, at least 1.")
    out = folder / "report.html" if out is None else out
    if out.is_dir():
        raise ValueError(f"out={out} is a folder; give the file to write, for instance {out / 'report.html'}.")
    runs = open_runs(folder)
    evaluation: Mapping[str, Any] = next((run.config["evaluation"] for run in runs if "evaluation" in run.config), {})
    settings: Mapping[str, Any] = next((run.config["compare"] for run in runs if "compare" in run.config), {})
    comparison = compare(
        [run.cell for run in runs],
        columns=_columns([run.cell for run in runs], settings),
        resamples=int(evaluation.get("resamples", 2000)),
        seed=int(evaluation.get("seed", 0)),
    )
    panels = _panels(runs, users=users, seed=seed)
    chapters = [*adapter_chapters(runs, seed=seed), *data_chapters(runs)] if figures else []
    options = [f"runs={folder}", f"users={users}", f"seed={seed}", *([] if figures else ["figures=false"])]
    page = render(
        name="/".join(folder.resolve().parts[-2:]),
        runs=runs,
        comparison=comparison,
        recommends=all(run.cell.recommends for run in runs),
        blocks=[_shown_block(block) for block in comparison.blocks],
        missing=_missing(runs, comparison, panels, chapters, figures=figures),
        panels=panels,
        chapters=chapters,
        common=yaml.safe_dump(common_settings(runs), sort_keys=False, allow_unicode=True, width=100),
        differing=differing_settings(runs),
        prompts=prompts(runs),
        versions=_versions(runs),
        commands=[
            *([command] if (command := grid_command(folder)) else run_commands(runs)),
            shlex.join(["regen", "report", *options]),
        ],
        made=f"{datetime.now(UTC):%Y-%m-%d}",
        regen=metadata.version("regen"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, partial(Path.write_text, data=page, encoding="utf-8", newline="\n"))
    write_files(chapters, out.parent / FIGURES)
    return out


def render(**values: Any) -> str:
    """Renders the page. Every value is escaped; the policy allows the template's style and script by their hashes."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters["policy_hash"] = _policy_hash
    return environment.get_template(TEMPLATE).render(**values)


def _visible(value: Any) -> Any:
    """Text without characters that change the direction of text or that HTML does not allow."""
    return _UNSEEN.sub(" ", value) if type(value) is str else value


def _policy_hash(text: str) -> str:
    """The hash by which a content security policy allows a script or a style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _panels(runs: Sequence[ReportedRun], *, users: int, seed: int) -> list[Panel]:
    """Users side by side, with the runs in the groups of the table."""
    of_folder = {run.folder: run for run in runs}
    cells = [run.cell for run in runs]
    groups = grouped([load(cell) for cell in cells], [name for name in varying_settings(cells) if name != ENCODER])
    members = {
        (feature, " · ".join(f"{name}={value}" for name, value in settings)): [of_folder[one.cell.folder] for one in of]
        for (feature, settings), of in groups.items()
    }
    return side_by_side(members, users=users, seed=seed)


def _columns(cells: Sequence[Cell], settings: Mapping[str, Any]) -> Columns:
    """The columns that a run's config asks for, if these runs differ in them; else the default ones."""
    asked = settings.get("columns")
    if asked is not None and asked not in (ENCODER, *varying_settings(cells)):
        return Columns()
    return Columns(asked, settings.get("reference"))


def _missing(
    runs: Sequence[ReportedRun],
    comparison: Comparison,
    panels: Sequence[Panel],
    chapters: Sequence[Chapter],
    *,
    figures: bool,
) -> list[str]:
    """Sentences about what is missing from the page, with the reasons."""
    missing = []
    finished = {run.encoder for run in runs if run.status == "finished"}
    if not finished:
        missing.append("No run here has written anything yet: there are no scores and no narratives to show.")
    elif comparison.key == ENCODER:
        missing += [
            f"No finished run with encoder={name}: {why}"
            for name, why in (
                ("both", "whether both beat either alone is not answered."),
                ("cf", "both is not compared with CF alone."),
                ("content", "both is not compared with content alone."),
                ("none", "what a model without any signal earns is not shown; add experiment=controls."),
            )
            if name not in finished
        ]
    missing += [f"Not in the table: {problem}" for problem in comparison.problems]
    missing += [f"{panel.data}: {problem}" for panel in panels for problem in panel.problems]
    missing += [f"{chapter.title}: {problem}" for chapter in chapters for problem in chapter.problems]
    if not figures:
        missing.append("Analysis figures were not asked for (figures=false).")
    return missing


def _shown_block(block: Block) -> ShownBlock:
    def rows(metrics: Sequence[Metric]) -> list[ScoreRow]:
        return [
            (metric, [(column, *cell_texts(metric, column), column.holds(metric)) for column in block.columns])
            for metric in metrics
        ]

    return ShownBlock(
        block,
        " ".join(reading(block)),
        _caution(block),
        rows(block.leading_rows),
        rows(block.folded_rows),
        dot_plots(block),
    )


def _caution(block: Block) -> str:
    """A warning if there are too few seeds for a claim; empty otherwise."""
    fewest = min((column.seeds for column in block.columns if column.kind == "model" and column.seeds), default=0)
    if not 0 < fewest < FEW_SEEDS:
        return ""
    return f"No claim yet: that takes {FEW_SEEDS} seeds, and here an encoder has {fewest}."


def _versions(runs: Sequence[ReportedRun]) -> dict[str, str]:
    """The versions of each library that the runs were trained with."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, version in run.record.get("versions", {}).items():
            found.setdefault(name, {})[str(version)] = None
    return {name: ", ".join(versions) for name, versions in found.items()}
