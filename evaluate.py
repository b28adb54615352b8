"""Scores a run again, compares runs, or scores another system's predictions; see --help."""

from omegaconf import DictConfig

from regen.cli import main


@main("evaluate")
def evaluate(cfg: DictConfig) -> None:
    from regen.evaluation.evaluate import evaluate_from_config

    evaluate_from_config(cfg)


if __name__ == "__main__":
    evaluate()
