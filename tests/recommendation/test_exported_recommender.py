"""An exported recommender: it answers as its run does, without the run, and says what it is worth."""

import json
import re
import shutil
import sys

import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file
from small import SMALL, quick_embeddings

from regen import NarrativeModel, Recommender
from regen.commands import export
from regen.config.objects import compose
from regen.models.closed_form import ClosedForm
from regen.pipeline import load_folder, train_and_evaluate
from regen.serving import RequestError
from regen.serving import exported as exported_module
from regen.serving.manifest import check_manifest
from regen.serving.recommender import Turn
from regen.serving.server import serve

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")
ANSWER = "I'd rather have a cheaper one."
FILES = {
    "adapter.safetensors",
    "catalogue.safetensors",
    "closed_form.safetensors",
    "config.json",
    "generation_config.json",
    "items.parquet",
    "lora/adapter_config.json",
    "lora/adapter_model.safetensors",
}


def trained(folder, *overrides):
    paths = [f"paths.data_dir={folder}/data", f"paths.runs_dir={folder}/runs", "trainer.max_steps=3"]
    with quick_embeddings():
        return train_and_evaluate(compose([*SMALL, "task.decay=1.0", "task.ridge=0.1", *paths, *overrides]))[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of `task=recommend` with LoRA and critiques."""
    options = ["task=recommend", "task.train_users=40", "encoder=both", "data.critiques=true", "tuning=lora"]
    return trained(tmp_path_factory.mktemp("recommend"), *options)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return Recommender.from_run(run).save_pretrained(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def telling(cells, tmp_path_factory):
    """The export of a run of `task=converse`."""
    return Recommender.from_run(cells[1]).save_pretrained(tmp_path_factory.mktemp("telling") / "model")


@pytest.fixture
def copied(exported, tmp_path):
    """The folder, to be changed."""
    return shutil.copytree(exported, tmp_path / "copy")


def assert_same(found, expected):
    assert [one.item_id for one in found] == [one.item_id for one in expected]
    assert [one.title for one in found] == [one.title for one in expected]
    np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], rtol=1e-5)


def histories(recommender):
    ids = recommender.items.table["item_id"].to_list()
    return [[{"item_id": item} for item in ids[at : at + 1 + at % 4]] for at in range(0, 40, 7)] + [
        [{"title": "Fountain pen, green", "brand": "Willow"}, {"item_id": ids[5]}]
    ]


def test_it_recommends_what_the_run_recommends(run, exported):
    ours, theirs = Recommender.from_run(run), Recommender.from_pretrained(exported)
    for history in histories(ours):
        assert_same(theirs.recommend(history, ANSWER, k=50), ours.recommend(history, ANSWER, k=50))


def test_the_readout_matters(exported):
    """Else the test above would say nothing about the LM."""
    recommender = Recommender.from_pretrained(exported)
    history = [{"item_id": recommender.items.table["item_id"][3]}]
    before = recommender.recommend(history, k=5)
    recommender.soft_token_lm.readout.weight.data.zero_()
    assert [one.score for one in before] != [one.score for one in recommender.recommend(history, k=5)]


def test_it_converses_as_the_run_does(talker, telling):
    theirs = Recommender.from_pretrained(telling)
    ids, turns = talker.items.table["item_id"], []
    history = [{"item_id": ids[3]}, {"title": "Fountain pen, green"}]
    for critique in (ANSWER, "Show me something red.", ""):
        reply, expected = (one.converse(history, turns=turns, k=5) for one in (theirs, talker))
        assert reply.narrative == expected.narrative
        assert_same(reply.recommendations, expected.recommendations)
        turns.append(Turn(reply.recommendations[0].item_id, critique))


ALIKE = [pytest.param(encoder, marks=pytest.mark.slow) for encoder in ("cf", "content", "random")]


@pytest.mark.parametrize("encoder", ["none", *ALIKE])
def test_every_encoder_that_is_served_is_exported(encoder, tmp_path):
    task = "converse" if encoder == "none" else "recommend"
    folder = trained(tmp_path, f"task={task}", f"encoder={encoder}", "data.critiques=false")
    ours = Recommender.from_run(folder)
    export_ = ours.save_pretrained(tmp_path / "model")
    expected = [ours.recommend(history) for history in histories(ours)]
    for gone in ("runs", "data"):
        shutil.rmtree(tmp_path / gone)
    theirs = Recommender.from_pretrained(export_)
    for history, found in zip(histories(theirs), expected, strict=True):
        assert_same(theirs.recommend(history), found)
    with pytest.raises(RequestError, match="reads no critique"):
        theirs.recommend(histories(theirs)[0], ANSWER)


def test_what_is_in_it_and_saved_again_it_is_the_same(exported, tmp_path):
    assert check_manifest(exported) == FILES
    recommender = Recommender.from_pretrained(exported)
    again = recommender.save_pretrained(tmp_path / "again")
    for name in ("adapter.safetensors", "catalogue.safetensors", "closed_form.safetensors"):
        before, after = load_file(exported / name), load_file(again / name)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key], after[key]) for key in before)
    for name in ("config.json", "README.md", "generation_config.json"):
        assert (exported / name).read_text() == (again / name).read_text()
    assert "readout.weight" in load_file(exported / "adapter.safetensors")
    assert set(load_file(exported / "closed_form.safetensors")) == {"map"}
    catalogue = load_file(exported / "catalogue.safetensors")
    assert len(catalogue["vectors"]) == len(catalogue["purchases"]) == len(recommender.items)
    assert catalogue["purchases"].sum() > 0


def test_loading_fits_nothing(run, exported, monkeypatch):
    monkeypatch.setattr(ClosedForm, "fit", lambda *_: pytest.fail("the closed form is fitted again"))
    Recommender.from_pretrained(exported)
    Recommender.from_run(run)
    data = load_folder(run).data
    train = data.splits["train"].collate([0, 1])  # the maps of the folds are kept, too
    assert np.isfinite(train.queries.numpy()).all()


CHANGED = {
    "absent": None,
    "damaged": lambda whole: whole[:-7],
    "of other data": lambda whole: re.sub(rb'(made_from":")[0-9a-f]{12}', rb"\g<1>000000000000", whole),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_run_without_its_closed_form_fits_it_again(run, kind, monkeypatch, caplog):
    before, path = Recommender.from_run(run), run / "closed_form.safetensors"
    whole = path.read_bytes()
    if CHANGED[kind] is None:
        path.unlink()
    else:
        path.write_bytes(CHANGED[kind](whole))
        assert path.read_bytes() != whole
    fitted, fit = [], ClosedForm.fit
    monkeypatch.setattr(ClosedForm, "fit", lambda *arguments: fitted.append(1) or fit(*arguments))
    again = Recommender.from_run(run)
    assert fitted
    assert ("the closed form is fitted again" in caplog.text) == (kind != "absent")
    for history in histories(before):
        assert_same(again.recommend(history), before.recommend(history))
    fitted.clear()
    Recommender.from_run(run)  # it was written again
    assert not fitted


def test_a_folder_that_cannot_be_written_keeps_nothing(run, monkeypatch, tmp_path):
    def refused(*_):
        raise PermissionError("read-only")

    path = run / "closed_form.safetensors"
    whole = path.read_bytes()
    path.unlink()
    monkeypatch.setattr("regen.training.recommendation.write_atomically", refused)
    try:
        Recommender.from_run(run)
        assert not path.exists()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_or_changed_file_is_named(copied, name):
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ValueError, match=f"{copied / name}: changed since it was exported"):
        Recommender.from_pretrained(copied)
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{copied / name}: missing"):
        Recommender.from_pretrained(copied)


def test_the_wrong_class_is_named(exported, telling, copied, run):
    with pytest.raises(ValueError, match=r"task=recommend, which writes no narratives .* Give one of task=narrate"):
        NarrativeModel.from_pretrained(exported)
    with pytest.raises(ValueError, match="an exported model of task=converse, which writes no narratives"):
        NarrativeModel.from_pretrained(telling)
    config = json.loads((copied / "config.json").read_text())
    del config["ranking"]
    (copied / "config.json").write_text(json.dumps(config))
    exported_module.write_manifest(copied)
    with pytest.raises(ValueError, match="task=narrate, which does not recommend. Give one of task=recommend or"):
        Recommender.from_pretrained(copied)
    with pytest.raises(FileNotFoundError, match="no exported model, because it has no manifest.json"):
        Recommender.from_pretrained(run)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        Recommender.from_run(exported)


def command(monkeypatch, tmp_path, run):
    arguments = ["regen export", f"run={run}", f"out={tmp_path}/model", f"hydra.run.dir={tmp_path}/logs"]
    monkeypatch.setattr(sys, "argv", arguments)
    export.run()


def test_the_command_exports_it(cells, tmp_path, monkeypatch, logs_as_they_were):
    command(monkeypatch, tmp_path, cells[1])
    assert Recommender.from_pretrained(tmp_path / "model").feature == "product_endorsement"


@pytest.mark.parametrize("kind", ["unfinished", "for debugging", "damaged"])
def test_a_run_that_cannot_be_exported_is_refused(run, tmp_path, kind, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "run")
    if kind == "unfinished":
        (folder / "model.safetensors").unlink()
        says = "not finished, there is no model.safetensors in it. Run its train.py command again"
    elif kind == "for debugging":
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["trainer"]["limit_train_batches"] = 2
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        says = "trained with trainer.limit_train_batches=2, for debugging"
    else:
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        says = "model.safetensors: cannot be read .* Train the run anew"
    with pytest.raises(ValueError, match=says):
        Recommender.from_run(folder)


def test_a_run_whose_narratives_are_empty_is_refused(cells, tmp_path):
    folder = shutil.copytree(cells[1], tmp_path / "run")
    examples = pl.read_parquet(folder / "examples.parquet")
    told = (pl.col("system") == "model") & (pl.col("feature") != "next_item")
    examples.with_columns(empty=pl.when(told).then(1.0).otherwise(0.0)).write_parquet(folder / "examples.parquet")
    with pytest.raises(ValueError, match="100% of its texts for the test users are empty"):
        export.refuse_empty_texts(folder)


def test_the_card_says_how_well_it_ranks(exported, telling, run):
    card = (exported / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["library_name"], "pipeline_tag" in front) == ("regen", False)
    scores = json.loads((run / "scores.json").read_text())["next_item"]
    score = scores["recall_10"]["closed form"]
    assert "| next item | model | closed form | popularity | item kNN | ALS | content kNN |" in card
    assert f"| {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] |" in card
    assert [line.split(" | ")[0] for line in card.splitlines() if re.match(r"\| (Recall|NDCG|MRR)", line)] == [
        "| Recall@10",
        "| NDCG@10",
        "| MRR",
    ]
    users = scores["mrr"]["model"]["users"]
    for said in (
        "Recommender.from_pretrained",
        f"The last purchase of {users:,} users that were not trained on, ranked among all items; bought items are",
        "| item head | query of the closed form plus a linear readout",
        "decay 1, ridge 0.1",
        "| catalogue | 200 items |",
        "A *perfect reader* knows the synthetic world",
    ):
        assert said in card
    assert "review" not in card.split("## Data")[0]  # a recommender reads none
    assert "model.converse(HISTORY)" in (telling / "README.md").read_text()
    assert "| product_endorsement | model | shuffled | constant |" in (telling / "README.md").read_text()


def test_serve_takes_an_export(exported, telling, caplog, tmp_path):
    caplog.set_level("INFO")
    for folder in (exported, telling):
        serve(compose([f"checkpoint={folder}", "dry_run=true"], root="serve"))
    assert "start first: nothing" in caplog.text
    with pytest.raises(ValueError, match="data=x belongs to"):
        serve(compose([f"checkpoint={telling}", "data=x"], root="serve"))
    with pytest.raises(FileNotFoundError, match="no exported model"):
        serve(compose([f"checkpoint={tmp_path}", "dry_run=true"], root="serve"))


def test_a_push_uploads_the_whole_folder(exported, monkeypatch):
    pushed = []
    monkeypatch.setattr(exported_module.hub, "push", lambda *of, **_: pushed.append((check_manifest(of[0]), of[1])))
    Recommender.from_pretrained(exported).push_to_hub("me/mine")
    assert pushed == [(FILES, "me/mine")]
