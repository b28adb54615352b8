"""Amazon Reviews 2023 as published: its defects in rows made up here, each kept or counted."""

import gzip
import json
import random
from datetime import UTC, datetime
from types import SimpleNamespace

import polars as pl
import pytest

from regen.data.amazon import AmazonSource
from regen.data.amazon2023 import Amazon2023Source
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, DataError

DAY = 86_400
START = 1_600_000_000 // DAY * DAY  # in September 2020
TABLES = ("items", "interactions", "narratives")
HEADER = "user_id,parent_asin,rating,timestamp"


def review(user, item, day=0, text="Fine", **more):
    known = {"rating": 5.0, "title": "Five", "text": text, "images": [{"small_image_url": "https://x"}], "asin": "V1"}
    ids = {"user_id": user, "parent_asin": item, "timestamp": (START + day * DAY) * 1000 + 70}
    return known | ids | {"helpful_vote": 0, "verified_purchase": True} | more


def product(item, title="Steel ruler", **more):
    known = {"main_category": "Office Products", "features": ["Rust-free."], "description": ["30 cm."], "price": 4.5}
    known |= {"store": "Ax", "categories": ["Office", "Rulers"], "details": {"Brand": "Other", "Color": "Red"}}
    return known | {"parent_asin": item, "title": title, "bought_together": None, "images": []} | more


