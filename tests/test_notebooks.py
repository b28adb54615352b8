"""Every notebook runs from top to bottom on a small trained run, and is kept without outputs."""

import functools
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from regen.config.objects import compose
from regen.pipeline import train_and_evaluate

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


SMALL = ["source.users=150", "source.narrated_users=40", "source.items=60", "source.purchases=4", "cf.model.factors=8"]
SMALL += ["encoder=both", "lm=tiny", "lm.width=32", "tuning=full", "trainer.max_steps=3"]
SMALL += ["training.batch_size=2", "trainer.enable_progress_bar=false", "evaluation.generation.max_new_tokens=3"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a small run of an adapter, once; gives its runs folder and the data folder that all share."""
    root = tmp_path_factory.mktemp("notebooks")

    @functools.cache
    def folders(adapter):
        runs, data = root / adapter, root / "data"
        options = [*SMALL, f"adapter={adapter}", f"paths.runs_dir={runs}", f"paths.data_dir={data}"]
        train_and_evaluate(compose(options))
        train_and_evaluate(compose([*options, "task=converse", "adapter=linear"]))
        return runs, data

    return folders


@pytest.fixture
def outputs(trained, monkeypatch, request):
    """Points the notebooks to a run of the given adapter and to its data."""
    runs, data = trained(request.param)
    monkeypatch.setenv("REGEN_RUNS", str(runs))
    monkeypatch.setenv("REGEN_DATA", str(data))
    monkeypatch.delenv("REGEN_RUN", raising=False)


def executed(path):
    """The notebook with its outputs, run where it lies."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    return notebook


def shown(notebook):
    """Kinds of everything that the cells show."""
    results = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    return [kind for output in results for kind in output["data"]]


@pytest.mark.slow
@pytest.mark.parametrize("outputs", ["linear"], indirect=True)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, outputs):
    kinds = shown(executed(path))
    assert ("text/markdown" if path.stem == "03_grid" else "image/png") in kinds


@pytest.mark.slow
@pytest.mark.parametrize("outputs", ["mlp"], indirect=True)
def test_weights_of_an_adapter_without_blocks(outputs):
    kinds = shown(executed(next(path for path in NOTEBOOKS if path.stem == "04_adapter_weights")))
    assert kinds.count("image/png") == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert "os.environ" in code[0].source
    assert notebook.cells[0] is code[0]
