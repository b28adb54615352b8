"""Counts of every source add up: what was read was kept, or dropped for a reason, in files damaged at random."""

import json
import random

import pytest
from omegaconf import OmegaConf

from regen.commands.prepare import counts_table
from regen.config.schema import CONF
from regen.data.amazon import AmazonSource
from regen.data.amazon2023 import Amazon2023Source
from regen.data.item_sequences import ItemSequencesSource
from regen.data.jsonl import JsonlSource
from regen.data.regen_release import ReleaseSource
from regen.data.xrec import XRecSource

BAD_TIMES = ["2018", "1_000", "soon", 10**20, -(10**30), 5_000_000_000]
BAD_RATINGS = [-5, -0.5, 100]


def lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def damaged(rows, chance, *, cut=False, **bad):
    """The rows, a third of them spoiled: a bad value in a column, a row twice, or, where that can be read, a cut line."""
    spoiled = []
    for row in rows:
        kind = chance.random()
        if kind < 0.2:
            name = chance.choice(list(bad))
            spoiled.append({**row, name: chance.choice(bad[name])})
        elif kind < 0.27:
            spoiled += [row, row]
        elif kind < 0.33 and cut:
            spoiled.append(json.dumps(row)[:-9])
        else:
            spoiled.append(row)
    return spoiled


def purchases(chance):
    """User, item, day and text of 200 purchases."""
    return [(f"u{chance.randrange(30)}", f"b{chance.randrange(20)}", at % 90, f"Text {at}") for at in range(200)]


def jsonl(folder, chance):
    items = [{"item_id": f"b{at}", "title": f"Thing {at}"} for at in range(20)]
    bought = [
        {"user_id": user, "item_id": item, "timestamp": day * 86_400, "rating": 5, "review_text": text}
        for user, item, day, text in purchases(chance)
    ]
    told = [{"user_id": f"u{at}", "feature": "user_profile", "text": f"Is {at}"} for at in range(30)]
    spoiled = damaged(bought, chance, timestamp=BAD_TIMES, rating=BAD_RATINGS, item_id=["zz", None], user_id=["", " "])
    lines(folder / "items.jsonl", damaged(items, chance, item_id=["", "b1"], title=[None]))
    lines(folder / "interactions.jsonl", spoiled)
    lines(folder / "narratives.jsonl", damaged(told, chance, feature=["mood", None], user_id=["u99"], text=[" "]))
    return JsonlSource(folder=str(folder), on_bad_row="skip")


def regen_release(folder, chance):
    fields = OmegaConf.to_container(OmegaConf.load(CONF / "source" / "regen_release.yaml").fields)
    bought = [
        {
            "item": {"asin": item, "title": f"Thing {item}", "category": "Office", "price": "$5"},
            "review": {"rating": "5.0", "text": text, "unix_time": str(1_400_000_000 + 86_400 * day)},
        }
        for _, item, day, text in purchases(chance)
    ]
    for one in bought:
        if chance.random() < 0.2:
            one["review"]["unix_time"] = str(chance.choice(BAD_TIMES))
        elif chance.random() < 0.2:
            one["review"]["rating"] = str(chance.choice([*BAD_RATINGS, "good"]))
        elif chance.random() < 0.1:
            one["item"]["asin"] = None
    users = [
        {"reviewer_id": f"u{at}", "purchase_history": bought[at * 6 : at * 6 + 6], "user": {"long_summary": f"Is {at}"}}
        for at in range(30)
    ]
    path = lines(folder / "office.jsonl", damaged(users, chance, cut=True, reviewer_id=["u1", None]))
    return ReleaseSource(path=str(path), fields=fields, on_bad_row="skip")


def xrec(folder, chance):
    lines(folder / "users.jsonl", damaged([{"uid": at, "user_summary": "Likes"} for at in range(30)], chance, uid=[99]))
    books = [{"iid": at, "title": f"Book {at}", "item_summary": "Long"} for at in range(20)]
    lines(folder / "items.jsonl", damaged(books, chance, iid=[1], title=[None]))
    pairs = [{"uid": at, "iid": at % 20, "explanation": "Because"} for at in range(30)]
    lines(folder / "explanations.jsonl", damaged(pairs, chance, explanation=[" "], iid=[3]))
    edges = "".join(f"{user[1:]},{item[1:]},trn\n" for user, item, *_ in purchases(chance))
    (folder / "interactions.csv").write_text(f"user,item,split\n{edges}\n")
    return XRecSource(folder=str(folder), on_bad_row="skip")


