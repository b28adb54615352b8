"""`regen train` and `train.py`: trains a model, or a grid of models with -m."""

from regen.config.command_line import main
from regen.config.schema import TrainConfig


@main("train")
def run(config: TrainConfig) -> float:
    from regen.commands.grid import run_cell  # torch loads here: --help stays fast

    return run_cell(config)
