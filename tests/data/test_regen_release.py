"""The published REGEN data: read by a mapping of names, and a wrong mapping says which names there are."""

import copy
import gzip
import json
import random

import polars as pl
import pytest
from omegaconf import OmegaConf

from regen.config.schema import CONF
from regen.data.histories import build_examples
from regen.data.prepare import load_tables, prepare
from regen.data.regen_release import ReleaseSource
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, DataError
from regen.narratives.histories import user_histories

FIELDS = OmegaConf.to_container(OmegaConf.load(CONF / "source" / "regen_release.yaml").fields)


def bought(item, time, **more):
    title = more.pop("title", f"Ruler {item}")
    price = more.pop("price", 4.5)
    review = {"rating": 5, "text": f"About {item}", "unix_time": time} | more
    return {"item": {"asin": item, "title": title, "category": "Office - Rulers", "price": price}, "review": review}


USERS = [
    {
        "reviewer_id": "u1",
        "purchase_history": [bought("b1", 100), bought("b2", 200), bought("b2", 200), bought("b1", 300)],
        "user": {"long_summary": "Measures twice."},
        "purchase": {"reason": "Needed one more.", "endorsement": "Straight."},
    },
    {
        "reviewer_id": "u2",
        "purchase_history": [bought("b3", 50, rating=3.5), bought("b1", None, text=None)],
        "user": {"long_summary": None},
        "purchase": {"reason": "A gift.", "endorsement": " "},
    },
]


@pytest.fixture
def source(tmp_path):
    """Writes users, or lines as they are, and gives the source; `fields` change the published mapping."""

    def made(users=USERS, *, fields=None, narratives=None, name="office.jsonl", on_bad_row="error"):
        lines = [user if isinstance(user, bytes) else json.dumps(user).encode() for user in users]
        content = b"\n".join(lines) + b"\n"
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        mapping = FIELDS | (fields or {}) | {"narratives": FIELDS["narratives"] | (narratives or {})}
        return ReleaseSource(path=str(tmp_path / name), fields=mapping, on_bad_row=on_bad_row)

    return made


def test_reads_the_published_layout(source):
    tables, counts = source().read()
    category = "Office - Rulers"
    assert tables.items.rows() == [(item, f"Ruler {item}", None, category, 4.5, None) for item in ("b1", "b2", "b3")]
    assert tables.interactions.rows() == [
        ("u1", "b1", 100, 5.0, None, "About b1"),
        ("u1", "b2", 200, 5.0, None, "About b2"),
        ("u1", "b1", 300, 5.0, None, "About b1"),
        ("u2", "b1", None, 5.0, None, None),
        ("u2", "b3", 50, 3.5, None, "About b3"),
    ]
    assert tables.narratives.rows() == [("u1", "long_user_summary", None, None, "Measures twice.")]
    assert [tables.items.schema, tables.interactions.schema, tables.narratives.schema] == [
        ITEMS,
        INTERACTIONS,
        NARRATIVES,
    ]
    assert counts["users.read"] == 2
    assert (counts["interactions.read"], counts["interactions.dropped.repeated"], counts["interactions.kept"]) == (
        6,
        1,
        5,
    )


def test_the_config_reads_it(small_config, source):
    expected, _ = source().read()
    path = source().files()["release"]
    cfg = small_config("source=regen_release", f"source.path={path}", without="source.")
    tables, _ = cfg.source.build().read()
    assert tables.interactions.equals(expected.interactions)
    assert tables.narratives.equals(expected.narratives)


def test_narratives_about_one_item_speak_of_the_last_purchase(source):
    narratives = {
        "purchase_reason": "purchase.reason",
        "product_endorsement": "purchase.endorsement",
        "user_profile": "purchase.reason",
    }
    tables, _ = source(USERS[:1], narratives=narratives).read()
    assert set(tables.narratives.rows()) == {
        ("u1", "purchase_reason", "b1", 300, "Needed one more."),
        ("u1", "product_endorsement", "b1", 300, "Straight."),
        ("u1", "user_profile", None, None, "Needed one more."),
        ("u1", "long_user_summary", None, None, "Measures twice."),
    }


