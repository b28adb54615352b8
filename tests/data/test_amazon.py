"""Amazon Reviews 2018 as scraped: every line is kept or counted, and nothing depends on the order of lines."""

import gzip
import json
import random
from types import SimpleNamespace

import polars as pl
import pytest

from regen.commands.prepare import counts_table
from regen.data import id_ranges, json_lines
from regen.data import prepare as stage
from regen.data.amazon import AmazonSource
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, DataError

DAY = 86_400
TABLES = ("items", "interactions", "narratives")


def review(user, item, day=1, text="Fine", **more):
    known = {
        "overall": 5.0,
        "verified": True,
        "reviewerName": "Ann Secret",
        "style": {"Size:": " L"},
        "summary": "Five",
    }
    return known | {"reviewerID": user, "asin": item, "unixReviewTime": day * DAY, "reviewText": text} | more


def product(item, title="Steel ruler", **more):
    known = {"description": ["30 cm."], "category": ["Office", "Rulers"], "price": "$4.50", "brand": "Ax", "rank": []}
    return known | {"asin": item, "title": title, "also_buy": ["zz"]} | more


def packed(rows):
    return gzip.compress("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode())


@pytest.fixture
def prepare(tmp_path):
    """Writes both files, runs the source on them and reads back what it wrote."""

    def prepared(reviews, metadata, *, pack=True, **options):
        paths = [tmp_path / f"Toys{'.gz' * pack}", tmp_path / f"meta{'.gz' * pack}"]
        for path, rows in zip(paths, (reviews, metadata), strict=True):
            content = rows if isinstance(rows, bytes) else packed(rows)
            path.write_bytes(content if pack else gzip.decompress(content))
        folder = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
        folder.mkdir()
        known = {"folder": None, "max_history": 50, "collapse_copies": True}
        source = AmazonSource(reviews=str(paths[0]), metadata=str(paths[1]), **known | options)
        counts = source.write(folder)
        assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.parquet" for name in TABLES)
        tables = {name: pl.read_parquet(folder / f"{name}.parquet") for name in TABLES}
        return SimpleNamespace(counts=counts, folder=folder, source=source, **tables)

    return prepared


REVIEWS = [
    *(
        review(f"u{user:02}", f"b{(user * 7 + day) % 9}", day, f"Day {day}")
        for user in range(12)
        for day in range(1, 6)
    ),
    review("u03", "b1", 9, "Same"),
    review("u03", "b2", 9, "Same"),
    review("u03", "b2", 9, "Same"),
    review("u04", "b1", 9, None),
    review("u04", "b2", 9, None, summary="Other"),
    review("u05", "scrap", 3),
    review("u05", "nowhere", 3),
    review("u06", "b0", 1, "Day 1", overall=7),
    review("u07", "old", -5, "Before all others"),
    review("u09", "copy", 2, "Day 2"),
    review(None, "b1"),
    review("u08", " "),
    {"reviewerID": "u08"},
    review("u10", "b3", 3, unixReviewTime=None),
    "garbage",
    json.dumps(review("u11", "b1"))[:-20],
]
METADATA = [
    *(product(f"b{item}", f"Ruler &amp; pen {item}", price=f"${item}.00" if item else "") for item in range(9)),
    product("b1", "Another ruler", price="$0.10"),
    product("b1", "<span>scrap</span>"),
    product("b2", None),
    product("scrap", "var aPageStart = (new Date()).getTime();"),
    product("old"),
    product("copy"),
    product("unsold"),
    {"title": "No id"},
    '{"asin": "b3", "title": "Cut of',
]


def adds_up(counts, table):
    dropped = sum(count for name, count in counts.items() if name.startswith(f"{table}.dropped."))
    return counts[f"{table}.read"] == counts[f"{table}.kept"] + dropped


def test_reads_both_files_as_published(prepare):
    done = prepare([review("u1", "b1", 3, "Nice<br>ruler")], [product("b1", "Steel &amp; wood ruler")])
    assert done.items.rows() == [("b1", "Steel & wood ruler", "30 cm.", "Office - Rulers", 4.5, "Ax")]
    assert done.interactions.rows() == [("u1", "b1", 3 * DAY, 5.0, "Five", "Nice ruler")]
    assert done.narratives.is_empty()
    assert [done.items.schema, done.interactions.schema, done.narratives.schema] == [ITEMS, INTERACTIONS, NARRATIVES]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("options", [{}, {"max_history": 2}, {"collapse_copies": False}])
def test_the_order_of_lines_does_not_matter(prepare, seed, options):
    straight = prepare(REVIEWS, METADATA, **options)
    mix = random.Random(seed)
    shuffled = prepare(mix.sample(REVIEWS, len(REVIEWS)), mix.sample(METADATA, len(METADATA)), **options)
    for name in TABLES:
        assert (straight.folder / f"{name}.parquet").read_bytes() == (shuffled.folder / f"{name}.parquet").read_bytes()
    assert straight.counts == shuffled.counts


@pytest.mark.parametrize("range_bytes", [50, 200, 400])
@pytest.mark.parametrize("options", [{}, {"max_history": 2}])
def test_several_ranges_give_the_same_rows_as_one(prepare, monkeypatch, range_bytes, options):
    one = prepare(REVIEWS, METADATA, pack=False, **options)
    monkeypatch.setattr(id_ranges, "RANGE_BYTES", range_bytes)
    for name in ("CHUNK_BYTES", "READ_BYTES"):
        monkeypatch.setattr(json_lines, name, 1000)
    ranges = []
    counted = id_ranges.IdRanges.count.fget
    monkeypatch.setattr(id_ranges.IdRanges, "count", property(lambda self: ranges.append(counted(self)) or ranges[-1]))
    several = prepare(REVIEWS, METADATA, pack=False, **options)
    for name in TABLES:
        assert getattr(one, name).equals(getattr(several, name))
        assert getattr(one, name).schema == getattr(several, name).schema
    assert one.counts == several.counts
    assert min(ranges) > 1, "of users and of items"


def test_a_folder_with_brackets_in_its_name_is_written_and_read(prepare, tmp_path):
    source = prepare(REVIEWS, METADATA).source
    root = tmp_path / "data[1]*"
    made = stage.prepare(source, {}, root=root)
    tables = [stage.load_tables(made.path, texts=texts) for texts in (True, False)]
    assert [len(table.interactions) for table in tables] == [made.manifest["counts"]["interactions"]] * 2


def test_a_file_that_is_sorted_by_user_gives_even_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(id_ranges.IdRanges, "count", 4)
    ranges = id_ranges.IdRanges(tmp_path / "ranges", "user_id")
    for first in range(0, 2000, 50):
        ranges.add(pl.DataFrame({"user_id": [f"u{at // 2:05}" for at in range(first, first + 50)], "row": range(50)}))
    sizes = [len(rows) for rows in ranges]
    assert len(ranges) == 1000
    assert sizes == [500] * 4
    assert list(tmp_path.iterdir()) == []


def test_a_byte_order_mark_costs_no_line(prepare):
    rows = [review("u1", "b1"), review("u1", "b2", 2)]
    for part in (packed(rows), gzip.decompress(packed(rows))):
        marked = b"\xef\xbb\xbf" + (gzip.decompress(part) if part[:2] == b"\x1f\x8b" else part)
        done = prepare(gzip.compress(marked), [product("b1"), product("b2")])
        assert (len(done.interactions), done.counts["interactions.dropped.malformed_line"]) == (2, 0)


def test_files_of_2023_are_told_from_those_of_2018(prepare):
    new = {"rating": 5.0, "title": "Fine", "text": "Fine", "parent_asin": "b1", "asin": "b1", "user_id": "u1"}
    with pytest.raises(DataError, match=r"layout of Amazon Reviews 2023 .*source=amazon2018 .* Set source=amazon2023"):
        prepare([{**new, "timestamp": 1_588_615_855_070}], [product("b1")])


def test_prices_that_cannot_be_read_and_times_that_are_none_are_counted(prepare):
    rows = [
        review("u1", "b1", unixReviewTime=10**20),
        review("u1", "b2", unixReviewTime=DAY * 1000),
        review("u1", "b3"),
    ]
    done = prepare(rows, [product("b1", price="£5.00"), product("b2", price=""), product("b3", price="Price: $5")])
    assert dict(done.items.select("item_id", "price").rows()) == {"b1": None, "b2": None, "b3": 5.0}
    assert (done.counts["items.with_unreadable_price"], done.counts["items.without_price"]) == (1, 2)
    assert (done.counts["interactions.with_bad_time"], done.counts["interactions.without_time"]) == (1, 1)


def test_what_is_noted_of_times_is_noted_of_what_is_kept(prepare):
    bad, thousands = {"unixReviewTime": 10**20}, {"unixReviewTime": DAY * 1_000_000_0}
    rows = [
        review(user, item, **time)
        for user, item in (("u1", "b1"), ("u1", "nowhere"), (None, "b1"))
        for time in (bad, thousands)
    ]
    counts = prepare(rows, [product("b1")]).counts
    assert counts["interactions.kept"] == 2
    assert (counts["interactions.with_bad_time"], counts["interactions.times_in_milliseconds"]) == (1, 1)


def test_the_first_lines_may_hold_no_interaction_at_all(prepare, monkeypatch):
    monkeypatch.setattr(id_ranges, "RANGE_BYTES", 100)
    for name in ("CHUNK_BYTES", "READ_BYTES"):
        monkeypatch.setattr(json_lines, name, 50)
    done = prepare(
        [{"asin": "b1", "overall": 5.0}, review("u1", "b1"), review("u2", "b1")], [product("b1")], pack=False
    )
    assert done.interactions["user_id"].to_list() == ["u1", "u2"]


def test_plain_files_give_the_same_rows(prepare):
    gzipped, plain = prepare(REVIEWS, METADATA), prepare(REVIEWS, METADATA, pack=False)
    for name in TABLES:
        assert getattr(gzipped, name).equals(getattr(plain, name))


@pytest.mark.parametrize("collapse_copies", [True, False])
@pytest.mark.parametrize("max_history", [1, 3, 50])
@pytest.mark.parametrize("table", ["interactions", "items"])
def test_counts_add_up(prepare, collapse_copies, max_history, table):
    done = prepare(REVIEWS, METADATA, collapse_copies=collapse_copies, max_history=max_history)
    assert done.counts[f"{table}.read"] == len(REVIEWS if table == "interactions" else METADATA)
    assert done.counts[f"{table}.kept"] == len(getattr(done, table)) > 0
    assert adds_up(done.counts, table)
    assert set(done.items["item_id"]) == set(done.interactions["item_id"])


def test_every_reason_is_counted(prepare):
    counts = prepare(REVIEWS, METADATA, max_history=5).counts
    assert {name: count for name, count in counts.items() if ".dropped." in name} == {
        "interactions.dropped.malformed_line": 2,
        "interactions.dropped.no_user_id": 1,
        "interactions.dropped.no_item_id": 2,
        "interactions.dropped.item_without_metadata": 1,
        "interactions.dropped.item_without_title": 1,
        "interactions.dropped.repeated": 1,
        "interactions.dropped.copied_review": 2,
        "interactions.dropped.before_the_latest_5": 6,
        "items.dropped.malformed_line": 1,
        "items.dropped.never_reviewed": 2,
        "items.dropped.repeated_id": 3,
        "items.dropped.no_usable_title": 1,
        "items.dropped.no_interaction_left": 2,
        "users.dropped.no_interaction_left": counts["users.read"] - 12,
    }
    noted = [counts[f"interactions.without_{name}"] for name in ("text", "time")]
    assert noted == [2, 0]  # of those that are kept
    assert (counts["interactions.without_rating"], counts["items.without_price"]) == (0, 1)
    assert (counts["items.reviewed_without_metadata"], counts["users.kept"]) == (1, 12)
    assert counts["users.last_purchase_ties"] == 1


def test_names_of_reviewers_are_nowhere(prepare):
    done = prepare(REVIEWS, METADATA)
    for name in TABLES:
        table = getattr(done, name)
        assert not any("secret" in str(row).lower() for row in table.rows())
        assert not any("reviewer" in column.lower() for column in table.columns)
        assert b"Secret" not in (done.folder / f"{name}.parquet").read_bytes()


@pytest.mark.parametrize(
    "title",
    [
        '<span class="a-size-medium">Ruler</span>',
        "var aPageStart = (new Date()).getTime();",
        "<!-- scrap -->",
        "<div>",
        "&nbsp;",
        "  ",
        "",
        None,
    ],
)
def test_an_item_whose_title_is_a_scrap_goes_with_its_interactions(prepare, title):
    rows = [review("u1", "b1"), review("u1", "b2", 2), review("u2", "b2")]
    done = prepare(rows, [product("b1"), product("b2", title)])
    assert done.items["item_id"].to_list() == ["b1"]
    assert done.interactions.select("user_id", "item_id").rows() == [("u1", "b1")]
    assert done.counts["items.dropped.no_usable_title"] == 1
    assert done.counts["interactions.dropped.item_without_title"] == 2


@pytest.mark.parametrize(
    ("field", "raw", "column", "value"),
    [
        ("title", "Ruler &amp; pen&#39;s\n box", "title", "Ruler & pen's box"),
        ("brand", "by\n\n  Ax &amp; Co", "brand", "by Ax & Co"),
        ("brand", '<span class="x">', "brand", None),
        ("description", ["<b>Long</b>", None, "and &quot;steel&quot;"], "description", 'Long and "steel"'),
        ("description", [], "description", None),
        ("description", {"not": "a list"}, "description", None),
        ("category", ["Office", "<br>", "Pens &amp; Ink", "Office"], "category", "Office - Pens & Ink"),
        ("category", None, "category", None),
        ("price", "$1,234.50", "price", 1234.5),
        ("price", "$5.00 - $9.00", "price", 5.0),
        ("price", 7.25, "price", 7.25),
        ("price", ".a-box-inner{background-color:#fff}", "price", None),
        ("price", "", "price", None),
        ("price", "Currently unavailable", "price", None),
    ],
)
def test_fields_of_an_item(prepare, field, raw, column, value):
    done = prepare([review("u1", "b1")], [product("b1", **{field: raw})])
    assert done.items[column].to_list() == [value]
    assert done.counts["items.without_price"] == done.items["price"].null_count()


@pytest.mark.parametrize(
    ("field", "raw", "column", "value"),
    [
        ("reviewText", "Good<br />pen &amp; &#34;ink&#34; [[VIDEOID:x1]]", "review_text", 'Good pen & "ink"'),
        ("reviewText", None, "review_text", None),
        ("reviewText", " ", "review_text", None),
        ("summary", "It&amp;#39;s <b>good</b>", "review_title", "It's good"),
        ("overall", 6, "rating", None),
        ("overall", "5", "rating", None),
        ("unixReviewTime", "yesterday", "timestamp", None),
        ("unixReviewTime", 1.5e9, "timestamp", 1_500_000_000),
        ("reviewerID", " u1 ", "user_id", "u1"),
        ("asin", "b1 ", "item_id", "b1"),
    ],
)
def test_fields_of_a_review(prepare, field, raw, column, value):
    done = prepare([review("u1", "b1", **{field: raw})], [product("b1")])
    assert done.interactions[column].to_list() == [value]


@pytest.mark.parametrize(
    ("rows", "title", "price"),
    [
        ([product("b1", "B", price="$2"), product("b1", "A", price="$9")], "A", 9.0),
        ([product("b1", "A", price=""), product("b1", "A", price="$3")], "A", 3.0),
        ([product("b1", None, price="$1"), product("b1", "Z", price="$9")], "Z", 9.0),
        (
            [product("b1", "<div>", price="$1"), product("b1", "Z", price="$9"), product("b1 ", "Z", price="$9")],
            "Z",
            9.0,
        ),
    ],
)
def test_of_repeated_metadata_one_row_is_kept_whatever_comes_first(prepare, rows, title, price):
    for order in (rows, rows[::-1]):
        done = prepare([review("u1", "b1")], order)
        assert done.items.select("title", "price").rows() == [(title, price)]
        assert done.counts["items.dropped.repeated_id"] == len(rows) - 1


@pytest.mark.parametrize(
    "bad",
    ["garbage", json.dumps(review("u2", "b1"))[:60], '{"reviewerID": "u2"} {"asin": "b1"}', "[[[", "{'asin': 'b1'}"],
)
def test_malformed_lines_are_counted_and_the_rest_is_kept(prepare, bad):
    rows = [review("u1", "b1"), bad, review("u3", "b1")]
    done = prepare(rows, [bad, product("b1"), bad])
    assert done.interactions["user_id"].to_list() == ["u1", "u3"]
    assert done.counts["interactions.dropped.malformed_line"] == 1
    assert done.counts["items.dropped.malformed_line"] == 2
    assert adds_up(done.counts, "interactions")
    assert adds_up(done.counts, "items")


def test_bytes_that_are_not_text_are_a_malformed_line(prepare):
    lines = [json.dumps(review(user, "b1")).encode() for user in ("u1", "u2", "u3")]
    done = prepare(
        gzip.compress(b"\n".join([lines[0], lines[1].replace(b"Fine", b"Caf\xe9"), lines[2]])), [product("b1")]
    )
    assert done.interactions["user_id"].to_list() == ["u1", "u3"]
    assert done.counts["interactions.dropped.malformed_line"] == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: content[: len(content) // 2], "cut off after"),
        (lambda content: content[:-3], "cut off after"),
        (lambda content: content[:200] + b"\xff" * 50 + content[250:], "damaged after"),
    ],
    ids=["half", "end", "corrupted"],
)
@pytest.mark.parametrize("which", ["Toys", "meta"])
def test_a_damaged_file_is_named(prepare, which, damage, says):
    files = {"Toys": packed(REVIEWS), "meta": packed(METADATA)}
    files[which] = damage(files[which])
    with pytest.raises(DataError, match=rf"{which}\.gz: {says}"):
        prepare(files["Toys"], files["meta"])


