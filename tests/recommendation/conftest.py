"""Finished runs of `task=converse`, which several files read."""

import pytest
from small import SMALL, quick_embeddings

from regen import Recommender
from regen.config.objects import compose
from regen.pipeline import train_and_evaluate

CONVERSE = ["task=converse", "task.decay=1.0", "task.ridge=0.1", "trainer.max_steps=4"]


@pytest.fixture(scope="session")
def cells(tmp_path_factory):
    """Folders of two finished runs, cf and both."""
    folder = tmp_path_factory.mktemp("cells")
    paths = [f"paths.data_dir={folder}/data", f"paths.runs_dir={folder}/runs"]
    with quick_embeddings():
        return [
            train_and_evaluate(compose([*SMALL, *CONVERSE, *paths, f"encoder={encoder}"]))[0]
            for encoder in ("cf", "both")
        ]


@pytest.fixture(scope="session")
def talker(cells):
    """The run with both encoders, as its user sees it."""
    with quick_embeddings():
        return Recommender.from_run(cells[1])