def test_the_last_purchase_is_the_last_of_the_list_even_without_a_time(source):
    tables, _ = source(narratives={"purchase_reason": "purchase.reason", "long_user_summary": None}).read()
    assert tables.narratives.select("user_id", "item_id", "timestamp").rows() == [("u1", "b1", 300), ("u2", "b1", None)]


def test_a_blank_narrative_is_a_bad_row(source):
    narratives = {"product_endorsement": "purchase.endorsement"}
    with pytest.raises(DataError, match=r"office\.jsonl: 1 of 3 narratives have no 'text'; the first is line 2"):
        source(narratives=narratives).read()
    tables, counts = source(narratives=narratives, on_bad_row="skip").read()
    assert len(tables.narratives) == 2
    assert counts["narratives.dropped.no_text"] == 1


@pytest.mark.parametrize("name", ["office.jsonl.gz", "office.json"])
@pytest.mark.parametrize("seed", range(3))
def test_order_of_lines_and_compression_do_not_matter(source, name, seed):
    users = [copy.deepcopy(USERS[at % 2]) | {"reviewer_id": f"u{at}"} for at in range(4)]
    users[1]["purchase_history"][0]["item"]["title"] = "Another title"
    straight, counts = source(users).read()
    turned, turned_counts = source(random.Random(seed).sample(users, len(users)), name=name).read()
    for table in ("items", "interactions", "narratives"):
        assert getattr(straight, table).equals(getattr(turned, table))
    assert counts == turned_counts
    assert counts["items.with_several_descriptions"] == 1


@pytest.mark.parametrize("write", ["items", "interactions", "narratives"])
def test_writes_the_three_tables(source, tmp_path, write):
    (tmp_path / "out").mkdir()
    counts = source().write(tmp_path / "out")
    tables, _ = source().read()
    assert pl.read_parquet(tmp_path / "out" / f"{write}.parquet").equals(getattr(tables, write))
    assert counts[f"{write}.kept"] == len(getattr(tables, write))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"user_id": "reviewer"}, r"source\.fields\.user_id=reviewer: the first 1,000 lines of .*office\.jsonl have no such name\. Did you mean 'reviewer_id'\? Known: reviewer_id, purchase_history\[\]\.item\.asin"),
        ({"title": "item.titel"}, r"source\.fields\.title=item\.titel: .*no such name below purchase_history\. Did you mean 'item\.title'\? Known: item\.asin, item\.title, item\.category, item\.price, review\.rating"),
        ({"brand": "item.maker"}, r"source\.fields\.brand=item\.maker: .*below purchase_history"),
        ({"price": "item"}, r"source\.fields\.price=item: .*or to null if the file has no such value"),
        ({"history": "purchases"}, r"source\.fields\.item_id=item\.asin: .*no such name.*Known: reviewer_id, purchase_history"),
    ],
)  # fmt: skip
def test_a_wrong_mapping_lists_the_names_found(source, fields, message):
    with pytest.raises(DataError, match=message):
        source(fields=fields).read()


def test_a_wrong_mapping_of_a_narrative_lists_the_names_found(source):
    message = r"source\.fields\.narratives\.user_profile=user\.profile: .*Known: reviewer_id, .*user\.long_summary"
    with pytest.raises(DataError, match=message):
        source(narratives={"user_profile": "user.profile"}).read()


def test_a_name_that_only_some_lines_have_is_found(source):
    users = [USERS[0], {**USERS[1], "extra": {"profile": "Gives gifts"}}]
    tables, _ = source(users, narratives={"user_profile": "extra.profile", "long_user_summary": None}).read()
    assert tables.narratives.select("user_id", "text").rows() == [("u2", "Gives gifts")]


OPTIONAL = ("category", "price", "timestamp", "rating", "review_text")


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_leaves_a_value_out(source, name):
    tables, _ = source(fields={name: None}).read()
    table = tables.items if name in ITEMS else tables.interactions
    assert table[name].is_null().all()
    assert table.schema[name] == (ITEMS | INTERACTIONS)[name]
    assert not table.select("item_id").is_empty()


