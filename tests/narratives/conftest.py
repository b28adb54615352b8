import json

import pytest
from tenacity import wait_fixed

from regen.data.prepare import prepare
from regen.narratives import runner
from regen.narratives.endpoint import Endpoint, Price, Sampling
from regen.narratives.prompts import HistoryLimits
from regen.narratives.rate import rate
from regen.narratives.raters import Rater
from regen.narratives.report import RunLimits


@pytest.fixture
def shoppers(tmp_path):
    """Writes people whose every review names them; gives the folder in the layout of source jsonl."""

    def written(count, review="Nice, tag-u{user:04d}."):
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
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
        for name, rows in (("items", items), ("interactions", interactions), ("narratives", [])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return written


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
