"""`regen plan`: what `regen train` with the same settings would reuse and build, and roughly what it costs."""

from pathlib import Path

from regen.config.command_line import main
from regen.config.schema import TrainConfig


@main("train")
def run(config: TrainConfig) -> None:
    print(planned(config))  # noqa: T201


def planned(config: TrainConfig) -> str:
    """The plan of a cell as text, a line for each stage."""
    from regen.pipeline import plan
    from regen.training.run import WEIGHTS

    plan_of_cell = plan(config)
    lines = [
        (stage.stage, "exists" if stage.exists else "to build", str(stage.folder)) for stage in plan_of_cell.artefacts
    ]
    trained = (plan_of_cell.run / WEIGHTS).is_file()
    begun = any((plan_of_cell.run / "checkpoints").glob("*.ckpt"))
    lines.append(("train", "exists" if trained else "to go on" if begun else "to train", str(plan_of_cell.run)))
    return "\n".join(
        [
            *(f"{stage:16}{state:10}{folder}" for stage, state, folder in lines),
            _cost(plan_of_cell.config, plan_of_cell.data),
        ]
    )


def _cost(config: TrainConfig, data: Path) -> str:
    """How many steps are trained, as far as the data are there to tell."""
    import polars as pl

    training, passes = config.training, config.trainer.max_epochs
    assert passes is not None  # a plan's config has it
    if not (data / "narratives.parquet").is_file():
        return f"cost: {passes} epochs over the training users' narratives, {training.batch_size} a step"
    features = pl.read_parquet(data / "narratives.parquet", columns=["feature"], glob=False)["feature"]
    narratives = int(features.is_in(list(config.feature)).sum())
    test = config.split.test
    steps = round(passes * narratives * (1 - test - config.split.validation) / training.batch_size)
    if config.trainer.max_steps > 0:
        steps = min(steps, config.trainer.max_steps)
    return f"cost: about {steps:,} steps of {training.batch_size} narratives; then {narratives * test:,.0f} are written"