@pytest.fixture
def prepare(tmp_path):
    """Writes both files, runs the source on them and reads back what it wrote."""

    def prepared(reviews, metadata, *, source=Amazon2023Source, name="r.jsonl", **options):
        paths = [tmp_path / name, tmp_path / "m.jsonl"]
        for path, rows in zip(paths, (reviews, metadata), strict=True):
            text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
            path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        folder.mkdir()
        known = {"folder": None, "max_history": 50, "collapse_copies": True}
        counts = source(reviews=str(paths[0]), metadata=str(paths[1]), **known | options).write(folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.parquet" for name in TABLES)
        tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        return SimpleNamespace(counts=counts, folder=folder, **tables)

    return prepared


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_reads_both_files_as_published(prepare, name):
    done = prepare([review("u1", "b1", 3, "Nice<br />ruler")], [product("b1", "Steel &amp; wood")], name=name)
    assert done.items.rows() == [("b1", "Steel & wood", "30 cm.", "Office - Rulers", 4.5, "Ax")]
    assert done.interactions.rows() == [("u1", "b1", START + 3 * DAY, 5.0, "Five", "Nice ruler")]
    assert [done.items.schema, done.interactions.schema, done.narratives.schema] == [ITEMS, INTERACTIONS, NARRATIVES]
    assert done.counts["interactions.times_in_milliseconds"] == 1


@pytest.mark.parametrize(
    ("changes", "column", "value"),
    [
        ({"price": None}, "price", None),
        ({"price": "None"}, "price", None),
        ({"price": "—"}, "price", None),
        ({"price": "from 12.99"}, "price", 12.99),
        ({"price": "$1,234.50"}, "price", 1234.5),
        ({"price": 7}, "price", 7.0),
        ({"categories": []}, "category", "Office Products"),
        ({"categories": None}, "category", "Office Products"),
        ({"categories": [], "main_category": None}, "category", None),
        ({"categories": ["Office", " ", "Pens &amp; Ink", "Office"]}, "category", "Office - Pens & Ink"),
        ({"description": ["Long.", "<b>Steel</b>."]}, "description", "Long. Steel."),
        ({"description": []}, "description", "Rust-free."),
        ({"description": [" "]}, "description", "Rust-free."),
        ({"description": None}, "description", "Rust-free."),
        ({"description": [], "features": []}, "description", None),
        ({"description": None, "features": None}, "description", None),
        ({"store": None}, "brand", "Other"),
        ({"store": " "}, "brand", "Other"),
        ({"store": None, "details": {"Manufacturer": "Made Co", "Brand": ""}}, "brand", "Made Co"),
        ({"store": None, "details": json.dumps({"Brand": "As &amp; text"})}, "brand", "As & text"),
        ({"store": None, "details": {"Best Sellers Rank": {"Brand": 3}}}, "brand", None),
        ({"store": None, "details": {}}, "brand", None),
        ({"store": None, "details": None}, "brand", None),
        ({"store": None, "details": "{cut off"}, "brand", None),
        ({"store": None, "details": [1]}, "brand", None),
        ({"store": None}, "description", "30 cm. Color: Red."),
        ({"store": None, "details": {"Color": None, "Size": 10}}, "description", "30 cm. Size: 10."),
        (
            {"store": None, "description": [], "features": [], "details": {"Colour": "Blue", "Size": "A4"}},
            "description",
            "Color: Blue. Size: A4.",
        ),
    ],
)
def test_fields_of_an_item(prepare, changes, column, value):
    done = prepare([review("u1", "b1")], [product("b1", **changes)])
    assert done.items[column].to_list() == [value]
    assert done.counts["items.without_price"] == done.items["price"].null_count()
    assert done.counts["items.with_unreadable_price"] == 0


@pytest.mark.parametrize(
    ("changes", "column", "value"),
    [
        ({"rating": 0.0}, "rating", None),
        ({"rating": 6}, "rating", None),
        ({"title": ""}, "review_title", None),
        ({"title": None}, "review_title", None),
        ({"text": " "}, "review_text", None),
        ({"text": "Good<br />pen [[VIDEOID:x1]]"}, "review_text", "Good pen"),
        ({"timestamp": 1_588_615_855_070}, "timestamp", 1_588_615_855),
        ({"timestamp": 1_588_615_855}, "timestamp", 1_588_615_855),
        ({"timestamp": 10**19}, "timestamp", None),
        ({"timestamp": None}, "timestamp", None),
        ({"parent_asin": "b1 "}, "item_id", "b1"),
    ],
)
def test_fields_of_a_review(prepare, changes, column, value):
    done = prepare([review("u1", "b1", **changes)], [product("b1")])
    assert done.interactions[column].to_list() == [value]
    assert done.counts["interactions.rating_of_zero"] == (changes.get("rating") == 0)


def test_what_metadata_lacked_is_counted_of_the_items_that_are_kept(prepare):
    metadata = [
        product("b1", store=None, description=[], categories=[]),
        product("b2", store=None, details={}),
        product("b3", None, store=None),
        product("b4", price="£5"),
    ]
    counts = prepare([review("u1", f"b{at}", at) for at in range(1, 5)], metadata).counts
    assert {name: counts[f"items.{name}"] for name in ("kept", "without_price", "with_unreadable_price")} == {
        **{"kept": 3, "without_price": 1, "with_unreadable_price": 1},
    }
    noted = ("brand_from_details", "color_or_size_from_details", "description_from_features")
    assert [counts[f"items.{name}"] for name in (*noted, "category_from_main_category")] == [1, 1, 1, 1]


@pytest.mark.parametrize("title", ["", None, "  "])
def test_an_item_with_an_empty_title_goes_with_its_interactions(prepare, title):
    done = prepare([review("u1", "b1"), review("u1", "b2", 1)], [product("b1"), product("b2", title)])
    assert done.items["item_id"].to_list() == ["b1"]
    assert done.counts["items.dropped.no_usable_title"] == 1
    assert done.counts["interactions.dropped.item_without_title"] == 1


def test_exact_duplicates_and_copies_over_variants_count_once(prepare):
    rows = [
        *(review("u1", "b1", asin=f"V{at}") for at in range(3)),  # one review under three variants of an item
        review("u1", "b2", timestamp=START * 1000 + 9_000_000),  # and under another item of the same day
        review("u1", "b2", 1),
    ]
    metadata = [product("b1"), product("b2")]
    counts = prepare(rows, metadata).counts
    assert (counts["interactions.dropped.repeated"], counts["interactions.dropped.copied_review"]) == (2, 1)
    assert counts["interactions.kept"] == 2
    assert prepare(rows, metadata, collapse_copies=False).counts["interactions.kept"] == 3


@pytest.mark.parametrize("rows", [5, 60])
def test_the_order_of_lines_does_not_matter(prepare, rows):
    chance = random.Random(rows)
    reviews = [review(f"u{chance.randrange(9)}", f"b{chance.randrange(6)}", at % 7, f"T{at}") for at in range(rows)]
    metadata = [product(f"b{at % 6}", f"Ruler {at}") for at in range(8)]
    straight = prepare(reviews, metadata, core=None)
    shuffled = prepare(chance.sample(reviews, rows), metadata[::-1], core=None)
    assert straight.counts == shuffled.counts
    for name in TABLES:
        assert (straight.folder / f"{name}.parquet").read_bytes() == (shuffled.folder / f"{name}.parquet").read_bytes()


def ratings(*rows, header=HEADER):
    return [header, *(",".join(map(str, row)) for row in rows)]


@pytest.mark.parametrize("name", ["Books.csv", "Books.train.csv.gz"])
@pytest.mark.parametrize("history", [False, True])
def test_the_5_core_files_have_ratings_and_times_alone(prepare, name, history):
    rows = [("u1", "b1", "5.0", START * 1000), ("u1", "b2", "0.0", START * 1000 + 86_400_000)]
    lines = ratings(*((*row, "b7 b8") if history else row for row in rows), header=HEADER + ",history" * history)
    done = prepare(lines, [product("b1"), product("b2")], name=name)
    assert done.interactions.rows() == [
        ("u1", "b1", START, 5.0, None, None),
        ("u1", "b2", START + DAY, None, None, None),
    ]
    assert done.counts["interactions.without_text"] == 2


def test_lines_of_a_5_core_file_that_are_cut_are_counted(prepare):
    lines = ratings(("u1", "b1", "x", "soon"), ("u2", "b1"), ("u3", "b1", 4.0, START * 1000, "more"), ("", "b1", 1, 1))
    counts = prepare([*lines, "", "u4,b1,3.0,1600000000000\r"], [product("b1")], name="Books.csv").counts
    assert (counts["interactions.read"], counts["interactions.dropped.malformed_line"]) == (5, 2)
    assert (counts["interactions.dropped.no_user_id"], counts["interactions.kept"]) == (1, 2)
    assert counts["interactions.without_time"] == counts["interactions.without_rating"] == 1


def test_a_5_core_file_without_names_of_columns_is_an_error(prepare):
    with pytest.raises(DataError, match=r"Books\.csv: the first line has no column 'user_id'; it is 'u1,b1,5\.0,1'"):
        prepare(["u1,b1,5.0,1"], [product("b1")], name="Books.csv")


def old_review(user, item):
    return {"reviewerID": user, "asin": item, "unixReviewTime": START, "overall": 5.0, "reviewText": "Fine"}


@pytest.mark.parametrize(
    ("source", "reviews", "metadata", "says"),
    [
        (Amazon2023Source, [old_review("u1", "b1")], [product("b1")], r"r\.jsonl: these reviews .* 2018 .*amazon2018"),
        (Amazon2023Source, [review("u1", "b1")], [{"asin": "b1"}], r"m\.jsonl: these metadata .* 2018 .*amazon2018"),
        (AmazonSource, [review("u1", "b1")], [{"asin": "b1"}], r"r\.jsonl: these reviews .* 2023 .*amazon2023"),
        (AmazonSource, [old_review("u1", "b1")], [product("b1")], r"m\.jsonl: these metadata .* 2023 .*amazon2023"),
    ],
)
def test_files_of_the_other_year_are_refused(prepare, source, reviews, metadata, says):
    with pytest.raises(DataError, match=f"{says}\\.$"):
        prepare(reviews, metadata, source=source)


def text_of(day):
    return datetime.fromtimestamp(START + day * DAY, UTC).date().isoformat()


@pytest.mark.parametrize(
    ("since", "until", "days"),
    [
        (None, None, [0, 1, 2, 3, None]),
        (text_of(1), None, [1, 2, 3]),
        (None, text_of(2), [0, 1]),
        (text_of(1), text_of(3), [1, 2]),
        (str(START + DAY), str((START + 3 * DAY) * 1000), [1, 2]),
    ],
)
def test_a_time_window_leaves_out_what_is_outside(prepare, since, until, days):
    rows = [review("u1", f"b{day}", timestamp=(START + day * DAY) * 1000) for day in range(4)]
    rows.append(review("u1", "b4", timestamp=None))
    done = prepare(rows, [product(f"b{at}") for at in range(5)], since=since, until=until)
    times = [START + day * DAY if day is not None else None for day in days]
    assert set(done.interactions["timestamp"]) == set(times)
    assert done.counts.get("interactions.dropped.outside_the_time_window", 0) == 5 - len(days)


@pytest.mark.parametrize(
    ("since", "until", "says"),
    [
        ("soon", None, r"source\.since=soon must be a date such as 2018-05-01"),
        ("2020", None, r"source\.since=2020 must be a date such as 2018-05-01"),
        ("2020-02-01", "2020-01-01", r"source\.since=2020-02-01 has to be before source\.until=2020-01-01"),
    ],
)
def test_a_window_that_is_none_is_refused(since, until, says):
    options = {"folder": None, "max_history": 50, "collapse_copies": True, "since": since, "until": until}
    with pytest.raises(ValueError, match=says):
        Amazon2023Source(reviews="r", metadata="m", **options)


def test_settings_stand_in_the_manifest_and_nulls_change_no_fingerprint(small_config, tmp_path):
    from regen.pipeline import prepared_artefact

    reviews = [review(f"u{user}", f"b{item}", item) for user in range(3) for item in range(3)]
    for name, rows in {"r.jsonl": reviews, "m.jsonl": [product(f"b{at}") for at in range(3)]}.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = ["source=amazon2023", f"source.reviews={tmp_path}/r.jsonl", f"source.metadata={tmp_path}/m.jsonl"]
    chosen += ["source.core=2", "source.since=2020-01-01"]
    made = prepared_artefact(small_config(*chosen, without="source."))
    assert made.manifest["config"]["core"] == 2
    assert made.manifest["config"]["since"] == "2020-01-01"
    assert "until" not in made.manifest["config"]
    assert made.manifest["counts"]["interactions.kept"] == 9
