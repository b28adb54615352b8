"""Trains a model, or a grid of them with -m; see --help."""

from omegaconf import DictConfig

from regen.cli import main


@main("train")
def train(cfg: DictConfig) -> float:
    from regen.grid import run_cell  # torch loads here: --help stays fast

    return run_cell(cfg)


if __name__ == "__main__":
    train()