@pytest.mark.parametrize("reviews", [[review("u1", "b1"), review("u2", "b2")], []])
def test_metadata_of_another_vertical_are_an_error(prepare, reviews):
    with pytest.raises(
        DataError, match=rf"Toys\.gz: 0 interactions are left of {len(reviews)} reviews.*meta\.gz is the"
    ):
        prepare(reviews, [product("c1"), product("c2")])


def test_a_missing_file_names_its_setting(tmp_path):
    (tmp_path / "r.json").write_text("")
    options = {"folder": None, "max_history": 50, "collapse_copies": True}
    source = AmazonSource(reviews=str(tmp_path / "r.json"), metadata=str(tmp_path / "m.json"), **options)
    with pytest.raises(DataError, match=r"source\.metadata=.*m\.json: no such file"):
        source.files()


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([review("u1", "b2"), review("u1", "b1"), review("u1", "b3")], ["b1"]),
        ([review("u1", "b1"), review("u1", "b2", unixReviewTime=DAY + 3600)], ["b1"]),
        ([review("u1", "b1"), review("u1", "b2", 2)], ["b1", "b2"]),
        ([review("u1", "b1"), review("u1", "b2", text="Other")], ["b1", "b2"]),
        ([review("u1", "b1"), review("u2", "b2")], ["b1", "b2"]),
        ([review("u1", "b1", text=None), review("u1", "b2", text=None)], ["b1"]),
        ([review("u1", "b1", text=None, summary=None), review("u1", "b2", text=" ", summary="")], ["b1", "b2"]),
        ([review("u1", "b1", overall=1.0), review("u1", "b2")], ["b1", "b2"]),
        ([review("u1", "b1", summary="Good pizza"), review("u1", "b2", summary="Bad tacos")], ["b1", "b2"]),
        ([review("u1", "b1", unixReviewTime=None), review("u1", "b2", unixReviewTime=None)], ["b1", "b2"]),
    ],
)
def test_a_review_copied_over_variants_counts_once(prepare, rows, kept):
    metadata = [product(item) for item in ("b1", "b2", "b3")]
    done = prepare(rows, metadata)
    assert done.interactions["item_id"].to_list() == kept
    assert done.counts["interactions.dropped.copied_review"] == len(rows) - len(kept)
    assert len(prepare(rows, metadata, collapse_copies=False).interactions) == len(rows)


