"""`task=recommend` from the config to the table, and what is refused before any work."""

import json

import polars as pl
import pytest
from small import SMALL, quick_embeddings

from regen.analysis.report import write_report
from regen.commands.evaluate import evaluate_from_config
from regen.commands.rate import written_by
from regen.config.objects import compose
from regen.data.item_sequences import ItemSequencesSource
from regen.data.tables import DataError
from regen.evaluation.cells import run_cells
from regen.evaluation.comparison import compare
from regen.pipeline import diagnose, plan, train_and_evaluate
from regen.serving import NarrativeModel

pytestmark = pytest.mark.usefixtures("no_sentence_encoder")
TASK = ["task=recommend", "task.train_users=40", "task.decay=1.0", "task.ridge=0.1"]


def of(small_config, *overrides):
    return small_config(*TASK, *overrides, without="encoder=")


def test_a_grid_of_recommenders_ends_in_a_table(small_config, tmp_path):
    for encoder in ("cf", "content", "both"):
        folder, loss = train_and_evaluate(of(small_config, f"encoder={encoder}"))
        assert loss > 0
    predictions = pl.read_ndjson(folder / "predictions.jsonl")
    assert predictions.columns == ["user_id", "feature", "item_id", "rank", "closed_form_rank", "recommended"]
    place = predictions.filter(pl.col("rank") <= 20).row(0, named=True)
    assert place["recommended"][place["rank"] - 1] == place["item_id"]
    assert all(len(set(row)) == 20 for row in predictions["recommended"])
    scores = json.loads((folder / "scores.json").read_text())["next_item"]
    assert set(scores["recall_10"]) == {
        "model",
        "closed form",
        "popularity",
        "item kNN",
        "ALS",
        "content kNN",
        "perfect reader of CF",
    }
    table = compare(run_cells(tmp_path / "runs"), resamples=100).to_markdown()
    assert "| Metric | cf | content | both | both vs cf" in table
    assert (
        "both vs closed form (1 seed: over users, no stars) | closed form | popularity | item kNN | ALS | content kNN |"
        in table
    )
    assert "Recall@10" in table
    assert "BLEU" not in table
    assert "Closed form: the start of the training of the joint encoder" in table
    written = (folder / "examples.parquet").stat().st_mtime_ns
    assert train_and_evaluate(of(small_config, "encoder=both"))[0] == folder  # and finds it finished
    assert (folder / "examples.parquet").stat().st_mtime_ns == written


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with one scored run, and the test users' right items."""
    folder = tmp_path_factory.mktemp("scored")
    paths = [f"paths.data_dir={folder}/data", f"paths.runs_dir={folder}/runs"]
    with quick_embeddings():
        run, _ = train_and_evaluate(compose([*SMALL, *TASK, "encoder=cf", *paths]))
    examples = pl.read_parquet(run / "examples.parquet").filter(pl.col("system") == "model")
    return folder / "runs", dict(examples.select("user_id", "item_id").iter_rows())


def evaluated(folder, rows, tmp_path, monkeypatch):
    """The table with another system's file as a column."""
    path = tmp_path / "theirs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    given = [f"runs={folder}", f"recommendations={path}", "evaluation.resamples=100"]
    evaluate_from_config(compose(given, root="evaluate"))
    return (folder / "table.csv").read_text()


