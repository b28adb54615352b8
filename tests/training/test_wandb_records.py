"""W&B: what a grid logs, read back from its offline files, and the dashboard that shows it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import wandb
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from safetensors.torch import load_file
from small import SMALL, quick_embeddings
from wandb_files import offline_files, read_offline

from regen.analysis.wandb_dashboard import save_dashboard, workspace_spec
from regen.commands import dashboard
from regen.commands.grid import run_cell
from regen.config import objects
from regen.config.objects import typed
from regen.config.registration import register
from regen.config.schema import CONF, DashboardConfig
from regen.evaluation.wandb_results import final_metrics
from regen.pipeline import train_and_evaluate
from regen.storage.artefacts import Artefact, open_artefact
from regen.training.wandb_records import grid_name, input_artifact, use_inputs

CELLS = (["encoder=cf"], ["encoder=cf", "adapter.lr=3e37"], ["encoder=noise", "tuning=frozen"])  # the second one fails
GROUP = "2026-01-31_12-00-00"

pytestmark = pytest.mark.slow  # a grid with W&B's own process


def composed(root, *overrides, job=None):
    """A `train` config below a folder; with a job number, set up as Hydra sets up a cell of a multirun."""
    register()
    options = [*SMALL, "trainer.accelerator=cpu", "trainer.max_epochs=1", "logger=wandb", "logger.wandb.offline=true"]
    options += [f"paths.data_dir={root}/data", f"paths.runs_dir={root}/runs", *overrides]
    if job is not None:
        sweep = root / "grids" / "2026-01-31" / "12-00-00"
        options += ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={sweep}", f"hydra.runtime.output_dir={sweep / str(job)}"]
        options += [f"hydra.job.num={job}", "hydra.job.name=train"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", options, return_hydra_config=job is not None)
    if job is not None:
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
    return typed(cfg)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A multirun of three cells: their run folders, and where all of it lies."""
    root = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patched, quick_embeddings():
        patched.setattr(HydraConfig.instance(), "cfg", None)
        losses = [run_cell(composed(root, *options, job=job)) for job, options in enumerate(CELLS)]
    notes = [json.loads((root / f"grids/2026-01-31/12-00-00/{job}/cell.json").read_text()) for job in range(3)]
    assert [note["error"] is None for note in notes] == [True, False, True], notes
    assert "is not finite; adapter.lr=3e+37" in notes[1]["error"]
    assert np.isnan(losses).tolist() == [False, True, False]
    folders = {path.parent.parent.parent for path in offline_files(root / "runs")}
    (failed,) = folders - {Path(notes[0]["run"]), Path(notes[2]["run"])}
    return root, [Path(notes[0]["run"]), failed, Path(notes[2]["run"])]


@pytest.fixture(scope="module")
def cells(grid):
    return [read_offline(folder) for folder in grid[1]]


def inputs_of(grid, folder):
    """The artefacts that a run read."""
    recorded = json.loads((folder / "run.json").read_text())["inputs"].values()
    found = [path for path in (grid[0] / "data").iterdir() if path.name.rsplit("-", 1)[-1] in recorded]
    assert len(found) == len(recorded)
    return [open_artefact(path) for path in found]


def test_cells_are_runs_of_their_own_in_one_group(grid, cells):
    assert wandb.run is None
    assert [cell.run.run_group for cell in cells] == [GROUP] * 3
    assert [cell.exit_code for cell in cells] == [0, 1, 0]  # the one that failed is closed too
    assert [cell.run.display_name for cell in cells] == [folder.name for folder in grid[1]]
    assert len({cell.run.run_id for cell in cells}) == 3


def test_config_and_tags(grid, cells):
    cell = cells[0]
    assert cell.run.project == "regen"
    assert cell.run.job_type == "train"
    assert list(cell.run.tags) == ["encoder:cf", "adapter:linear", "feature:purchase_reason"]
    assert cell.config["encoder"]["name"] == "cf"
    assert cell.config["trainer"]["max_epochs"] == 1
    assert cell.config["inputs"] == json.loads((grid[1][0] / "run.json").read_text())["inputs"]
    assert cells[2].config["tuning"]["name"] == "frozen"


@pytest.mark.parametrize("cell", [0, 2])
def test_metrics_are_those_of_the_scores_file(grid, cells, cell):
    scores = json.loads((grid[1][cell] / "scores.json").read_text())
    logged = {name: values for name, values in cells[cell].history.items() if name.startswith("test/")}
    expected = {}
    for metric, systems in scores["purchase_reason"].items():
        for system, score in systems.items():
            name = f"test/purchase_reason/{metric}" + {"model": ""}.get(system, f"/{system}")
            expected |= {name: [score["value"]], f"{name}/low": [score["low"]], f"{name}/high": [score["high"]]}
    assert logged == {name: pytest.approx(values) for name, values in expected.items() if values != [None]}
    assert {"test/purchase_reason/need_recovery/shuffled", "test/purchase_reason/bleu/high"} <= logged.keys()
    assert len(cells[cell].history["train_loss"]) >= 1
    assert min(cells[cell].history["val_loss"]) == pytest.approx(
        json.loads((grid[1][cell] / "run.json").read_text())["val_loss"]
    )
    assert not cells[1].history


