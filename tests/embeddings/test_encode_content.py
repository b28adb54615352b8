"""Content is encoded in shards and once: not again after a kill, for more rows, by another process, or by `force`."""

import itertools
import logging
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from regen.data.prepare import prepare
from regen.embeddings import content, encode_content
from regen.embeddings.encode_content import load_content, shard_texts, user_shards
from regen.embeddings.interaction_texts import InteractionTexts
from regen.embeddings.vector_store import VectorStore, text_keys
from regen.pipeline import encoded_artefacts, prepared_artefact
from regen.runtime.shards import LocalEngine

SPAWN = multiprocessing.get_context("spawn")


class Hashed:
    """A sentence encoder whose vector depends on the text alone."""

    max_seq_length = None

    def __init__(self):
        self.asked = []

    def encode(self, texts, **options):
        self.asked += texts
        keys = text_keys(texts)
        return np.stack([np.random.default_rng(int(key[0])).standard_normal(4) for key in keys]).astype(np.float32)


@pytest.fixture
def encoder(monkeypatch):
    encoder = Hashed()
    monkeypatch.setattr(content, "load_sentence_encoder", lambda pretrained: encoder)
    return encoder


class Purchases:
    """A source of so many users, each with five purchases and a summary."""

    def __init__(self, users):
        self.users = [f"u{number:04d}" for number in range(users)]

    def files(self):
        return {}

    def write(self, folder: Path):
        rows = [(user, f"i{at}", at, f"{user} likes item {at}") for user in self.users for at in range(5)]
        user, item, time, text = zip(*rows, strict=True)
        frame = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": time, "review_text": text})
        frame.with_columns(
            rating=pl.lit(None, pl.Float64),
            review_title=pl.lit(None, pl.String),
            timestamp=pl.col("timestamp").cast(int),
        ).select("user_id", "item_id", "timestamp", "rating", "review_title", "review_text").write_parquet(
            folder / "interactions.parquet"
        )
        items = pl.DataFrame({"item_id": [f"i{at}" for at in range(5)], "title": [f"Item {at}" for at in range(5)]})
        nothing = {name: pl.lit(None, pl.String) for name in ("description", "category", "brand")}
        items.with_columns(price=pl.lit(None, pl.Float64), **nothing).write_parquet(folder / "items.parquet")
        about = pl.DataFrame({"user_id": self.users, "feature": "user_profile"}).with_columns(
            item_id=pl.lit(None, pl.String), timestamp=pl.lit(None, pl.Int64), text=pl.lit("likes things")
        )
        about.write_parquet(folder / "narratives.parquet")
        return {}


def encoded(users, root, *, force=False):
    prepared = prepare(Purchases(users), {"users": users}, root=root)
    part = encode_content.ContentPart("minilm", 64, LocalEngine(interactions=300))
    return part.encode(prepared, root=root, force=force), prepared


def test_shards_cut_no_user_in_two_and_cover_every_row(small_config, encoder):
    prepared = prepared_artefact(small_config())
    shards = user_shards(prepared.path, 300)
    users = pl.read_parquet(prepared.path / "interactions.parquet")["user_id"]
    assert len(shards) > 3
    assert shards[0][0] == 0
    assert shards[-1][1] == len(users)
    for (_, end), (start, _) in itertools.pairwise(shards):
        assert end == start
        assert users[end - 1] != users[end]
    assert all(300 <= end - start < 600 for start, end in shards[:-1])


def test_many_shards_give_what_one_gives(small_config, encoder):
    cfg = small_config("engine.interactions=300")
    prepared = prepared_artefact(cfg)
    many = load_content(encoded_artefacts(cfg, ("content",), prepared)["content"])
    one = load_content(encoded_artefacts(small_config(), ("content",), prepared, force=True)["content"])
    for name in ("reviewed", "unreviewed"):
        rows, of_one = getattr(many, name), getattr(one, name)
        assert np.array_equal(rows >= 0, of_one >= 0)
        assert np.array_equal(many.vectors[rows[rows >= 0]], one.vectors[of_one[of_one >= 0]])
    assert isinstance(many.vectors, np.memmap)
    assert many.vectors.dtype == np.float16


def test_vectors_that_are_not_finite_are_refused_where_they_are_made(encoder, tmp_path, monkeypatch):
    alive = encoder.encode

    def encode(texts, **options):
        return np.where([["u0007 likes" in text] for text in texts], np.nan, alive(texts, **options))

    monkeypatch.setattr(encoder, "encode", encode)
    with pytest.raises(
        ValueError, match=r"content.pretrained=minilm: the vectors of 5 of \d+ texts are not finite, .*u0007"
    ):
        encoded(100, tmp_path)
    assert not list(tmp_path.glob("content-*"))


