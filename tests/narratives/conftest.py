import json

import pytest
from tenacity import wait_fixed

from regen.data.prepare import prepare
from regen.narratives import runner
from regen.narratives.endpoint import Endpoint, Price, Sampling
from regen.narratives.narrators import OpenAINarrator
from regen.narratives.prompts import HistoryLimits
from regen.narratives.rate import rate
from regen.narratives.raters import Rater
from regen.narratives.report import RunLimits


@pytest.fixture
def shoppers(tmp_path):
    """Writes people whose every review names them; gives the folder in the layout of source jsonl."""

    def written(count, review="Nice, tag-u{user:04d}."):
        items = [{"item_id": f"i{at}", "title": f"Thing {at}", "category": "Things", "brand": "Ax"} for at in range(5)]
        interactions = [
            {
                "user_id": f"u{user:04d}",
                "item_id": f"i{(user + at) % 5}",
                "timestamp": 86400 * at,
                "rating": 4,
                "review_text": review.format(user=user) if at else f"First, tag-u{user:04d}.",
            }
            for user in range(count)
            for at in range(2)
        ]
        return write_shop(tmp_path / "shop", items, interactions)

    return written


def write_shop(folder, items, interactions):
    """Writes the layout of source jsonl without narratives."""
    folder.mkdir(exist_ok=True)
    for name, rows in (("items", items), ("interactions", interactions), ("narratives", [])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def pens(tmp_path):
    """Writes so many people who bought three pens in a row; gives the folder in the layout of source jsonl.

    The fourth purchase is a lamp, of another category. A test may set the first titles.
    """

    def written(count, titles=("Alpha gel pen, blue", "Beta gel pen, red", "Gamma gel pen, green"), pens=3):
        items = [
            {
                "item_id": f"i{at}",
                "title": titles[at] if at < len(titles) else f"Pen {at}",
                "category": "Office > Writing > Pens",
                "brand": f"Brand{at}",
            }
            for at in range(pens)
        ]
        items.append({"item_id": "other", "title": "Lamp", "category": "Home > Light", "brand": "Lux"})
        interactions = [
            {
                "user_id": f"u{user:04d}",
                "item_id": item,
                "timestamp": 86400 * (user + step),
                "review_text": f"Fine, tag-u{user:04d}.",
            }
            for user in range(count)
            for step, item in enumerate([*(f"i{(user + at) % pens}" for at in range(3)), "other"])
        ]
        return write_shop(tmp_path / "pens", items, interactions)

    return written


@pytest.fixture
def narrator(tmp_path, monkeypatch):
    """A narrator at a server, with short waits."""
    monkeypatch.setattr(runner, "BACKOFF", wait_fixed(0.05))

    def made(server, timeout=10.0, **limits):
        sampling = Sampling(temperature=0.7, top_p=1.0, max_tokens=500, seed=0)
        endpoint = Endpoint(
            model="scripted", base_url=server.url, api_key_env="TEST_KEY", sampling=sampling, timeout=timeout
        )
        known = {"concurrency": 32, "requests_per_minute": None, "tokens_per_minute": None, "max_attempts": 4}
        return OpenAINarrator(
            endpoint=endpoint,
            ledger=tmp_path / "ledger.sqlite",
            request_limits=HistoryLimits(text_characters=200, characters=10_000),
            run_limits=RunLimits(**{**known, "price": Price(1.0, 10.0), "max_cost": None, **limits}),
        )

    return made


@pytest.fixture
def prepared(shoppers, tmp_path):
    """A prepared artefact of so many shoppers."""
    from regen.data.jsonl import JsonlSource

    def built(count, **options):
        folder = shoppers(count, **options)
        return prepare(JsonlSource(folder=str(folder)), {}, root=tmp_path / "data")

    return built


@pytest.fixture
def with_narratives(shoppers, tmp_path):
    """Prepared data of so many shoppers, with narratives that the source brings."""
    from regen.data.jsonl import JsonlSource

    def built(count, narratives):
        folder = shoppers(count)
        (folder / "narratives.jsonl").write_text("".join(json.dumps(row) + "\n" for row in narratives))
        return prepare(JsonlSource(folder=str(folder)), {}, root=tmp_path / "data")

    return built


@pytest.fixture
def rater(tmp_path, monkeypatch):
    """A rater at a server, with short waits."""
    monkeypatch.setattr(runner, "BACKOFF", wait_fixed(0.05))

    def made(server, name="a", seed=0, **limits):
        sampling = Sampling(temperature=0.7, top_p=1.0, max_tokens=256, seed=seed)
        endpoint = Endpoint(model=name, base_url=server.url, api_key_env="NO_KEY", sampling=sampling, timeout=60.0)
        known = {"concurrency": 4, "requests_per_minute": None, "tokens_per_minute": None, "max_attempts": 4}
        limits = RunLimits(**{**known, "price": Price(1.0, 10.0), "max_cost": None} | limits)
        return Rater(name, endpoint, tmp_path / "ledger.sqlite", HistoryLimits(200, 10_000), limits)

    return made


@pytest.fixture
def rated(tmp_path):
    def of(raters, data, **options):
        known = {"draws": 1, "max_history": 50, "users": None, "controls": 0.0, "max_cost": None}
        return rate(raters, data=data, root=tmp_path / "data", **known | options)

    return of
