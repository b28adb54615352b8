"""A release: loads as declared, keeps users apart by split, says what is in it, and names no reviewer."""

import gzip
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import datasets
import polars as pl
import pytest
import yaml
from narratives.bad_server import BadServer

from regen.config.schema import UsersSplit
from regen.data.amazon import AmazonSource
from regen.data.grounding import ungrounded_shares
from regen.data.jsonl import JsonlSource
from regen.data.prepare import load_tables, prepare
from regen.data.splits import NAMES as SPLITS
from regen.data.splits import split_of
from regen.data.tables import DataError
from regen.narratives import release_card
from regen.narratives.endpoint import Endpoint, Sampling
from regen.narratives.narrate import narrate
from regen.narratives.narrators import NARRATED, TemplateNarrator
from regen.narratives.prompts import HistoryLimits
from regen.narratives.rate import rate
from regen.narratives.raters import Rater
from regen.narratives.release import FEATURES, release
from regen.narratives.report import RunLimits

USERS, DAY = 30, 86_400
NAMES = [f"Zacharias Reviewer{user:02}" for user in range(USERS)]


def write_amazon(folder):
    """Both files of a vertical as published: thirty people who bought three of nine things."""
    reviews = [
        {
            "reviewerID": f"A{user:02}",
            "reviewerName": NAMES[user],
            "asin": f"B{(user + at) % 9}",
            "unixReviewTime": DAY * (at + 1),
            "overall": float(1 + (user + at) % 5),
            "summary": "Five Stars",
            "reviewText": f"A fine thing of number {at}.",
        }
        for user in range(USERS)
        for at in range(3)
    ]
    products = [
        {
            "asin": f"B{item}",
            "title": f"Gift box {item}",
            "category": ["Gifts", "Boxes"],
            "brand": ("Ax", "Orchid")[item % 2],
            "price": "$5.00",
        }
        for item in range(9)
    ]
    paths = (folder / "reviews.json.gz", folder / "metadata.json.gz")
    for path, rows in zip(paths, (reviews, products), strict=True):
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return paths


def splits_of(data):
    users = load_tables(data.path).interactions["user_id"].unique().sort()
    return dict(
        zip(users, split_of(users, UsersSplit(name="users", validation=0.2, test=0.3, salt="regen")), strict=True)
    )


