"""Small finished runs, and the histories of their test users as a person would write them."""

import json

from regen import pipeline
from regen.data.prepare import load_tables
from regen.pipeline import train_and_evaluate

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
        loaded = pipeline.load_run(pipeline.read_run(folder))
        self.data = loaded.data.splits["test"]
        self.tables = load_tables(loaded.run.inputs.prepared.path)
        self.examples = self.data.examples
        self.histories = [written(self.tables, example) for example in self.examples]
        lines = (folder / "predictions.jsonl").read_text().splitlines()
        self.predictions = [json.loads(line)["prediction"] for line in lines]

    def of(self, feature):
        """Histories and predictions of one feature."""
        chosen = [at for at, example in enumerate(self.examples) if example.feature == feature]
        return [self.histories[at] for at in chosen], [self.predictions[at] for at in chosen]


def trained(config, *overrides):
    """The folder of a run that hears its history, though it has learned little."""
    world = ["source.narrated_users=40", "source.purchases=4", "trainer.max_steps=8"]
    return train_and_evaluate(config(*world, FEATURES, *overrides))[0]
