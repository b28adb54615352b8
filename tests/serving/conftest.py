"""Small finished runs, and the histories of their test users as a person would write them."""

import json

import pytest

from regen.data.prepare import load_tables
from regen.grid import train_and_evaluate
from regen.serving import NarrativeModel
from regen.training import run as runs

FEATURES = "feature=[purchase_reason,product_endorsement]"


def written(tables, example):
    """The history of an example as a person would write it, who knows the items' ids but repeats no metadata."""
    return [
        {
            "item_id": row["item_id"],
            "rating": row["rating"],
            "review": row["review_text"],
            "review_title": row["review_title"],
        }
        for row in tables.interactions[example.rows].to_dicts()
    ]


class FinishedRun:
    """A run, what evaluation found it to predict, and the histories it predicted from."""

    def __init__(self, folder):
        self.folder = folder
        loaded = runs.load(runs.read_run(folder))
        self.tables = load_tables(loaded.run.inputs.prepared.path)
        self.examples = loaded.data.splits["test"].examples
        self.histories = [written(self.tables, example) for example in self.examples]
        lines = (folder / "predictions.jsonl").read_text().splitlines()
        self.predictions = [json.loads(line)["prediction"] for line in lines]

    def of(self, feature):
        """Histories and predictions of one feature."""
        chosen = [at for at, example in enumerate(self.examples) if example.feature == feature]
        return [self.histories[at] for at in chosen], [self.predictions[at] for at in chosen]


def cell(config, *overrides):
    """The config of a run that hears its history, though it has learned little."""
    world = ["source.narrated_users=40", "source.purchases=4", "trainer.max_steps=8"]
    return config(*world, FEATURES, *overrides)


def trained(config, *overrides):
    """The folder of such a run."""
    return train_and_evaluate(cell(config, *overrides))[0]


@pytest.fixture(scope="session")
def session_config(tmp_path_factory):
    """As `small_config`, for runs that several tests read."""
    from hydra import compose, initialize_config_dir
    from small import SMALL

    from regen.config import CONF, register

    register()
    folder = tmp_path_factory.mktemp("serving")
    paths = [f"paths.data_dir={folder}/data", f"paths.runs_dir={folder}/runs", "trainer.accelerator=cpu"]

    def composed(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", [*SMALL, *paths, *overrides])

    return composed


@pytest.fixture(scope="session")
def finished(session_config):
    """A run with both encoders and LoRA."""
    return FinishedRun(trained(session_config, "encoder=both", "tuning=lora", "adapter=mlp"))


@pytest.fixture(scope="session")
def exported(finished, tmp_path_factory):
    """Its exported folder; tests that change it work on a copy."""
    return NarrativeModel.from_run(finished.folder).save_pretrained(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="session")
def model(exported):
    return NarrativeModel.from_pretrained(exported)


@pytest.fixture(scope="session")
def grid(session_config, finished):
    """The folder that holds that run and its grid's others, which have been trained and not evaluated."""
    for encoder in ("cf", "content"):
        run = runs.open_run(cell(session_config, f"encoder={encoder}", "tuning=lora", "adapter=mlp"))
        with runs.experiment_logger(run) as run_logger:
            runs.fit(run, run_logger)
    return finished.folder.parent