def known(data):
    return {"source": "amazon2018", "vertical": "gift_cards", "split_of": splits_of(data), "licence": "other"}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Narrated, rated and released once for all tests that only read."""
    tmp_path = tmp_path_factory.mktemp("release")
    reviews, metadata = write_amazon(tmp_path)
    source = AmazonSource(
        reviews=str(reviews), metadata=str(metadata), folder=None, max_history=50, collapse_copies=True
    )
    root = tmp_path / "data"
    options = {"max_history": 50, "users": USERS - 2, "shared_category": 0.5, "root": root}
    data = narrate(TemplateNarrator(), prepared=prepare(source, {}, root=root), **options)
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=100, seed=0)
    with BadServer(["none"]) as server:
        endpoint = Endpoint(model="m", base_url=server.url, api_key_env="NO_KEY", sampling=sampling, timeout=60.0)
        limits = RunLimits(4, None, None, max_attempts=6, price=None, max_cost=None)
        rater = Rater("a", endpoint, tmp_path / "ledger.sqlite", HistoryLimits(200, 10_000), limits)
        options = {"draws": 1, "max_history": 50, "users": 6, "max_cost": None, "controls": 0.05}
        rated = rate([rater], data=data, root=root, **options)
        of_a_model = rate([rater], data=data, root=root, narratives=load_tables(data.path).narratives, **options)
    folder = release(data, folder=tmp_path / "new" / "release", ratings=rated.path, **known(data))
    return SimpleNamespace(
        folder=folder, data=data, rated=rated, of_a_model=of_a_model, reviews=reviews, tmp_path=tmp_path
    )


def rows_of(folder):
    """Every Parquet file of a release by its configuration and split."""
    return {path.relative_to(folder).with_suffix("").as_posix(): pl.read_parquet(path) for path in folder.glob("*/*")}


@pytest.mark.parametrize("name", FEATURES)
def test_it_loads_with_the_declared_types(released, name, tmp_path):
    loaded = datasets.load_dataset(str(released.folder), name, cache_dir=str(tmp_path))
    assert list(loaded) == list(SPLITS)
    assert {split: part.features for split, part in loaded.items()} == dict.fromkeys(SPLITS, FEATURES[name])
    files = rows_of(released.folder)
    for split, part in loaded.items():
        assert part.to_list() == files[f"{name}/{split}"].to_dicts()


def test_the_default_is_the_narratives(released, tmp_path):
    loaded = datasets.load_dataset(str(released.folder), cache_dir=str(tmp_path))
    assert loaded["train"].features == FEATURES["narratives"]


def test_every_row_is_released_once_and_no_user_is_in_two_splits(released):
    files = rows_of(released.folder)
    assert sorted(files) == sorted(f"{name}/{split}" for name in FEATURES for split in SPLITS)
    for name in ("histories", "narratives"):
        users = [set(files[f"{name}/{split}"]["user_id"]) for split in SPLITS]
        assert all(users)
        assert sum(map(len, users)) == len(set.union(*users)) == USERS - 2
    split_of = splits_of(released.data)
    for name, frame in files.items():
        assert {split_of[user] for user in frame["user_id"]} <= {name.rpartition("/")[2]}
    whole = pl.concat(files[f"narratives/{split}"] for split in SPLITS).sort(NARRATED.names())
    assert whole.equals(pl.read_parquet(released.data.path / "narratives.parquet").sort(NARRATED.names()))
    critiques = pl.concat(files[f"critiques/{split}"] for split in SPLITS)
    assert critiques.sort(pl.all()).equals(pl.read_parquet(released.data.path / "critiques.parquet").sort(pl.all()))
    assert len(critiques) > USERS
    ratings = pl.concat(files[f"ratings/{split}"] for split in SPLITS)
    assert ratings.sort(pl.all()).equals(pl.read_parquet(released.rated.path / "ratings.parquet").sort(pl.all()))


def test_histories_are_whole_and_oldest_first(released):
    files = rows_of(released.folder)
    for row in pl.concat(files[f"histories/{split}"] for split in SPLITS).iter_rows(named=True):
        number = int(row["user_id"][1:])
        assert [one["item_id"] for one in row["purchases"]] == [f"B{(number + at) % 9}" for at in range(3)]
        assert [one["timestamp"] for one in row["purchases"]] == [DAY, 2 * DAY, 3 * DAY]
        last = row["purchases"][-1]
        assert (last["title"], last["category"]) == (f"Gift box {(number + 2) % 9}", "Gifts - Boxes")
        assert (last["review_text"], last["rating"]) == ("A fine thing of number 2.", 1 + (number + 2) % 5)


def test_names_of_reviewers_are_in_no_file(released):
    assert NAMES[0] in gzip.decompress(released.reviews.read_bytes()).decode()
    files = [path for path in released.folder.rglob("*") if path.is_file()]
    assert len(files) == 13
    texts = [json.dumps(frame.to_dicts()) for frame in rows_of(released.folder).values()]
    texts += [path.read_bytes().decode("latin-1") for path in files]
    assert all("Zacharias" not in text and "reviewerName" not in text for text in texts)


def cells(card, *starts):
    """The first row of a table in the card that starts with these cells."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|")]
    return next(row for row in rows if row[: len(starts)] == list(starts))


