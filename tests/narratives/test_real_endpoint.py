"""A language model behind a real server (`make llm-server`) narrates and rates Gift Cards users by schema."""

import os
import sqlite3
from dataclasses import replace

import polars as pl
import pytest

from regen.data.amazon import AmazonSource
from regen.data.prepare import prepare
from regen.narratives.endpoint import Endpoint, Sampling
from regen.narratives.narrate import narrate
from regen.narratives.narrators import OpenAINarrator
from regen.narratives.prompts import HistoryLimits
from regen.narratives.rate import rate
from regen.narratives.raters import ATTRIBUTES, Rater
from regen.narratives.report import RunLimits

URL = os.environ.get("REGEN_TEST_ENDPOINT")
USERS, DRAWS = 4, 2
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not URL, reason="set REGEN_TEST_ENDPOINT to the address that make llm-server prints"),
]


@pytest.fixture
def at_server(tmp_path):
    def made(max_tokens):
        sampling = Sampling(temperature=0.7, top_p=0.95, max_tokens=max_tokens, seed=0)
        endpoint = Endpoint(
            model=os.environ.get("REGEN_TEST_MODEL", "smollm2"),
            base_url=URL,
            api_key_env="REGEN_TEST_KEY",
            sampling=sampling,
            timeout=300.0,
        )
        return {
            "endpoint": endpoint,
            "ledger": tmp_path / "ledger.sqlite",
            "request_limits": HistoryLimits(text_characters=200, characters=3000),
            "run_limits": RunLimits(8, None, None, max_attempts=3, price=None, max_cost=None),
        }

    return made


@pytest.fixture
def gift_cards(real_data, tmp_path):
    folder = real_data / "amazon2018"
    source = AmazonSource(
        reviews=str(folder / "Gift_Cards_5.json.gz"),
        metadata=str(folder / "meta_Gift_Cards.json.gz"),
        folder=None,
        max_history=50,
        collapse_copies=True,
    )
    return prepare(source, {}, root=tmp_path / "data")


def attempts(tmp_path):
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        return db.execute("SELECT outcome, prompt_tokens, completion_tokens FROM attempts").fetchall()


def test_narrates_and_rates_and_asks_nothing_twice(at_server, gift_cards, tmp_path):
    root = tmp_path / "data"
    narrator = OpenAINarrator(**at_server(600))
    narrated = narrate(narrator, prepared=gift_cards, max_history=50, users=USERS, root=root)
    narratives = pl.read_parquet(narrated.path / "narratives.parquet")
    failures = pl.read_parquet(narrated.path / "failures.parquet")
    answered = (
        5 * (USERS - (failures["prompt"] == "reasons").sum()) + USERS - (failures["prompt"] == "endorsement").sum()
    )
    assert len(narratives) == answered > 0, failures.rows()
    assert (narratives.filter(pl.col("feature") != "purchase_reason")["text"].str.len_chars() > 0).all()
    assert narratives["prompt"].str.contains(r"^(reasons|endorsement) [0-9a-f]{12}$").all()
    asked = attempts(tmp_path)
    assert sum(outcome == "answered" for outcome, _, _ in asked) == 2 * USERS - len(failures)
    assert all(prompt > 100 and completion > 0 for _, prompt, completion in asked)

    rater = Rater("smollm2", **at_server(120))
    options = {
        "data": narrated,
        "draws": DRAWS,
        "controls": 0.0,
        "max_history": 50,
        "users": None,
        "max_cost": None,
        "root": root,
    }
    rated = rate([rater], **options)
    ratings = pl.read_parquet(rated.path / "ratings.parquet")
    assert ratings["score"].is_between(1, 7).all()
    assert set(ratings["stage"]) <= set(ATTRIBUTES)
    unfailed = rated.manifest["counts"]["failures"] == 0
    assert not unfailed or (ratings["draws"].list.len() == DRAWS).all()
    assert len(ratings) > USERS

    before = attempts(tmp_path)
    fresh = tmp_path / "again"
    again = narrate(narrator, prepared=gift_cards, max_history=50, users=USERS, root=fresh)
    if failures.is_empty():  # what failed is asked again, what was answered is not
        assert attempts(tmp_path) == before
    assert pl.read_parquet(again.path / "narratives.parquet").join(
        narratives, on=narratives.columns, how="anti", nulls_equal=True
    ).height <= 6 * len(failures)
    assert replace(rater, name="other").recipe() == rater.recipe()
