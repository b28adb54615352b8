"""`regen report runs=outputs/runs`: writes one HTML page about a grid."""

from pathlib import Path

from regen.config.command_line import main
from regen.config.schema import ReportConfig


@main("report")
def run(config: ReportConfig) -> None:
    from regen.analysis.report import write_report

    out = None if config.out is None else Path(config.out)
    print(write_report(Path(config.runs), out, users=config.users, seed=config.seed, figures=config.figures))  # noqa: T201
