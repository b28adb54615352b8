"""A folder of `regen release` is read back by source=regen_release, with its critiques, or refused with the reason."""

import polars as pl
import pytest

from regen.data.critiques import critiques_of
from regen.data.prepare import load_tables, prepare
from regen.data.regen_release import ReleaseSource
from regen.data.tables import CRITIQUES, DataError
from regen.narratives.narrate import narrate
from regen.narratives.narrators import TemplateNarrator
from regen.narratives.release import release

FIELDS = {"user_id": "u", "history": "h", "item_id": "i", "title": "t", "narratives": {}}


@pytest.fixture
def released(small_config, tmp_path):
    """A narrated artefact and its release."""
    source = small_config().source
    options = {"max_history": 50, "users": 30, "shared_category": 0.0, "root": tmp_path / "data"}
    prepared = prepare(source.build(), source.node, root=tmp_path / "data")
    data = narrate(TemplateNarrator(), prepared=prepared, **options)
    users = load_tables(data.path).narratives["user_id"].unique().sort()
    split_of = dict(zip(users, ["train", "validation", "test"] * 10, strict=True))
    about = {"source": "synthetic", "vertical": "office", "licence": "other", "split_of": split_of}
    return data, release(data, folder=tmp_path / "release", **about)


def source_at(folder, **options):
    return ReleaseSource(path=str(folder), fields=FIELDS, **options)


def test_it_is_read_back_as_it_was(released, tmp_path):
    data, folder = released
    tables, back = load_tables(data.path), prepare(source_at(folder), {}, root=tmp_path / "back")
    found = load_tables(back.path)
    users = tables.narratives["user_id"].unique().implode()
    interactions = tables.interactions.filter(pl.col("user_id").is_in(users))
    assert found.interactions.equals(interactions)
    assert found.narratives.equals(tables.narratives.select(found.narratives.columns).drop_nulls("text"))
    assert found.items.equals(tables.items.filter(pl.col("item_id").is_in(interactions["item_id"].implode())))
    assert found.critiques.equals(tables.critiques.select(CRITIQUES.names()))
    assert critiques_of(found, shared=0.0).equals(found.critiques)
    counts = back.manifest["counts"]
    assert counts["critiques.read"] == counts["critiques.kept"] == len(found.critiques) > 30


def test_its_critiques_are_optional_and_one_split_is_enough(released):
    _, folder = released
    for path in (*folder.glob("critiques/*"), *folder.glob("*/train.parquet")):
        path.unlink(missing_ok=True)
    tables, _ = source_at(folder).read()
    assert tables.critiques is None
    assert tables.narratives["user_id"].n_unique() == 20


@pytest.mark.parametrize("table", ["histories", "narratives"])
def test_a_folder_without_a_table_is_no_release(released, table):
    _, folder = released
    for path in folder.glob(f"{table}/*"):
        path.unlink(missing_ok=True)
    with pytest.raises(DataError, match=f"no {table}/train.parquet.* not a release. Set source.path to the folder"):
        source_at(folder).files()


@pytest.mark.parametrize(
    ("table", "content", "message"),
    [
        ("narratives", b"PAR1 no more", "train.parquet: not a Parquet file"),
        ("histories", {"user_id": ["u"], "purchases": ["pens"]}, "'purchases' is no list of purchases"),
        ("histories", {"user_id": ["u"]}, "train.parquet: has no column 'purchases'"),
        ("critiques", {"user_id": ["u"], "text": ["cheaper"]}, "train.parquet: has no column 'from_item_id'"),
    ],
    ids=["cut off", "texts", "no purchases", "no items"],
)
def test_files_of_another_form_are_named(released, table, content, message):
    _, folder = released
    for path in folder.glob(f"{table}/*"):
        path.unlink(missing_ok=True)
    path = folder / table / "train.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pl.DataFrame(content).write_parquet(path)
    with pytest.raises(DataError, match=message):
        source_at(folder).read()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text": " "}, "have no 'text'"),
        ({"from_item_id": "nowhere"}, "have a 'from_item_id' that their user did not buy"),
        ({"to_item_id": "nowhere"}, "have a 'to_item_id' that their user did not buy"),
        ({"user_id": "nobody"}, "have a 'from_item_id' that their user did not buy"),
        ({}, "lead a user to an item once more"),
    ],
    ids=["no text", "from", "to", "user", "twice"],
)
def test_bad_critiques_are_errors_or_left_out(released, changed, message):
    _, folder = released
    path = folder / "critiques" / "train.parquet"
    rows = pl.read_parquet(path)
    worse = rows.head(1).with_columns(pl.lit(value).alias(name) for name, value in changed.items())
    pl.concat([rows, worse]).write_parquet(path)
    with pytest.raises(DataError, match=f"1 of .* critiques {message}"):
        source_at(folder).read()
    tables, counts = source_at(folder, on_bad_row="skip").read()
    assert counts["critiques.read"] == counts["critiques.kept"] + 1 == len(tables.critiques) + 1
