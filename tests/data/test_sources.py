"""Reading other people's files: the same tables whatever the order of rows, and complaints that name file and line."""

import gzip
import json
import random

import polars as pl
import pytest

from regen.data.files import read_jsonl
from regen.data.jsonl import JsonlSource
from regen.data.tables import DataError
from regen.data.xrec import XRecSource

ITEMS = [
    {"item_id": "b1", "title": "Steel ruler", "price": 4.5, "brand": "Ax"},
    {"item_id": "b2", "title": "Pencil"},
    {"item_id": "b3"},
]
INTERACTIONS = [
    {"user_id": "u1", "item_id": "b1", "timestamp": "2018-03-02", "rating": 5, "review_text": "Fine"},
    {"user_id": "u1", "item_id": "b2", "timestamp": 1519948800, "rating": 4.0},
    {"user_id": "u2", "item_id": "b2", "rating": None},
]
NARRATIVES = [
    {"user_id": "u1", "feature": "purchase_reason", "item_id": "b1", "text": "Needed a ruler."},
    {"user_id": "u2", "feature": "user_profile", "text": "Careful drawer", "extra": 1},
]


@pytest.fixture
def write(tmp_path):
    """Writes the three files, with rows replaced or added by a test; returns the source."""

    def written(*, items=ITEMS, interactions=INTERACTIONS, narratives=NARRATIVES, **options):
        for name, rows in (("items", items), ("interactions", interactions), ("narratives", narratives)):
            text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
        return JsonlSource(folder=str(tmp_path), **options)

    return written


def test_reads_the_documented_layout(write):
    tables, counts = write().read()
    assert tables.items["item_id"].to_list() == ["b1", "b2", "b3"]
    assert tables.items["title"].to_list() == ["Steel ruler", "Pencil", None]
    assert tables.interactions.select("user_id", "item_id", "timestamp").rows() == [
        ("u1", "b1", 1519948800),
        ("u1", "b2", 1519948800),
        ("u2", "b2", None),
    ]
    assert tables.narratives["text"].to_list() == ["Needed a ruler.", "Careful drawer"]
    assert (counts["interactions.read"], counts["interactions.kept"]) == (3, 3)


def test_order_of_rows_and_compression_do_not_matter(write, tmp_path):
    straight, _ = write().read()
    shuffled = [random.Random(3).sample(rows, len(rows)) for rows in (ITEMS, INTERACTIONS, NARRATIVES)]
    source = write(items=shuffled[0], interactions=shuffled[1], narratives=shuffled[2])
    for path in source.files().values():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    turned, _ = source.read()
    for name in ("items", "interactions", "narratives"):
        assert getattr(straight, name).equals(getattr(turned, name))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"interactions": []}, "0 interactions are left of 0 rows"),
        ({"items": [*ITEMS, {"item_id": "b1", "title": "Other"}]}, "items.jsonl: 1 of 4 items repeat an 'item_id'; the first is line 1.*'b1'"),
        ({"interactions": [*INTERACTIONS, INTERACTIONS[0]]}, "interactions.jsonl: 1 of 4 interactions repeat .*line 4"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "rating": float("nan")}]}, "a rating that is not a number from 0 to 5; the first is line 4"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "rating": float("inf")}]}, "a rating that is not a number from 0 to 5; the first is line 4"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "rating": -5}]}, "rating that is not a number from 0 to 5; the first is line 4. It is -5"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "rating": 100}]}, "rating that is not a number from 0 to 5; .*It is 100.*Set source.max_rating"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "timestamp": "last week"}]}, "a timestamp that is not a time before 2100; the first is line 4. It is 'last week'; give seconds"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "timestamp": "2018"}]}, "not a time before 2100; .*It is '2018'"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "timestamp": "1_000"}]}, "not a time before 2100; .*It is '1_000'"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "timestamp": 10**20}]}, "not a time before 2100; .*line 4. It is '1000"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "b1", "timestamp": 5_000_000_000}]}, "not a time before 2100; .*line 4. It is '5000000000'"),
        ({"narratives": [*NARRATIVES, {"user_id": "u1", "feature": "user_profile", "item_id": "b1", "timestamp": "soon", "text": "x"}]}, "narratives have a timestamp that is not a time"),
        ({"interactions": [*INTERACTIONS, {"user_id": "u2", "item_id": "zz"}]}, "an item that is not among the items; the first is line 4.*'zz'"),
        ({"narratives": [*NARRATIVES, {"user_id": "u1", "feature": "user_profile", "text": "  "}]}, "narratives.jsonl: 1 of 3 narratives have no 'text'; the first is line 3"),
        ({"narratives": [*NARRATIVES, {"user_id": "u1", "feature": "user_profil", "text": "x"}]}, "no feature 'user_profil'. Did you mean 'user_profile'"),
        ({"narratives": [*NARRATIVES, NARRATIVES[1]]}, "repeat user, feature and interaction .*line 3.*user 'u2'"),
        ({"narratives": [{"user_id": "u9", "feature": "user_profile", "text": "x"}]}, "a user without interactions; .*'u9'"),
        ({"narratives": [{"user_id": "u2", "feature": "purchase_reason", "item_id": "b1", "text": "x"}]}, "are about an interaction that does not exist"),
    ],
)  # fmt: skip
def test_bad_rows_are_errors_or_left_out(write, rows, message):
    with pytest.raises(DataError, match=message) as caught:
        write(**rows).read()
    if "0 interactions" not in message:
        assert "source.on_bad_row=skip" in str(caught.value)
        tables, counts = write(**rows, on_bad_row="skip").read()
        assert sum(count for name, count in counts.items() if ".dropped." in name) >= 1
        assert len(tables.items) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"items": [*ITEMS, '{"item_id": "b4", "tit']}, r"items.jsonl:4: not JSON"),
        ({"items": [*ITEMS, "[1]"]}, r"items.jsonl:4: expected a JSON object"),
        ({"items": [{"title": "x"}]}, r"items.jsonl:1: no key 'item_id'; it has 'title'"),
        ({"items": [{"item_id": "b1", "price": "cheap"}]}, r"items.jsonl:1: price='cheap' is not a number"),
        ({"items": [*ITEMS, '{"item_id": "b4", "price": 1%s}' % ("0" * 5000)]}, r"items.jsonl:4: not JSON \(.* 5001 digits"),
        ({"items": [*ITEMS, "[" * 100_000]}, r"items.jsonl:4: not JSON \(maximum recursion depth"),
    ],
)  # fmt: skip
def test_lines_that_cannot_be_read(write, rows, message):
    with pytest.raises(DataError, match=message):
        write(**rows).read()