def sequences(folder, chance):
    items = [{"asin": f"b{at}", "title": f"Thing {at}"} for at in range(20)]
    users = [
        {"reviewerID": f"u{at}", "asin_sequence": [f"b{chance.randrange(20)}" for _ in range(8)]} for at in range(30)
    ]
    lines(folder / "meta.json", damaged(items, chance, asin=["", "b1"], title=[None]))
    lines(
        folder / "sequences.json",
        damaged(users, chance, reviewerID=["", None], asin_sequence=[["zz", "b1"], [" "], []]),
    )
    return ItemSequencesSource(folder=str(folder), metadata="meta.json", sequences="sequences.json", on_bad_row="skip")


def amazon2018(folder, chance):
    reviews = [
        {"reviewerID": user, "asin": item, "unixReviewTime": day * 86_400, "overall": 5.0, "reviewText": text}
        for user, item, day, text in purchases(chance)
    ]
    metadata = [{"asin": f"b{at}", "title": f"Thing {at}", "price": "$4"} for at in range(19)]
    spoiled = damaged(reviews, chance, cut=True, reviewerID=[None, " "], asin=["zz", ""], unixReviewTime=BAD_TIMES[3:])
    titles = ["<span class=a>", "var a = 1", None]
    paths = (
        lines(folder / "r.json", spoiled),
        lines(folder / "m.json", damaged(metadata, chance, cut=True, asin=["b1"], title=titles, price=["£5"])),
    )
    found = dict(zip(("reviews", "metadata"), map(str, paths), strict=True))
    return AmazonSource(**found, folder=None, max_history=4, collapse_copies=True)


def amazon2023(folder, chance, **options):
    reviews = [
        {"user_id": user, "parent_asin": item, "timestamp": 86_400_000 * (18_000 + day), "rating": 5.0, "text": text}
        for user, item, day, text in purchases(chance)
    ]
    metadata = [
        {"parent_asin": f"b{at}", "title": f"Thing {at}", "price": 4.0, "store": "Ax", "details": {"Brand": "Bo"}}
        for at in range(19)
    ]
    bad = {"user_id": [None, " "], "parent_asin": ["zz", ""], "timestamp": [None, 10**20], "rating": [0.0, None]}
    gaps = {"title": ["", None], "price": [None, "None", "from 3"], "store": [None, ""], "details": [None, "{", {}]}
    paths = (
        lines(folder / "r.jsonl", damaged(reviews, chance, cut=True, **bad, text=["", None])),
        lines(folder / "m.jsonl", damaged(metadata, chance, cut=True, **gaps, parent_asin=["b1"])),
    )
    found = dict(zip(("reviews", "metadata"), map(str, paths), strict=True))
    known = {"core": 3, "since": "2019-04-20", "until": "2019-07-01"}
    return Amazon2023Source(**found, folder=None, max_history=4, collapse_copies=True, **known | options)


def five_core(folder, chance):
    source = amazon2023(folder, chance, core=2, until=None)
    rows = [f"{user},{item},5.0,{86_400_000 * (18_000 + day)}" for user, item, day, _ in purchases(chance)]
    rows = [
        chance.choice([row, row, row, row[:-20], f"{row},more", f",{row[1:]}", row.replace("5.0", "x")]) for row in rows
    ]
    path = lines(folder / "r.csv", ["user_id,parent_asin,rating,timestamp", *rows])
    source.locations["source.reviews"] = str(path)
    return source


SOURCES = [jsonl, regen_release, xrec, sequences, amazon2018, amazon2023, five_core]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_read_is_kept_and_dropped_by_reason(source, seed, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    counts = source(tmp_path / "in", random.Random(seed)).write(tmp_path / "out")
    tables = [name.removesuffix(".read") for name in counts if name.endswith(".read")]
    assert {"items", "interactions"} <= set(tables)
    for table in tables:
        dropped = sum(count for name, count in counts.items() if name.startswith(f"{table}.dropped."))
        added = counts.get(f"{table}.added", 0)
        if f"{table}.kept" in counts:
            assert counts[f"{table}.read"] + added == counts[f"{table}.kept"] + dropped, (table, counts)
    assert sum(count for name, count in counts.items() if ".dropped." in name) > 0
    noted = {name: count for name, count in counts.items() if ".with" in name or ".times_in_" in name}
    assert all(0 <= count <= counts[f"{name.partition('.')[0]}.kept"] for name, count in noted.items()), noted
    assert "kept" in counts_table(counts)