@pytest.mark.parametrize("collapse_copies", [True, False])
@pytest.mark.parametrize("text", ["Fine", None])
def test_an_exactly_repeated_row_counts_once(prepare, collapse_copies, text):
    rows = [review("u1", "b1", text=text)] * 3
    done = prepare(rows, [product("b1")], collapse_copies=collapse_copies)
    assert len(done.interactions) == 1
    assert done.counts["interactions.dropped.repeated"] == 2


def test_the_latest_interactions_stay(prepare):
    rows = [review("u1", f"b{day}", day, str(day)) for day in (3, 1, 4, 2)]
    rows += [review("u1", "b0", unixReviewTime=None), review("u2", "b1", 1)]
    done = prepare(rows, [product(f"b{item}") for item in range(5)], max_history=2)
    assert done.interactions.select("user_id", "item_id").rows() == [("u1", "b3"), ("u1", "b4"), ("u2", "b1")]
    assert done.counts["interactions.dropped.before_the_latest_2"] == 3
    assert done.items["item_id"].to_list() == ["b1", "b3", "b4"]


def test_a_review_that_was_collapsed_does_not_fill_the_history(prepare):
    rows = [review("u1", "b1", 1, "a"), review("u1", "b2", 2, "b"), review("u1", "b3", 2, "b")]
    done = prepare(rows, [product(item) for item in ("b1", "b2", "b3")], max_history=2)
    assert done.interactions["item_id"].to_list() == ["b1", "b2"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_ties_in_time_go_by_content(prepare, order):
    rows = [review("u1", "b2", text="x"), review("u1", "b1", text="y"), review("u1", "b1", text="x")]
    done = prepare([rows[at] for at in order], [product("b1"), product("b2")], max_history=2)
    assert done.interactions.select("item_id", "review_text").rows() == [("b1", "x"), ("b1", "y")]
    assert done.counts["users.last_purchase_ties"] == 1


def test_a_history_holds_at_least_one_interaction():
    with pytest.raises(ValueError, match=r"source\.max_history=0 has to be at least 1"):
        AmazonSource(reviews="r", metadata="m", folder=None, max_history=0, collapse_copies=True)


def test_the_config_finds_a_verticals_files_in_the_folder(small_config, tmp_path):
    names = ["Luxury_Beauty_5.json.gz", "meta_Luxury_Beauty.json.gz"]
    for name in names:
        (tmp_path / name).touch()
    chosen = ["source=amazon2018", "vertical=luxury_beauty", f"source.folder={tmp_path}"]
    source = small_config(*chosen, without="source.").source.build()
    assert list(source.files().values()) == [tmp_path / name for name in names]
    assert (source.max_history, source.collapse_copies) == (50, True)


def test_counts_read_as_a_table():
    counts = {"items.read": 1200, "items.dropped.no_title": 1000, "items.dropped.never": 0, "items.without_price": 7}
    counts |= {"users": 3, "users.ties": 0, "items.kept": 199, "narratives": 0, "items": 199}
    assert [line.split() for line in counts_table(counts).splitlines()] == [
        ["items", "read", "1,200"],
        ["dropped:", "no", "title", "-1,000"],
        ["kept", "199"],
        ["noted:", "without", "price", "7"],
        ["users", "read", "3"],
        ["kept", "3"],
        ["narratives", "read", "0"],
        ["kept", "0"],
    ]


def test_a_table_without_a_kept_count_keeps_what_was_not_dropped():
    lines = counts_table({"users.read": 10, "users.dropped.malformed_line": 4}).splitlines()
    assert [line.split()[-1] for line in lines] == ["10", "-4", "6"]
    assert len({len(line) for line in lines}) == 1


def test_the_table_of_a_vertical_adds_up(prepare):
    lines = counts_table(prepare(REVIEWS, METADATA, max_history=3).counts).splitlines()
    for table in ("interactions", "items"):
        begin = next(at for at, line in enumerate(lines) if line.startswith(table))
        numbers = [int(lines[begin].split()[-1].replace(",", ""))]
        for line in lines[begin + 1 :]:
            numbers.append(int(line.split()[-1].replace(",", "")))
            if line.split()[0] == "kept":
                break
        assert sum(numbers[:-1]) == numbers[-1] > 0


@pytest.mark.real_data
def test_gift_cards(real_data, tmp_path):
    folder = real_data / "amazon2018"
    files = {"reviews": folder / "Gift_Cards_5.json.gz", "metadata": folder / "meta_Gift_Cards.json.gz"}
    options = {"folder": None, "max_history": 50, "collapse_copies": True}
    counts = AmazonSource(**{name: str(path) for name, path in files.items()}, **options).write(tmp_path)
    assert counts["interactions.read"] == 2972
    assert counts["interactions.dropped.copied_review"] == 758
    assert (counts["interactions.kept"], counts["users.kept"], counts["items.kept"]) == (2214, 458, 148)
    assert adds_up(counts, "interactions")
    assert adds_up(counts, "items")
    rows = pl.read_parquet(tmp_path / "interactions.parquet")
    assert (len(rows), rows["user_id"].n_unique(), rows["item_id"].n_unique()) == (2214, 458, 148)
    assert pl.read_parquet(tmp_path / "items.parquet")["title"].null_count() == 0