def test_the_card_says_what_is_in_it(released):
    card = (released.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["language"]) == ("other", "en")
    assert [one["config_name"] for one in front["configs"] if one.get("default")] == ["narratives"]
    assert {file["path"] for one in front["configs"] for file in one["data_files"]} == {
        f"{name}.parquet" for name in rows_of(released.folder)
    }
    for name in FEATURES:
        files = rows_of(released.folder)
        assert cells(card, name)[1:] == [f"{len(files[f'{name}/{split}']):,}" for split in SPLITS]
    model = released.data.manifest["config"]["version"]
    assert cells(card, "purchase_reason") == ["purchase_reason", "template", f"template {model}", "", "", "28", "0"]
    critiques = sum(len(files[f"critiques/{split}"]) for split in SPLITS)
    assert cells(card, "critique") == ["critique", "template", "rules 1", "", "", str(critiques), "0"]
    shares = cells(card, "a", "user_summary", "veracity")[3:]
    assert shares == ["0", "0", "0", "100", "0", "0", "0", "4.0"]
    assert f"`{released.data.fingerprint}`" in card
    for said in ("Amazon Product Reviews, 2018", "No licence text accompanies", "load_dataset(FOLDER, 'ratings')"):
        assert said in card
    assert re.search(r"^- 0 narratives share eight words in a row with a review", card, re.MULTILINE)


def test_the_card_says_how_many_narratives_are_grounded_and_how_far_raters_agree(released):
    card = (released.folder / "README.md").read_text()
    assert "One rater judged once" in card
    twice = pl.read_parquet(released.rated.path / "ratings.parquet").with_columns(draws=pl.col("draws").list.head(1))
    more = pl.concat([twice, twice.with_columns(rater=pl.lit("b"))])
    assert cells(release_card._agreement(more), "a and b", "user_summary", "veracity")[3:] == ["6", "", "1.00"]
    grounding = card.split("## Are the narratives grounded?")[1].split("##")[0]
    assert "| purchase_reason | 28 | 0.0 |" in grounding
    tables = load_tables(released.data.path)
    invented = pl.when(pl.col("user_id") == "A03").then(pl.lit("They love Wagner.")).otherwise("text").alias("text")
    tables = replace(tables, narratives=tables.narratives.with_columns(invented))
    assert dict(ungrounded_shares(tables).select("feature", "ungrounded").rows())["user_profile"] == 1 / 28


def test_the_card_says_whether_raters_read_the_histories(released):
    card = (released.folder / "README.md").read_text()
    assert cells(card, "a", "6") == ["a", "6", "0", "6", "0", "4", "4", "1"]
    assert "**Caution.** a: 18 of 18 attributes have one score for all users" in card
    assert "**Caution.** a: veracity is higher for the genuine history than for another user's in 0 of 6" in card
    none = pl.read_parquet(released.rated.path / "controls.parquet").clear()
    assert release_card._controls(none).startswith("No control narrative was rated")


def test_the_card_names_models_prompts_and_sampling(released):
    written = pl.read_parquet(released.data.path / "narratives.parquet")
    more = {"narrator": "openai", "model": "m-1", "prompt": "reasons 0123456789ab", "sampling": '{"seed": 0}'}
    profile = pl.col("feature") == "user_profile"
    frame = written.with_columns(pl.when(profile).then(pl.lit(text)).alias(name) for name, text in more.items())
    card = release_card._narrators(frame)
    assert cells(card, "user_profile") == ["user_profile", *more.values(), "28", "0"]


def test_without_ratings_there_are_none(released, tmp_path):
    folder = release(released.data, folder=tmp_path / "release", **known(released.data) | {"source": "elsewhere"})
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "critiques", "histories", "narratives"]
    card = (folder / "README.md").read_text()
    assert "## Ratings" not in card
    assert "Unknown" in card
    assert [one["config_name"] for one in yaml.safe_load(card.split("---\n")[1])["configs"]] == [
        "histories",
        "narratives",
        "critiques",
    ]


def test_a_split_without_users_does_not_keep_the_others_from_loading(released, tmp_path):
    everybody = known(released.data) | {"split_of": dict.fromkeys(splits_of(released.data), "train")}
    folder = release(released.data, folder=tmp_path / "release", ratings=released.rated.path, **everybody)
    for name in FEATURES:
        loaded = datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path / "cache"))
        assert loaded["train"].features == FEATURES[name]
        assert sum(map(len, loaded.values())) == len(loaded["train"]) > 0