def test_undefined_metrics_are_left_out():
    score = {"value": 1.5, "low": None, "high": None, "users": 1}
    undefined = {"value": None, "low": None, "high": None, "users": 0}
    assert final_metrics({"f": {"bleu": {"model": score, "constant": undefined}}}) == {"test/f/bleu": 1.5}


def test_the_table_holds_every_prediction(grid, cells):
    folder = grid[1][0]
    (path,) = folder.rglob("offline-run-*/files/media/table/narratives*.json")
    content = json.loads(path.read_text())
    table = pl.DataFrame(content["data"], schema=content["columns"], orient="row")
    predictions = pl.read_ndjson(folder / "predictions.jsonl")
    assert predictions.height >= 10
    for name in ("user_id", "feature", "item_id", "prediction", "reference"):
        assert table[name].to_list() == predictions[name].to_list()
    assert table["history_length"].min() >= 1
    assert sorted(table["shuffled"]) == sorted(table["prediction"])  # one narrative a user: the floor deals them anew
    scores = json.loads((folder / "scores.json").read_text())["purchase_reason"]["similarity"]
    assert table["similarity"].mean() == pytest.approx(scores["model"]["value"])
    assert cells[0].history["narratives/nrows"] == [predictions.height]


def test_inputs_are_references_with_their_recipes(grid, cells):
    made = inputs_of(grid, grid[1][0])
    assert len(made) == 2
    for artefact in made:
        artifact = cells[0].artifacts[artefact.path.name]
        assert artifact.use_after_commit  # an input, not something that this run made
        assert artifact.user_created
        metadata = json.loads(artifact.metadata)
        assert metadata["fingerprint"] == artefact.fingerprint
        assert metadata["inputs"] == artefact.manifest["inputs"]
        entries = {entry.path: entry for entry in artifact.manifest.contents}
        assert entries.keys() == artefact.manifest["files"].keys()
        for name, entry in entries.items():
            assert entry.ref == (artefact.path / name).resolve().as_uri()
            assert not entry.local_path  # nothing to upload
            assert entry.digest
    assert {cells[0].artifacts[artefact.path.name].type for artefact in made} == {"dataset", "embeddings"}


def test_predictions_and_weights_are_artifacts(grid, cells):
    for folder, cell in ((grid[1][0], cells[0]), (grid[1][2], cells[2])):
        record = json.loads((folder / "run.json").read_text())
        model, predictions = cell.artifacts[f"model-{folder.name}"], cell.artifacts[f"predictions-{folder.name}"]
        files = {"predictions.jsonl", "examples.parquet", "scores.json", "evaluation.json"}
        for artifact, kind, names in ((model, "model", {"model.safetensors"}), (predictions, "predictions", files)):
            assert artifact.type == kind
            assert not artifact.use_after_commit
            assert {entry.path for entry in artifact.manifest.contents} == names
            for entry in artifact.manifest.contents:
                assert Path(entry.local_path).read_bytes() == (folder / entry.path).read_bytes()
                assert folder in Path(entry.local_path).parents  # copies too stay with the run
            assert json.loads(artifact.metadata)["inputs"] == record["inputs"]
        assert json.loads(model.metadata)["val_loss"] == record["val_loss"]
        assert json.loads(predictions.metadata)["model"] == model.name
    assert all(name.startswith("adapter.") for name in load_file(grid[1][2] / "model.safetensors"))  # no frozen ones


def test_reviews_are_nowhere_in_the_offline_folders(grid):
    folders = [folder / "wandb" for folder in grid[1]]
    written = b"".join(path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file())
    (prepared,) = (grid[0] / "data").glob("prepared-*/interactions*")
    reviews = [text for text in pl.read_parquet(prepared)["review_text"].unique() if text]
    assert len(reviews) > 100
    assert not [text for text in reviews if text.encode() in written or json.dumps(text)[1:-1].encode() in written]
    reference = json.loads((grid[1][0] / "predictions.jsonl").read_text().splitlines()[0])["reference"]
    assert reference.encode() in written  # so this search finds what is there


def test_log_data_uploads_the_files(grid):
    for artefact in inputs_of(grid, grid[1][0]):
        artifact = input_artifact(artefact, "dataset", upload=True)
        assert artifact.manifest.entries.keys() == artefact.manifest["files"].keys()
        assert all(entry.local_path and not entry.ref for entry in artifact.manifest.entries.values())