def test_what_reaches_the_vectors_is_counted_and_printed(encoder, tmp_path, caplog, monkeypatch):
    """Of 20 reviews those of one user are cut in half."""

    def cut(items, reviews, *, pretrained):
        before = np.array([len(review) for review in reviews])
        kept = np.where(["u0002" in review for review in reviews], before // 2, before)
        return InteractionTexts(list(reviews), before, kept)

    monkeypatch.setattr(encode_content, "interaction_texts", cut)
    with caplog.at_level(logging.INFO):
        made, _ = encoded(4, tmp_path)
    counts = made.manifest["counts"]
    assert (counts["reviews"], counts["reviews_cut"]) == (20, 5)
    each = len("u0002 likes item 0")
    assert (counts["review_characters"], counts["review_characters_kept"]) == (20 * each, 20 * each - 5 * each // 2)
    assert (
        "87.5% of the reviews' characters reach the vectors; the encoder's window cuts 5 of 20 reviews" in caplog.text
    )


def test_one_percent_more_rows_encode_one_percent(encoder, tmp_path):
    first, _ = encoded(1000, tmp_path)
    assert first.manifest["counts"]["encoded"] == len(encoder.asked) == 5001  # and the last item without its review
    encoder.asked.clear()
    more, _ = encoded(1010, tmp_path)
    assert more.manifest["counts"]["encoded"] == len(encoder.asked) == 50
    assert more.manifest["counts"]["interactions"] == 5050


def test_without_force_vectors_come_from_the_store_and_with_it_they_are_encoded_again(encoder, tmp_path, monkeypatch):
    made, _ = encoded(100, tmp_path)
    before = np.load(made.path / "vectors.npy")
    shutil.rmtree(made.path)
    encoder.asked.clear()
    assert encoded(100, tmp_path)[0].manifest["counts"]["encoded"] == len(encoder.asked) == 0
    alive = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts, **options: -alive(texts, **options))
    again, _ = encoded(100, tmp_path, force=True)
    assert again.manifest["counts"]["encoded"] == len(encoder.asked) == 501 + 1  # the last item's text in both shards
    assert np.array_equal(np.load(again.path / "vectors.npy"), -before)


@pytest.mark.parametrize("file", ["vectors.npy", "keys.npy", "manifest.json"])
def test_a_damaged_segment_is_made_again_with_a_warning(encoder, tmp_path, caplog, file):
    made, _ = encoded(100, tmp_path)
    before = np.load(made.path / "vectors.npy")
    segment = sorted(tmp_path.glob("vectors-*/segment-*"))[0]
    content_of = (segment / file).read_bytes()
    (segment / file).write_bytes(content_of[:-1] + bytes([content_of[-1] ^ 1]))
    encoder.asked.clear()
    with caplog.at_level(logging.WARNING):
        shutil.rmtree(made.path)
        again, _ = encoded(100, tmp_path)
    assert "Deleting a damaged segment, whose texts are encoded again" in caplog.text
    assert 0 < len(encoder.asked) < 500
    assert np.array_equal(np.load(again.path / "vectors.npy"), before)


def encode_until_the_third_shard(root):
    """Runs in a process of its own, which kills itself."""
    encoder = Hashed()

    def encode(texts, **options):
        if any("u0130" in text for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        return encoder.encode(texts, **options)

    content.load_sentence_encoder = lambda pretrained: SimpleNamespace(encode=encode, max_seq_length=None)
    encoded(200, root)


def test_shards_that_were_done_before_a_kill_are_not_encoded_again(encoder, tmp_path):
    process = SPAWN.Process(target=encode_until_the_third_shard, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not list(tmp_path.glob("content-*"))
    made, prepared = encoded(200, tmp_path)
    shards = user_shards(prepared.path, 300)
    done = {text for rows in shards[:2] for text in shard_texts(prepared.path, rows, pretrained="minilm").texts}
    assert len(shards) == 4
    assert not done & set(encoder.asked)
    assert len(encoder.asked) == 1001 - len(done)
    assert made.manifest["counts"]["interactions"] == 1000
    assert not list(tmp_path.glob("vectors-*/.segment-*partial*"))


TEXTS = [f"text {number}" for number in range(50)]


def add_to_a_store(root, started):
    def embed(texts):
        with (root / "asked").open("a") as file:
            file.write("asked\n")
        return Hashed().encode(texts)

    started.wait()
    VectorStore(root, {"name": "x"}).add(TEXTS, text_keys(TEXTS), embed)


def test_two_processes_encode_a_shard_once(tmp_path):
    started = SPAWN.Barrier(2)
    processes = [SPAWN.Process(target=add_to_a_store, args=(tmp_path, started)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "asked").read_text() == "asked\n"
    assert not VectorStore(tmp_path, {"name": "x"}).missing(text_keys(TEXTS)).any()


def test_another_encoder_has_another_store(encoder, tmp_path):
    keys = text_keys(["a"])
    VectorStore(tmp_path, {"name": "x"}).add(["a"], keys, encoder.encode)
    assert VectorStore(tmp_path, {"name": "y"}).missing(keys).all()
    with pytest.raises(RuntimeError, match="1 of 1 vectors disappeared"):
        VectorStore(tmp_path, {"name": "y"}).vectors(keys)


def test_keys_tell_texts_apart():
    keys = text_keys(["", "a", "b", "a"])
    assert keys.shape == (4, 2)
    assert len({tuple(key) for key in keys.tolist()}) == 3
    assert text_keys([]).shape == (0, 2)


@pytest.mark.usefixtures("no_sentence_encoder")
def test_the_benchmark_of_encoding_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from encoding import speed

    line = speed(interactions=80, rounds=1)
    assert min(*line.ours, *line.usual) > 0
