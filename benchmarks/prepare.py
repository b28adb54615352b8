"""Stage `prepare` against the loop a user would otherwise write, on made-up files in Amazon's layout.

    python benchmarks/prepare.py                        400,000 reviews, both ways
    python benchmarks/prepare.py reviews=11000000 loop=false
    python benchmarks/prepare.py year=2023              the layout of 2023; core=5 filters as its default does

The loop: gzip, json.loads on each line, a pandas DataFrame, a merge with the titles, groupby; it ends with histories in
memory and cleans nothing. The stage also cleans texts, drops copies and writes Parquet. Each runs in a process of its
own, one after the other; peak memory is that process's.
"""

import gzip
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from harness import Line, save
from isal import igzip
from tqdm import tqdm

WORDS = [
    f"{a}{b}" for a in ("pa", "lo", "ki", "ste", "re", "no", "di", "mu", "gra") for b in ("per", "st", "n", "ling", "t")
]
OLD_REVIEW = {"user_id": "reviewerID", "asin": "variant", "parent_asin": "asin", "timestamp": "unixReviewTime"}
OLD_REVIEW |= {"rating": "overall", "title": "summary", "text": "reviewText"}
OLD_ITEM = {"parent_asin": "asin"}  # names of 2018 for those of 2023
MARKUP = ("&amp;", "&quot;well&quot;", "<br />", "a < b", "R&D", '<a href="x">this</a>')


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    count = int(options.get("reviews", 400_000))
    year, core = int(options.get("year", 2018)), int(options.get("core", 0)) or None
    folder = Path(options.get("folder") or tempfile.mkdtemp(prefix="regen-prepare-"))
    reviews, metadata = (folder / f"{role}-{year}-{count}.json.gz" for role in ("reviews", "meta"))
    if not (reviews.exists() and metadata.exists()):
        write_files(reviews, metadata, count, year)
    print(f"{count:,} reviews, {reviews.stat().st_size / 1e6:,.0f} MB gzipped; {folder}")
    ways: dict[str, Callable[[Path, Path], int]] = {"regen prepare": partial(stage, year=year, core=core)}
    if options.get("loop", "true") == "true":
        ways["usual loop"] = partial(loop, year=year)
    seconds = {name: report(name, way, reviews, metadata, count) for name, way in ways.items()}
    if "usual loop" in seconds:
        print(f"{'ratio':14} {seconds['usual loop'] / seconds['regen prepare']:8.1f} times faster")
        rates = {name: [count / taken] for name, taken in seconds.items()}
        save("prepare", [Line(f"preparing reviews of {year}", "rows/s", rates["regen prepare"], rates["usual loop"])])


def report(name: str, way: Callable[[Path, Path], int], reviews: Path, metadata: Path, count: int) -> float:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measured, args=(way, reviews, metadata, results))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} ended with code {process.exitcode}.")
    taken, peak, kept = results.get()
    print(f"{name:14} {taken:8.1f} s {count / taken:12,.0f} rows/s {peak:7.2f} GiB peak, {kept:,} interactions kept")
    return taken


def measured(way: Callable[[Path, Path], int], reviews: Path, metadata: Path, results: Any) -> None:
    start = time.perf_counter()
    kept = way(reviews, metadata)
    taken = time.perf_counter() - start
    results.put((taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, kept))


def stage(reviews: Path, metadata: Path, *, year: int, core: int | None) -> int:
    from regen.data.amazon import AmazonSource
    from regen.data.amazon2023 import Amazon2023Source
    from regen.data.prepare import prepare

    read = {2018: AmazonSource, 2023: Amazon2023Source}[year]
    source = read(
        reviews=str(reviews), metadata=str(metadata), folder=None, max_history=50, collapse_copies=True, core=core
    )
    with tempfile.TemporaryDirectory(dir=reviews.parent) as root:
        return prepare(source, {}, root=Path(root)).manifest["counts"]["interactions"]


