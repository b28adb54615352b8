"""Two runs side by side: both orders are asked, a preference for a place shows, and a better text wins in both."""

import json
import re

import polars as pl
import pytest
from narratives import bad_server
from narratives.bad_server import BadServer

from regen.data.tables import DataError
from regen.narratives.endpoint import Endpoint, Sampling
from regen.narratives.histories import Purchase, UserHistory
from regen.narratives.prompts import HistoryLimits
from regen.narratives.rater_checks import pair_cautions
from regen.narratives.raters import Rater
from regen.narratives.report import RunLimits
from regen.narratives.side_by_side import Pair, compare_side_by_side, summary

LIMITS = RunLimits(8, None, None, max_attempts=2, price=None, max_cost=None)


def pair(user, a="good", b="poor", feature="user_profile"):
    purchase = Purchase("i1", 0, "Thing", None, None, None, None, 5.0, None, f"tag-{user}")
    return Pair(UserHistory(user, (purchase,)), feature, f"{a} {user}", f"{b} {user}")


def prefers_good(texts):
    return "first" if "good" in texts["first"] else "second" if "good" in texts["second"] else "tie"


def prefers_the_first(texts):
    return "first"


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Summary and requests of a comparison by one rater per judge."""

    def made(pairs, *judges):
        servers = [BadServer(["none"]) for _ in judges]
        taste = dict(zip((f"rater{at}" for at in range(len(judges))), judges, strict=True))

        def verdict(parsed, request):
            texts = json.loads(re.search(r"<texts>\n(.*)\n</texts>", parsed["messages"][-1]["content"])[1])
            return {"better": taste[parsed["model"]](texts)}

        monkeypatch.setattr(bad_server, "good_answer", verdict)
        sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=20, seed=0)
        raters = [
            Rater(
                name,
                Endpoint(model=name, base_url=server.url, api_key_env="NO_KEY", sampling=sampling, timeout=20.0),
                tmp_path / "ledger.sqlite",
                HistoryLimits(200, 1000),
                LIMITS,
            )
            for name, server in zip(taste, servers, strict=True)
        ]
        artefact = compare_side_by_side(pairs, raters, max_cost=None, root=tmp_path / "data")
        asked = sum(len(server.asked) for server in servers)
        for server in servers:
            server.__exit__()
        return json.loads((artefact.path / "summary.json").read_text()), asked, artefact

    return made


def test_the_better_text_wins_in_both_orders(judged):
    result, asked, artefact = judged([pair(f"u{at}") for at in range(6)], prefers_good)
    assert asked == 12
    [row] = result["features"]
    assert (row["win_rate"], row["low"], row["high"]) == (1.0, 1.0, 1.0)
    assert (row["a_in_both_orders"], row["b_in_both_orders"], row["order_dependent"]) == (1.0, 0.0, 0.0)
    assert pl.read_parquet(artefact.path / "verdicts.parquet")["a_first"].to_list() == ["a"] * 6


def test_swapping_the_runs_swaps_the_outcome(judged):
    [row] = judged([pair(f"u{at}", a="poor", b="good") for at in range(4)], prefers_good)[0]["features"]
    assert (row["win_rate"], row["b_in_both_orders"]) == (0.0, 1.0)


def test_a_rater_that_prefers_a_place_shows(judged):
    result = judged([pair(f"u{at}") for at in range(6)], prefers_the_first)[0]
    [row] = result["features"]
    assert (row["win_rate"], row["order_dependent"]) == (0.5, 1.0)
    [caution] = pair_cautions(result)
    assert f"{row['rater']}: the order of the texts decided 100% of the {row['feature']} pairs" in caution
    assert pair_cautions(judged([pair(f"u{at}") for at in range(6)], prefers_good)[0]) == []


def test_equal_texts_tie(judged):
    [row] = judged([pair(f"u{at}", a="fair", b="fair") for at in range(4)], prefers_good)[0]["features"]
    assert (row["win_rate"], row["tie_in_both_orders"]) == (0.5, 1.0)


def test_a_rater_that_always_ties_shows(judged):
    result = judged([pair(f"u{at}") for at in range(6)], lambda texts: "tie")[0]
    [caution] = pair_cautions(result)
    assert "rater0: all 6 user_profile pairs are ties" in caution


@pytest.mark.slow  # many judgements
def test_raters_that_agree_and_raters_that_do_not(judged):
    pairs = [pair(f"u{at}", *(("good", "poor") if at % 2 else ("poor", "good"))) for at in range(8)]
    [same] = judged(pairs, prefers_good, prefers_good)[0]["agreement"]
    assert (same["alpha"], same["exact_agreement"], same["pairs"]) == (1.0, 1.0, 8)
    [other] = judged(pairs, prefers_good, prefers_the_first)[0]["agreement"]
    assert other["exact_agreement"] == 0.0
    assert other["alpha"] < 0.5


def test_the_interval_of_a_win_rate_covers_the_half_for_a_coin(judged):
    rows = pl.DataFrame(
        {
            "user_id": [f"u{at}" for at in range(100)],
            "feature": "f",
            "rater": "r",
            "a_first": ["a", "b"] * 50,
            "b_first": ["a", "b"] * 50,
            "score": [1.0, 0.0] * 50,
        }
    )
    [row] = summary(rows)["features"]
    assert row["low"] < 0.5 < row["high"]
    assert 0.15 < row["high"] - row["low"] < 0.25  # about four standard errors of 0.05


def test_nothing_in_common_is_refused(tmp_path):
    with pytest.raises(DataError, match="no user and feature in common"):
        compare_side_by_side([], [], max_cost=None, root=tmp_path)