def test_a_file_may_have_nothing_but_users_items_and_titles(source):
    users = [{"who": 7, "list": [{"id": "b1", "called": "Ruler"}, {"id": "b2", "called": "Pen"}]}]
    fields = {"user_id": "who", "history": "list", "item_id": "id", "title": "called"} | dict.fromkeys(OPTIONAL)
    tables, counts = source(users, fields=fields, narratives={"long_user_summary": None}).read()
    assert tables.items.select("item_id", "title").rows() == [("b1", "Ruler"), ("b2", "Pen")]
    assert tables.interactions.select("user_id", "item_id", "timestamp").rows() == [
        ("7", "b1", None),
        ("7", "b2", None),
    ]
    assert tables.narratives.schema == NARRATIVES
    assert counts["narratives.kept"] == 0


@pytest.mark.parametrize("name", ["user_id", "history", "item_id", "title"])
def test_names_that_cannot_be_null(source, name):
    with pytest.raises(ValueError, match=rf"source\.fields\.{name} cannot be null"):
        source(fields={name: None})


def test_an_unknown_feature_is_an_error(source):
    with pytest.raises(ValueError, match=r"narratives\.user_profil: no such feature\. Did you mean 'user_profile'\?"):
        source(narratives={"user_profil": "user.long_summary"})


@pytest.mark.parametrize("bad", [b"garbage", json.dumps(USERS[1]).encode()[:-9], b'{"reviewer_id": "caf\xe9"}'])
def test_malformed_lines_are_errors_or_left_out(source, bad):
    users = [USERS[0], bad, USERS[1]]
    with pytest.raises(
        DataError, match=r"office\.jsonl: 1 of 3 lines are not JSON objects\. Set source\.on_bad_row=skip"
    ):
        source(users).read()
    tables, counts = source(users, on_bad_row="skip").read()
    assert tables.interactions["user_id"].unique().sort().to_list() == ["u1", "u2"]
    assert (counts["users.read"], counts["users.dropped.malformed_line"]) == (3, 1)


@pytest.mark.parametrize(
    ("change", "message", "reason"),
    [
        ({"reviewer_id": None}, r"have no 'user_id'; the first is line 2", "interactions.dropped.no_user_id"),
        ({"purchase_history": [bought(None, 5), bought("b3", 6)]}, r"1 of 5 interactions have no 'item_id'; the first is line 2", "interactions.dropped.no_item_id"),
        ({"reviewer_id": "u1", "purchase_history": USERS[0]["purchase_history"][:1]}, r"repeat another one in every column; the first is line 2", "interactions.dropped.repeated"),
        ({"purchase_history": [], "user": {"long_summary": "Buys nothing"}}, r"have a user without interactions; the first is line 2\. It is user 'u2'", "narratives.dropped.unknown_user"),
    ],
)  # fmt: skip
def test_bad_rows_are_errors_or_left_out(source, change, message, reason):
    users = [USERS[0], USERS[1] | change]
    with pytest.raises(DataError, match=message) as caught:
        source(users).read()
    assert "source.on_bad_row=skip" in str(caught.value)
    tables, counts = source(users, on_bad_row="skip").read()
    assert counts[reason] >= 1
    assert "u1" in tables.interactions["user_id"]


@pytest.mark.parametrize(
    ("price", "read"),
    [(17.75, 17.75), (3, 3.0), ("$5.00 - $9.00", 5.0), ("$1,200", 1200.0), ("n/a", None), (None, None)],
)
def test_prices(source, price, read):
    users = [{**USERS[0], "purchase_history": [bought("b1", 1, price=price)]}]
    tables, _ = source(users).read()
    assert tables.items["price"].to_list() == [read]


