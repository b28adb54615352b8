"""`regen train` and `train.py`: trains a model, or a grid of them with -m."""

from omegaconf import DictConfig

from regen.config.command_line import main


@main("train")
def run(cfg: DictConfig) -> float:
    from regen.commands.grid import run_cell  # torch loads here: --help stays fast

    return run_cell(cfg)