def test_narratives_of_a_source_have_no_narrator(shoppers, tmp_path):
    folder = shoppers(10)
    row = {"user_id": "u0003", "feature": "user_profile", "text": "Calm buyer"}  # and no critiques
    (folder / "narratives.jsonl").write_text(json.dumps(row) + "\n")
    data = prepare(JsonlSource(folder=str(folder)), {}, root=tmp_path / "data")
    made = release(data, folder=tmp_path / "release", **known(data) | {"source": "jsonl", "licence": "cc-by-4.0"})
    (found,) = pl.concat(frame for name, frame in rows_of(made).items() if name.startswith("narratives")).to_dicts()
    assert found == dict.fromkeys(NARRATED.names()) | row
    card = (made / "README.md").read_text()
    assert "critiques" not in {path.name for path in made.iterdir()}
    assert "## Who wrote the critiques" not in card
    assert cells(card, "user_profile", "the source")[-2:] == ["1", "0"]
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"


def test_ratings_of_other_data_are_refused(released, tmp_path):
    other = narrate(TemplateNarrator(), prepared=released.data, max_history=1, users=3, root=released.tmp_path / "data")
    for data, ratings in ((other, released.rated.path), (released.data, released.data.path)):
        with pytest.raises(DataError, match=f"ratings={ratings}: .*not {data.fingerprint}"):
            release(data, folder=tmp_path / "release", ratings=ratings, **known(data))
    with pytest.raises(DataError, match="^ratings=.*nowhere: no such artefact folder"):
        release(released.data, folder=tmp_path / "release", ratings=tmp_path / "nowhere", **known(released.data))
    with pytest.raises(DataError, match=f"ratings={released.of_a_model.path}: these rate what a model wrote"):
        release(released.data, folder=tmp_path / "release", ratings=released.of_a_model.path, **known(released.data))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("table", ["narratives", "critiques"])
def test_ratings_of_texts_that_were_written_again_are_refused(released, tmp_path, table):
    files = released.data.manifest["files"]
    files = files | {f"{table}.parquet": {"sha256": "0" * 64}}
    data = replace(released.data, manifest={**released.data.manifest, "files": files})
    with pytest.raises(DataError, match=f"the {table} were written again since. Run regen rate again"):
        release(data, folder=tmp_path / "release", ratings=released.rated.path, **known(data))


def test_ratings_without_a_check_of_the_raters_are_refused(released, tmp_path):
    old = shutil.copytree(released.rated.path, tmp_path / "rated")
    (old / "controls.parquet").unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    del manifest["files"]["controls.parquet"]
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="written before raters were checked. Run regen rate again"):
        release(released.data, folder=tmp_path / "release", ratings=old, **known(released.data))


def test_a_folder_that_exists_is_replaced_only_by_force(released, tmp_path):
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "README.md").write_text("an older one")
    with pytest.raises(DataError, match=f"{folder} exists. .*force=true"):
        release(released.data, folder=folder, **known(released.data))
    assert (folder / "README.md").read_text() == "an older one"
    release(released.data, folder=folder, force=True, **known(released.data))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release"]
    assert (folder / "README.md").read_text() != "an older one"


def test_force_replaces_no_folder_that_is_no_release(released, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds thesis.txt, so it is not a release"):
        release(released.data, folder=tmp_path, force=True, **known(released.data))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_release_that_breaks_off_leaves_the_old_one_and_nothing_else(released, tmp_path, monkeypatch):
    folder = release(released.data, folder=tmp_path / "release", **known(released.data))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("regen.narratives.release.release_card", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        release(released.data, folder=folder, force=True, **known(released.data))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_data_without_narratives_say_what_would_write_them(prepared, tmp_path):
    data = prepared(2)
    with pytest.raises(DataError, match="no narratives to release.*narrator=template"):
        release(data, folder=tmp_path / "release", **known(data))