@pytest.mark.parametrize("table", ["interactions", "items", "narratives"])
def test_counts_add_up(source, table):
    users = [*USERS, b"garbage", USERS[0] | {"reviewer_id": None}, USERS[0]]
    tables, counts = source(users, on_bad_row="skip").read()
    dropped = sum(count for name, count in counts.items() if name.startswith(f"{table}.dropped."))
    assert counts[f"{table}.read"] == counts[f"{table}.kept"] + dropped
    assert counts[f"{table}.kept"] == len(getattr(tables, table)) > 0


def test_a_missing_file_says_where_to_get_it(tmp_path):
    source = ReleaseSource(path=str(tmp_path / "office.jsonl"), fields=FIELDS)
    with pytest.raises(
        DataError, match=r"office\.jsonl: no such file\. Download the release from Kaggle .*source\.path"
    ):
        source.files()


@pytest.mark.parametrize("users", [[], [b""], [b"garbage"]])
def test_a_file_without_users_is_an_error(source, users):
    with pytest.raises(DataError, match=r"office\.jsonl have no such name"):
        source(users).read()


@pytest.mark.parametrize("shown", [2000, 2])
def test_a_file_that_was_cut_off_is_named(source, shown):
    users = [USERS[0] | {"reviewer_id": f"u{user}"} for user in range(shown)]
    made = source(users, name="office.jsonl.gz")
    made.path.write_bytes(made.path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"office\.jsonl\.gz: cut off after"):
        made.read()


@pytest.mark.real_data
def test_one_user_of_office(real_data):
    tables, counts = ReleaseSource(
        path=str(real_data / "regen_release" / "office_one_user.jsonl"), fields=FIELDS
    ).read()
    assert (len(tables.items), len(tables.interactions), len(tables.narratives)) == (9, 9, 1)
    assert counts["interactions.dropped.repeated"] == 1
    assert tables.narratives["feature"].to_list() == ["long_user_summary"]
    assert tables.items["price"].null_count() == 0


@pytest.mark.parametrize("time", ["1400000000", "2014-05-13T16:53:20Z", 1_400_000_000, 1_400_000_000_000])
def test_times_and_ratings_may_be_texts(source, time):
    history = [bought("b2", "1500000000", rating="4.0"), bought("b1", time, rating="2.5")]
    tables, _ = source([{**USERS[0], "purchase_history": history}]).read()
    assert tables.interactions.select("item_id", "timestamp", "rating").rows() == [
        ("b1", 1_400_000_000, 2.5),
        ("b2", 1_500_000_000, 4.0),
    ]


@pytest.mark.parametrize("wrong", [{"time": "soon"}, {"time": 1, "rating": "good"}])
def test_a_text_that_is_no_time_or_rating_is_an_error_or_counted(source, wrong):
    users = [{**USERS[0], "purchase_history": [bought("b1", 100), bought("b2", wrong.pop("time"), **wrong)]}]
    with pytest.raises(
        DataError, match=r"1 of 2 interactions have a (timestamp|rating) that is not a .*It is '(soon|good)'"
    ):
        source(users).read()
    _, counts = source(users, on_bad_row="skip").read()
    assert counts["interactions.kept"] == 1


def test_without_times_and_among_equal_ones_the_order_of_the_list_is_kept(source):
    users = [
        {**USERS[0], "purchase_history": [bought(item, None) for item in "cba"]},
        {**USERS[1], "purchase_history": [bought(item, 100) for item in "bca"]},
    ]
    made = source(users)
    tables, _ = made.read()
    assert tables.interactions["item_id"].to_list() == [*"cba", *"bca"]
    [example] = build_examples(tables, withhold={"long_user_summary": False}, max_history=2)
    assert tables.interactions["item_id"].gather(example.rows).to_list() == ["b", "a"]


def test_the_order_of_the_list_is_in_the_prepared_tables(source, tmp_path):
    made = source([{**USERS[0], "purchase_history": [bought(item, None) for item in "cba"]}])
    folder = prepare(made, {}, root=tmp_path / "data").path
    tables = load_tables(folder)
    assert tables.interactions["item_id"].to_list() == [*"cba"]
    [history] = user_histories(tables, max_history=2)
    assert [purchase.item_id for purchase in history.purchases] == ["b", "a"]
