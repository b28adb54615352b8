"""Content encoding against bare `SentenceTransformer.encode` on the distinct texts alone, and its memory and re-run.

    python benchmarks/encoding.py                          2,000 interactions, both ways, three rounds
    python benchmarks/encoding.py memory=4000000           peak memory of the stage without a sentence encoder's work

The stage also reads the tables, builds histories, hashes texts, keeps vectors in the store and writes the artefact.
"""

import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
from harness import Line, alternating, arguments, report, save

from regen.data.prepare import prepare
from regen.embeddings import encode_content
from regen.embeddings.content import load_sentence_encoder
from regen.runtime.shards import LocalEngine
from regen.storage.artefacts import Artefact

WORDS = "the pens write very well and this is a good price for my office but paper was thin so I would not buy again"
ENCODER = "minilm"
PURCHASES = 8  # of each user


class Reviews:
    """A source of users with eight purchases each; lengths of reviews like those of the 2018 files."""

    def __init__(self, interactions: int) -> None:
        self.interactions = interactions

    def files(self) -> dict[str, Path]:
        return {}

    def write(self, folder: Path) -> dict[str, int]:
        rng, draw = np.random.default_rng(0), np.random.default_rng(1)  # apart, so that more rows begin with the same
        count = self.interactions
        words, users = np.array(WORDS.split()), np.arange(count) // PURCHASES
        lengths = np.minimum(400, rng.lognormal(3.3, 1, count).astype(int) + 1)
        texts = [" ".join([*draw.choice(words, length), str(row)]) for row, length in enumerate(lengths)]
        items = pl.DataFrame({"item_id": [f"i{at:04d}" for at in range(1000)]}).with_columns(
            title="Item " + pl.col("item_id"), category=pl.lit("Pens"), price=pl.lit(5.0), brand=pl.lit("Brand")
        )
        items.with_columns(description=pl.lit(None, pl.String)).write_parquet(folder / "items.parquet")
        user = pl.Series(users).cast(pl.String).str.zfill(9)
        bought = np.random.default_rng(2).integers(0, 1000, count)
        rows = pl.DataFrame({"user_id": user, "timestamp": np.arange(count), "review_text": texts}).with_columns(
            item_id=items["item_id"].gather(bought),
            rating=5.0,
            review_title=pl.lit("Fine"),
        )
        rows.write_parquet(folder / "interactions.parquet")
        about = pl.DataFrame({"user_id": user.unique().sort()}).with_columns(
            pl.lit(None, pl.Int64).alias("timestamp"), pl.lit(None, pl.String).alias("item_id")
        )
        about.with_columns(feature=pl.lit("user_profile"), text=pl.lit("text")).write_parquet(
            folder / "narratives.parquet"
        )
        return {}


def stage(prepared: Artefact, root: Path) -> Artefact:
    return encode_content.ContentPart(ENCODER, 64, LocalEngine()).encode(prepared, root=root)


def speed(interactions: int, rounds: int) -> Line:
    """The stage, bare `encode` on the same distinct texts, and a re-run with one percent more rows."""
    reruns: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        prepared = prepared_reviews(interactions, Path(place))
        more = prepared_reviews(interactions * 101 // 100, Path(place))
        shards = encode_content.user_shards(prepared.path, LocalEngine().interactions)
        of_shards = (encode_content.shard_texts(prepared.path, rows, pretrained=ENCODER) for rows in shards)
        texts = sorted({text for shard in of_shards for text in shard.texts})

        def ours() -> float:
            with tempfile.TemporaryDirectory() as root:
                started = time.perf_counter()
                stage(prepared, Path(root))
                taken = time.perf_counter() - started
                again = time.perf_counter()
                counts = stage(more, Path(root)).manifest["counts"]
                reruns.append(f"{counts['encoded']:,} texts in {time.perf_counter() - again:.1f} s")
            return len(texts) / taken

        def bare() -> float:
            started = time.perf_counter()
            load_sentence_encoder(ENCODER).encode(texts, show_progress_bar=False)
            return len(texts) / (time.perf_counter() - started)

        bare()  # loads the encoder
        rates = alternating({"ours": ours, "usual": bare}, rounds)
    note = f"{len(texts):,} distinct texts; a re-run after adding 1 % of rows encoded {reruns[-1]}."
    return Line("Encoding content, MiniLM", "texts/s", rates["ours"], rates["usual"], note=note)


def prepared_reviews(interactions: int, root: Path) -> Artefact:
    return prepare(Reviews(interactions), {"rows": interactions}, root=root)


def memory(interactions: int) -> None:
    """Prints the stage's peak memory with vectors that cost nothing to make: its own, and pages of mapped files."""
    encode_content.embed_texts = lambda texts, **_: np.zeros((len(texts), 384), dtype=np.float32)
    with tempfile.TemporaryDirectory() as root, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        prepared = apart.submit(prepared_reviews, interactions, Path(root)).result()  # its memory is not the stage's
        before, peaks, done = resident(), Counter(), threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                for kind, size in resident().items():
                    peaks[kind] = max(peaks[kind], size)

        watching = threading.Thread(target=watch)
        watching.start()
        started = time.perf_counter()
        stage(prepared, Path(root))
        taken = time.perf_counter() - started
        done.set()
        watching.join()
    own, mapped = peaks["RssAnon"], peaks["RssFile"]
    print(
        f"{interactions:,} interactions: {taken:.1f} s; own memory {before['RssAnon']:.2f} GiB before the stage, "
        f"{own:.2f} at most in it; pages of mapped files {mapped:.2f}"
    )


def resident() -> dict[str, float]:
    """GiB of this process's memory by kind (Linux): its own, and pages of files, which the system can take back."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {of[0].rstrip(":"): int(of[1]) / 2**20 for of in lines if of[0] in ("RssAnon:", "RssFile:")}


if __name__ == "__main__":
    options = arguments(sys.argv[1:], interactions=2000, rounds=3, memory=0)
    if options["memory"]:
        memory(options["memory"])
    else:
        line = speed(options["interactions"], options["rounds"])
        save("encoding", [line])
        report([line])