def test_another_system_is_a_column(scored, tmp_path, monkeypatch, caplog):
    folder, right = scored
    users = list(right)
    rows = [{"user_id": user, "items": [right[user]]} for user in users[: len(users) // 2]]
    wrong = {user: next(item for item in right.values() if item != right[user]) for user in users}
    rows += [{"user_id": user, "items": [wrong[user], right[user]]} for user in users[len(users) // 2 :]]
    table = evaluated(folder, rows, tmp_path, monkeypatch)
    values = {line.split(",")[1]: line for line in table.splitlines() if ",theirs,model," in line}
    assert float(values["recall_1"].split(",")[5]) == pytest.approx((len(users) // 2) / len(users))
    assert float(values["recall_5"].split(",")[5]) == 1
    assert "the shortest list has 1 items; items outside a list count as not found" in caplog.text


BAD = {
    "a missing user": (lambda rows: rows[1:], r"1 of \d+ test users of .* are missing, the first is"),
    "an unknown item": (lambda rows: [{**rows[0], "items": ["zz"]}, *rows[1:]], "item 'zz' of user .* is not in the catalogue"),
    "a user twice": (lambda rows: [*rows, rows[0]], "has a line already; give each user one"),
    "an item twice": (lambda rows: [{**rows[0], "items": ["i0000001"] * 2}, *rows[1:]], "theirs.jsonl:1: item 'i0000001' is named twice"),
    "no list": (lambda rows: [{**rows[0], "items": "i1"}], "theirs.jsonl:1: 'items' is \"i1\"; it must be a list"),
    "an empty list": (lambda rows: [{**rows[0], "items": []}], "must be a list of item ids"),
    "no items": (lambda rows: [{"user_id": "u"}], "theirs.jsonl:1: no key 'items'"),
    "nothing": (lambda rows: [], "no recommendations, the file has 0 lines"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_of_recommendations_is_refused(scored, tmp_path, monkeypatch, kind):
    change, says = BAD[kind]
    folder, right = scored
    rows = change([{"user_id": user, "items": [item]} for user, item in right.items()])
    with pytest.raises(ValueError, match=says):
        evaluated(folder, rows, tmp_path, monkeypatch)


def test_where_narratives_are_needed_a_recommender_is_refused(scored):
    (run,) = (path.parent for path in scored[0].glob("*/config.yaml"))
    for takes in (diagnose, NarrativeModel.from_run, written_by):
        with pytest.raises(ValueError, match="a run of task=recommend, which writes no narratives"):
            takes(run)


def test_a_report_shows_a_recommender(scored, tmp_path):
    page = write_report(scored[0], tmp_path / "report.html", users=2, seed=0, figures=False).read_text()
    assert "Recall@10" in page
    assert "recommend better than either alone?" in page
    assert "closed form in NDCG@10" in page  # what the language model adds
    assert "trained, wrote nothing yet" not in page
    assert "No run here has written anything" not in page


@pytest.mark.slow  # a larger world
def test_the_closed_form_reads_cf_and_finds_the_need(small_config):
    """A quarter of the catalogue serves a need, so the right item stands in the first half more often than by chance."""
    folder, _ = train_and_evaluate(of(small_config, "encoder=cf", "source.needs=4", "source.users=2000"))
    scores = json.loads((folder / "scores.json").read_text())["next_item"]
    assert scores["recall_50"]["closed form"]["value"] > 2 * scores["recall_50"]["popularity"]["value"]


def test_content_of_items_is_an_artefact_of_its_own(small_config):
    stages = {one.stage: one.folder.name.split("-")[0] for one in plan(of(small_config, "encoder=both")).artefacts}
    assert stages == {"prepare": "prepared", "encode cf": "cf", "encode content": "items"}


def test_another_setting_of_the_task_is_another_run(small_config):
    plans = [plan(of(small_config, "encoder=cf", *more)).run for more in ([], ["task.decay=0.5"], ["task.folds=4"])]
    assert len(set(plans)) == 3
    assert all(folder.name.startswith("next_item-cf-") for folder in plans)


REFUSED = [
    (["feature=purchase_reason"], "task=recommend with feature=purchase_reason: it takes feature=next_item"),
    (["encoder=text"], "task=recommend reads soft tokens, and encoder=text has none"),
    (["split=time", "split.validation_from=2017-01-01", "split.test_from=2017-06-01"], "Use split=users or split=file"),
    (["training.narratives_at_validation=4"], "task=recommend writes no narratives at validation. Set it to 0"),
    (["adapter=transformer"], "adapter=transformer reads the whole history"),
]


@pytest.mark.parametrize(("overrides", "says"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_what_does_not_go_with_it_is_refused_before_any_work(small_config, tmp_path, overrides, says):
    groups = tuple(override.split("=")[0] + "=" for override in overrides)
    cfg = small_config(*TASK, *overrides, without=groups)
    with pytest.raises(ValueError, match=says):
        train_and_evaluate(cfg)
    assert not (tmp_path / "data").exists()


def test_the_feature_belongs_to_the_task(small_config):
    with pytest.raises(
        ValueError, match="task=narrate with feature=next_item: it takes feature=those that are narratives"
    ):
        train_and_evaluate(small_config("feature=next_item"))


@pytest.fixture
def sequences(tmp_path):
    """A folder of the layout of Office Products 2014."""
    meta = [{"asin": "a", "title": "Pen &amp; ink", "description": ["blue", " fine "], "brand": "X"}, {"asin": "b"}]
    meta += [{"asin": "c", "title": "Pad", "description": "lined"}]
    users = [{"reviewerID": "v", "asin_sequence": ["c", "a", "b"]}, {"reviewerID": "u", "asin_sequence": ["a", "c"]}]

    def made(users=users):
        for name, rows in (("meta.json", meta), ("seq.json", users)):
            (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return ItemSequencesSource(folder=str(tmp_path), metadata="meta.json", sequences="seq.json")

    return made


def test_sequences_keep_their_order(sequences):
    tables, counts = sequences().read()
    assert tables.interactions.select("user_id", "item_id").rows() == [
        ("u", "a"),
        ("u", "c"),
        ("v", "c"),
        ("v", "a"),
        ("v", "b"),
    ]
    assert tables.items.select("item_id", "title", "description", "brand").rows() == [
        ("a", "Pen & ink", "blue fine", "X"), ("b", None, None, None), ("c", "Pad", "lined", None)
    ]  # fmt: skip
    assert counts["interactions.kept"] == 5


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"reviewerID": "w", "asin_sequence": "abc"}, r"seq.json:1: asin_sequence=abc is not a list of texts"),
        ({"reviewerID": "w", "asin_sequence": ["a", None]}, "is not a list of texts"),
        ({"reviewerID": "w"}, "no key 'asin_sequence'"),
        ({"reviewerID": "w", "asin_sequence": ["zz"]}, "zz"),
    ],
)
def test_a_bad_row_of_sequences_is_named(sequences, row, says):
    with pytest.raises(DataError, match=says):
        sequences([row]).read()


@pytest.mark.real_data
def test_office_2014_is_read_as_a_whole(real_data):
    names = {
        "metadata": "meta_Office_Products_2014_5core.json",
        "sequences": "sequences_Office_Products_2014_5core.json",
    }
    tables, counts = ItemSequencesSource(folder=str(real_data / "office2014"), **names).read()
    assert (tables.interactions["user_id"].n_unique(), len(tables.items), len(tables.interactions)) == (
        4905,
        2420,
        53258,
    )
    assert counts["interactions.read"] == 53258
