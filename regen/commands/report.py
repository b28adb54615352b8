"""The page for a grid: `regen report runs=outputs/runs`."""

from pathlib import Path

from omegaconf import DictConfig

from regen.config.command_line import main


@main("report")
def run(cfg: DictConfig) -> None:
    from regen.analysis.report import write_report

    out = None if cfg.out is None else Path(cfg.out)
    print(write_report(Path(cfg.runs), out, users=cfg.users, seed=cfg.seed, figures=cfg.figures))  # noqa: T201