def test_half_a_character_and_too_many_digits_are_named(write):
    with pytest.raises(DataError, match=r"items.jsonl:1: title='Pen .ud800' holds half of a character"):
        write(items=[{"item_id": "b1", "title": "Pen \ud800"}]).read()
    with pytest.raises(DataError, match=r"items.jsonl:1: price is a number of too many digits"):
        write(items=[{"item_id": "b1", "price": 10**400}]).read()
    with pytest.raises(DataError, match=r"items.jsonl:1: category='Ink . Pen .ud800' holds half of a character"):
        write(items=[{"item_id": "b1", "category": ["Ink", "Pen \ud800"]}]).read()


def test_half_a_character_in_a_list_is_named(tmp_path):
    (tmp_path / "sequences.json").write_text('{"user": "u1", "bought": ["a"]}\n{"user": "u2", "bought": ["b\\ud800"]}')
    schema = pl.Schema({"user": pl.String(), "bought": pl.List(pl.String())})
    with pytest.raises(DataError, match=r"sequences.json:2: bought='b.ud800' holds half of a character"):
        read_jsonl(tmp_path / "sequences.json", required=schema.names(), schema=schema)


@pytest.mark.parametrize(
    ("time", "unit"),
    [
        (1519948800, None),
        (1519948800.9, None),
        ("1519948800", None),
        ("2018-03-02", None),
        ("20180302", None),
        ("2018-03-02T01:00:00+01:00", None),
        (1519948800_000, "milliseconds"),
        (1519948800_000_000.0, "microseconds"),
        ("1519948800000000000", "nanoseconds"),
    ],
)
def test_times_are_read_as_people_write_them(write, time, unit):
    tables, counts = write(interactions=[{"user_id": "u1", "item_id": "b1", "timestamp": time}], narratives=[]).read()
    assert tables.interactions["timestamp"].to_list() == [1519948800]
    noted = {name: count for name, count in counts.items() if "times_in" in name}
    assert noted == ({f"interactions.times_in_{unit}": 1} if unit else {})


def test_a_number_is_a_time_however_small(write):
    tables, _ = write(interactions=[{"user_id": "u1", "item_id": "b1", "timestamp": 2018}], narratives=[]).read()
    assert tables.interactions["timestamp"].to_list() == [2018]