def test_keys_and_passwords_are_not_logged(tmp_path):
    endpoint = {"api_key": "sk-1", "api_key_env": "SOME_KEY", "base_url": "https://me:pw@host/v1", "max_tokens": 3}
    made = input_artifact(Artefact(tmp_path, {"config": [endpoint], "files": {}}), "dataset", upload=False)
    assert made.metadata["config"] == [{"api_key_env": "SOME_KEY", "base_url": "https://host/v1", "max_tokens": 3}]


def test_online_an_input_is_used(grid):
    cfg = composed(grid[0])
    made, used = inputs_of(grid, grid[1][0]), []
    prepared, encoded = sorted(made, key=lambda artefact: not artefact.path.name.startswith("prepared"))
    run = SimpleNamespace(config=cfg, inputs=SimpleNamespace(prepared=prepared, encoded={"cf": encoded}))
    use_inputs(SimpleNamespace(offline=False, disabled=False, use_artifact=used.append), run, upload=False)
    assert [artifact.name for artifact in used] == [prepared.path.name, encoded.path.name]


def test_a_given_group_is_kept_and_an_error_closes_the_run(grid, tmp_path):
    assert grid_name() is None  # no multirun
    options = ["encoder=cf", "adapter.lr=3e37", "logger.wandb.group=mine", f"paths.runs_dir={tmp_path}"]
    with pytest.raises(ValueError, match="is not finite; adapter.lr=3e"):
        train_and_evaluate(composed(grid[0], *options))
    assert wandb.run is None
    alone = read_offline(tmp_path)
    assert alone.run.run_group == "mine"
    assert alone.exit_code == 1


def dashboard_config(*overrides):
    return objects.compose(overrides, root="dashboard")


def test_the_dashboard_shows_what_runs_log(cells, capsys):
    dashboard.run.__wrapped__(dashboard_config("dry_run=true", "project=some", "group=mine"))
    view = json.loads(capsys.readouterr().out)
    assert (view["project"], view["displayName"]) == ("some", "regen")
    section = view["spec"]["section"]
    assert section["runSets"][0]["filters"]["filters"][0]["value"] == "mine"
    sections = {part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]}
    metrics, controls = "Metrics: purchase_reason", "Controls: purchase_reason"
    assert [*sections] == [metrics, controls, "Learning curves", "Narratives", "System"]
    bars = [panel["config"] for panel in sections[metrics] + sections[controls]]
    assert {bar["groupBy"] for bar in bars} == {"encoder.value.name"}
    assert {bar["groupAgg"] for bar in bars} == {"mean"}
    shown = {name for bar in bars for name in bar["metrics"]}
    curves = {name for panel in sections["Learning curves"] for name in panel["config"].get("metrics", [])}
    assert len(shown) == 8 * 3
    assert shown | curves <= cells[0].history.keys()
    columns = section["runSets"][0]["runFeed"]["columnPinned"]
    summaries = {name.removeprefix("summary:") for name in columns if name.startswith("summary:")}
    assert summaries <= cells[0].history.keys()
    assert '"val": "narratives"' in json.dumps(sections["Narratives"])
    assert "narratives/nrows" in cells[0].history


def test_the_dashboard_needs_a_login_and_rows_that_exist(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match="run `wandb login`, or set"):
        dashboard.run.__wrapped__(dashboard_config())
    with pytest.raises(ValueError, match="metrics=ble: no such row in the tables; they have need_recovery"):
        dashboard.run.__wrapped__(dashboard_config("metrics=[ble]"))


def test_the_dashboard_is_saved_and_its_project_made(monkeypatch):
    made, saved = [], []

    class Server:
        app_url = "https://wandb.test"

        def execute_graphql(self, query, variables):
            saved.append(variables)
            return {"upsertView": {"view": {"name": "nw-abc-v", "id": "1"}}}

    class Api:
        default_entity = "team"

        def __init__(self):
            self._service_api = Server()

        def projects(self, entity):
            return [SimpleNamespace(name="other")]

        def create_project(self, name, entity):
            made.append((name, entity))

    monkeypatch.setattr(wandb, "Api", Api)
    shown = {"features": ["user_profile"], "metrics": ["bleu"], "by": "adapter.name", "group": None}
    wanted = DashboardConfig(project="new", entity=None, name="view", **shown)
    assert save_dashboard(wanted) == "https://wandb.test/team/new?nw=abc"
    assert made == [("new", "team")]
    assert (saved[0]["entityName"], saved[0]["projectName"], saved[0]["displayName"]) == ("team", "new", "view")
    assert "test/user_profile/bleu" in saved[0]["spec"]
    assert json.loads(workspace_spec(wanted))["entity"] == ""