def loop(reviews: Path, metadata: Path, *, year: int) -> int:
    import pandas as pd

    def parse(path: Path) -> Any:
        with gzip.open(path, "rt") as file:
            for line in file:
                yield json.loads(line)

    frame = pd.DataFrame(parse(reviews))
    items = pd.DataFrame(parse(metadata))
    if year == 2023:
        frame, items = frame.rename(columns=OLD_REVIEW), items.rename(columns=OLD_ITEM)
    items = items[["asin", "title"]].drop_duplicates("asin")
    columns = ["asin", "title", "unixReviewTime", "overall", "summary", "reviewText"]
    frame = frame[["reviewerID", *columns[:1], *columns[2:]]].merge(items, on="asin")
    frame = frame.query("title != ''").sort_values("unixReviewTime")
    histories = {user: rows[columns].tail(50).to_dict("records") for user, rows in frame.groupby("reviewerID")}
    return sum(map(len, histories.values()))


def write_files(reviews: Path, metadata: Path, count: int, year: int) -> None:
    """Reviews of users with 5 to about 50 items, mean near 8, in the order of items, as in the published files."""
    chance = random.Random(0)
    users, items = max(1, count // 8), max(1, count // 30)
    texts = [text(chance) for _ in range(20_000)]
    reviews.parent.mkdir(parents=True, exist_ok=True)
    with igzip.open(reviews, "wt", compresslevel=2) as file:
        for row in tqdm(range(count), desc=reviews.name, unit_scale=True):
            when = 1_000_000_000 + 86_400 * chance.randrange(6_000)
            user = int(users * chance.random() ** 1.2)
            record = {
                "overall": float(chance.choice((1, 2, 3, 4, 4, 5, 5, 5, 5))),
                "verified": True,
                "reviewTime": "06 17, 2018",
                "reviewerID": f"A{user * 2_654_435_761 % 16**12:012X}",
                "asin": f"B{row * items // count:09d}",
                "style": {"Color:": " Blue"},
                "reviewerName": "somebody",
                "reviewText": chance.choice(texts) + f" {row}",
                "summary": "Five Stars",
                "unixReviewTime": when,
            }
            file.write(json.dumps(record if year == 2018 else review_of_2023(record, chance)) + "\n")
    with igzip.open(metadata, "wt", compresslevel=2) as file:
        for item in tqdm(range(2 * items), desc=metadata.name, unit_scale=True):
            record = {
                "category": ["Office Products", "Pens"],
                "description": [chance.choice(texts)],
                "title": "" if item % 50 == 0 else f"Item &amp; {item}",
                "also_buy": [f"B{chance.randrange(items):09d}" for _ in range(20)],
                "brand": "Brand",
                "feature": [chance.choice(texts)],
                "price": "$5.00",
                "asin": f"B{item:09d}",
            }
            file.write(json.dumps(record if year == 2018 else item_of_2023(record, item)) + "\n")


def review_of_2023(old: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same review in the layout of 2023; times are those of a click, so none repeats."""
    ids = {"asin": f"{old['asin']}V", "parent_asin": old["asin"], "user_id": old["reviewerID"].ljust(28, "X")}
    said = {"rating": old["overall"], "title": old["summary"], "text": old["reviewText"], "images": []}
    when = old["unixReviewTime"] * 1000 + chance.randrange(86_400_000)
    return said | ids | {"timestamp": when, "helpful_vote": 0, "verified_purchase": True}


def item_of_2023(old: dict[str, Any], item: int) -> dict[str, Any]:
    """The same item in the layout of 2023; every fourth has its brand in `details` alone."""
    details = {"Brand": "Brand", "Color": "Black", "Size": "10", "Best Sellers Rank": {"Office Products": item}}
    image = {"thumb": "https://m.media-amazon.com/images/I/41.jpg", "large": None, "variant": "MAIN", "hi_res": None}
    return {
        "main_category": "Office Products",
        "title": old["title"],
        "average_rating": 4.5,
        "rating_number": 30,
        "features": old["feature"],
        "description": old["description"] if item % 3 else [],
        "price": 5.0 if item % 5 else None,
        "images": [image] * 4,
        "videos": [],
        "store": "Brand" if item % 4 else None,
        "categories": old["category"],
        "details": details,
        "parent_asin": old["asin"],
        "bought_together": None,
    }


def text(chance: random.Random) -> str:
    words = chance.choices(WORDS, k=min(400, int(chance.lognormvariate(3.3, 1)) + 1))
    if chance.random() < 0.08:
        words.append(chance.choice(MARKUP))
    return " ".join(words)


if __name__ == "__main__":
    main()