def test_what_is_noted_of_rows_is_noted_of_those_that_are_kept(write):
    noted = {"timestamp": 1519948800_000, "rating": 0}
    rows = [{"user_id": "u1", "item_id": item, **noted} for item in ("b1", "nowhere")]
    _, counts = write(interactions=rows, narratives=[], on_bad_row="skip").read()
    assert (counts["interactions.times_in_milliseconds"], counts["interactions.rating_of_zero"]) == (1, 1)


def test_a_rating_of_zero_is_none_and_other_scales_are_brought_to_five(write):
    rows = [{"user_id": f"u{rating}", "item_id": "b1", "rating": rating} for rating in (0, 1, 10)]
    tables, counts = write(interactions=rows, narratives=[], max_rating=10).read()
    assert dict(tables.interactions.select("user_id", "rating").rows()) == {"u0": None, "u1": 0.5, "u10": 5.0}
    assert counts["interactions.rating_of_zero"] == 1


def test_a_category_may_be_a_list_and_a_file_may_begin_with_a_byte_order_mark(write, tmp_path):
    source = write(items=[{"item_id": "b1", "category": ["Office", "Pens "]}, {"item_id": "b2", "category": "Ink"}])
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    tables, _ = source.read()
    assert tables.items["category"].to_list() == ["Office > Pens", "Ink"]


def test_a_missing_file_names_the_setting(write, tmp_path):
    source = write()
    (tmp_path / "narratives.jsonl").unlink()
    with pytest.raises(DataError, match=r"narratives.jsonl: no such file, .*Set source.folder"):
        source.read()


def test_a_truncated_file_is_named(write, tmp_path):
    source = write(items=[{"item_id": f"b{i}", "title": str(i)} for i in range(5000)])
    path = tmp_path / "items.jsonl"
    path.with_name("items.jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-2000])
    path.unlink()
    with pytest.raises(DataError, match=r"items.jsonl.gz: damaged or cut off after line"):
        source.read()


def xrec_folder(tmp_path, edges):
    rows = {
        "users": [{"uid": 1, "user_summary": "Likes sagas."}],
        "items": [{"iid": 5, "title": "Saga &amp; Song", "item_summary": "A long one."}],
        "explanations": [{"uid": 1, "iid": 5, "explanation": "Because it is long."}],
    }
    for name, content in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "interactions.csv").write_text("user,item,split\n" + "".join(f"{u},{i},trn\n" for u, i in edges))
    return XRecSource(folder=str(tmp_path))


def test_xrec_layout(tmp_path):
    tables, counts = xrec_folder(tmp_path, [(1, 7), (2, 7)]).read()
    assert tables.items.select("item_id", "title").rows() == [("5", "Saga & Song"), ("7", None)]
    assert ("1", "5") in tables.interactions.select("user_id", "item_id").rows()  # the pair counts, edge or not
    assert counts["pairs_added"] == 1
    assert set(tables.narratives.select("feature", "item_id").rows()) == {
        ("brief_user_summary", None),
        ("purchase_reason_explanation", "5"),
    }


def test_xrec_graph_with_a_broken_row(tmp_path):
    source = xrec_folder(tmp_path, [(1, 7)])
    with (tmp_path / "interactions.csv").open("a") as file:
        file.write("3,4\n")
    with pytest.raises(DataError, match=r"interactions.csv:3: 2 fields where the header has 3"):
        source.read()


def test_xrec_graph_may_have_a_byte_order_mark_and_blank_lines(tmp_path):
    source = xrec_folder(tmp_path, [(1, 7)])
    path = tmp_path / "interactions.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\n\n"))
    assert source.read()[1]["interactions.kept"] == 2


def test_xrec_counts_two_explanations_of_a_pair_that_is_no_edge(tmp_path):
    source = xrec_folder(tmp_path, [(1, 7)])
    source.on_bad_row = "skip"
    with (tmp_path / "explanations.jsonl").open("a") as file:
        file.write(json.dumps({"uid": 1, "iid": 5, "explanation": "Another."}) + "\n")
    _, counts = source.read()
    assert (counts["pairs_that_are_edges"], counts["pairs_added"]) == (0, 1)


@pytest.mark.real_data
def test_xrec_release(real_data):
    tables, counts = XRecSource(folder=str(real_data / "xrec_amazon")).read()
    assert counts["interactions.kept"] == 360_839
    assert tables.narratives.group_by("feature").len().sort("feature")["len"].to_list() == [1830, 3000]
    assert tables.items["title"].is_not_null().sum() == 2545
    assert tables.interactions.select(pl.col("user_id", "item_id").n_unique()).row(0)[1] == 15_247
