"""`regen plan`: shows what `regen train` with the same settings would reuse and build, and the number of steps."""

from pathlib import Path

from regen.config.command_line import main
from regen.config.schema import TrainConfig


@main("train")
def run(config: TrainConfig) -> None:
    print(planned(config))  # noqa: T201


def planned(config: TrainConfig) -> str:
    """The plan of a cell as text, one line per stage."""
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
            *(f"{stage:17}{state:10}{folder}" for stage, state, folder in lines),
            _cost(plan_of_cell.config, plan_of_cell.data),
        ]
    )


def _cost(config: TrainConfig, data: Path) -> str:
    """The number of training steps, if the data exist; else the epochs."""
    from regen.data.next_item import purchase_sequences
    from regen.data.prepare import load_tables
    from regen.data.splits import split_narratives

    training, passes = config.training, config.trainer.max_epochs
    assert passes is not None  # set when the plan resolved the config
    if not (data / "narratives.parquet").is_file():
        return f"cost: {passes} epochs over the training users' narratives, {training.batch_size} a step"
    tables = load_tables(data)
    if config.task.name == "recommend":
        users = purchase_sequences(
            tables,
            config.split,
            max_history=config.data.max_history,
            exclude_bought=config.task.exclude_bought,
        )
        read = min(len(users["train"]), config.task.train_users or len(users["train"]))
        steps = round(passes * read / training.batch_size / config.trainer.accumulate_grad_batches)
        return f"cost: about {steps:,} steps of {training.batch_size} users; then {len(users['test']):,} get a ranking"
    asked = tables.narratives["feature"].is_in(list(config.feature))
    counts = dict(split_narratives(tables, config.split).filter(asked).value_counts().iter_rows())
    steps = round(passes * counts.get("train", 0) / training.batch_size / config.trainer.accumulate_grad_batches)
    if config.trainer.max_steps > 0:
        steps = min(steps, config.trainer.max_steps)
    size, written = training.batch_size * config.trainer.accumulate_grad_batches, counts.get("test", 0)
    return f"cost: about {steps:,} steps of {size} narratives; then {written:,} are written"
