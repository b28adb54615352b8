"""`regen evaluate` and `evaluate.py`: scores a run again, compares runs, or scores another system's predictions."""

from omegaconf import DictConfig

from regen.config.command_line import main


@main("evaluate")
def run(cfg: DictConfig) -> None:
    from regen.evaluation.evaluate import evaluate_from_config

    evaluate_from_config(cfg)
