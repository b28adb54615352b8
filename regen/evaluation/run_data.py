"""The prepared data and the examples of a run, read without its model. Nothing is built."""

from dataclasses import dataclass
from pathlib import Path

from regen.config.objects import read_run_config
from regen.config.schema import TrainConfig
from regen.data.histories import Example, build_examples
from regen.data.prepare import load_tables
from regen.data.tables import Tables
from regen.evaluation.comparison_cells import read_record
from regen.training.run import started_in


@dataclass(frozen=True)
class RunData:
    """What a run of `task=narrate` was trained and tested on.

    Attributes:
        config: The run's config.
        tables: The prepared tables.
        tests: The test examples, also those that a debugging limit left out.
        training: Number of training narratives.
    """

    config: TrainConfig
    tables: Tables
    tests: list[Example]
    training: int


def read_run_data(folder: Path) -> RunData | None:
    """The data of a run; None if they are not on this machine, or if the run has another task."""
    config = read_run_config(folder)
    if config.task.name != "narrate":
        return None
    root = started_in(folder.resolve()) / config.paths.data_dir
    prepared = next(root.glob(f"[!.]*-{read_record(folder)['inputs']['prepared']}"), None)
    if prepared is None:
        return None
    tables = load_tables(prepared)
    withhold = {name: feature.withhold_final_review for name, feature in config.feature.items()}
    examples = build_examples(tables, withhold=withhold, max_history=config.data.max_history, split=config.split)
    tests = [example for example in examples if example.split == "test"]
    return RunData(config, tables, tests, sum(example.split == "train" for example in examples))
