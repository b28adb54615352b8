"""Critiques are rated by the two items that they are about, with the same draws, agreement and controls as narratives."""

import json
import re

import polars as pl
import pytest
from narratives import bad_server
from narratives.bad_server import BadServer

from regen.data.jsonl import JsonlSource
from regen.data.prepare import load_tables, prepare
from regen.narratives.narrate import narrate
from regen.narratives.narrators import TemplateNarrator

GOOD_ANSWER = bad_server.good_answer
USERS = 60


@pytest.fixture
def criticised(pens, tmp_path):
    """Narratives and critiques by the rules about people who bought pens; each pair of pens is of one user."""

    def made(count=USERS, shared=0.5):
        source = JsonlSource(folder=str(pens(count, pens=2 * USERS)))
        options = {"max_history": 50, "users": None, "root": tmp_path / "data"}
        return narrate(
            TemplateNarrator(), prepared=prepare(source, {}, root=tmp_path / "data"), shared_category=shared, **options
        )

    return made


def reads(parsed, request):
    """Veracity of a critique is high if the second item has the brand that it names; all other scores are constant."""
    good = GOOD_ANSWER(parsed, request)
    shown, _, text = parsed["messages"][-1]["content"].rpartition("<narratives>")
    if "critique" in text:
        second = json.loads(shown.split("\n")[2])
        [brand] = re.findall(r"Brand\d+", text)
        good["veracity"] = "very high" if brand == second["brand"] else "very low"
    return good


def test_the_latest_critique_of_each_user_is_judged_by_its_two_items(criticised, rater, rated):
    data = criticised(count=5)
    with BadServer(["none"]) as server:
        artefact = rated([rater(server, "a"), rater(server, "b", seed=100)], data, draws=2)
        asked = [json.loads(body)["messages"][-1]["content"] for body in server.bodies]
    questions = {question for question in asked if '"critique"' in question}
    assert len(questions) == 5
    latest = load_tables(data.path).critiques.group_by("user_id").last()
    for text, last, following in latest.select("text", "from_item_id", "to_item_id").iter_rows():
        [question] = [one for one in questions if json.dumps(text) in one]
        lines = question.split("\n")[1:3]
        numbers = [item[1:] for item in (last, following)]
        assert [json.loads(line)["brand"][5:] for line in lines] == numbers
        assert "tag-" not in question
    table = pl.read_parquet(artefact.path / "ratings.parquet").filter(stage="critique")
    assert len(table) == 2 * 5 * 3
    assert table["attribute"].unique().sort().to_list() == ["clarity", "grounding", "veracity"]
    assert table.select("score", "draws", "features").unique().rows() == [(4, [4, 4], ["critique"])]
    compared = pl.read_parquet(artefact.path / "agreement.parquet").filter(stage="critique")
    assert compared["between"].unique().sort().to_list() == ["a and b", "draws of a", "draws of b"]
    assert compared["units"].unique().to_list() == [5]


def test_a_rater_that_reads_tells_a_critique_from_one_of_other_items(criticised, rater, rated, monkeypatch):
    monkeypatch.setattr(bad_server, "good_answer", reads)
    with BadServer(["none"]) as server:
        artefact = rated([rater(server)], criticised(), controls=1.0)
        assert len(set(server.asked)) == len(server.asked)
    controls = pl.read_parquet(artefact.path / "controls.parquet")
    assert len(controls) == USERS
    critiques = controls.filter(stage="critique")
    assert len(critiques) > 5
    assert critiques.select("genuine", "shuffled").unique().rows() == [(7, 1)]
    ratings = pl.read_parquet(artefact.path / "ratings.parquet").filter(stage="critique", attribute="veracity")
    assert ratings["score"].to_list() == [7] * USERS, "controls are no ratings"


def test_critiques_that_were_written_again_are_rated_again(criticised, rater, rated):
    with BadServer(["none"]) as server:
        first = rated([rater(server)], criticised(count=3))
        assert len(server.asked) == 3 * 5
        other = rated([rater(server)], criticised(count=3, shared=0.0))
        assert len(server.asked) == 3 * 6, "the latest critiques lead to another item now; the rest is in the ledger"
    assert other.path != first.path


def test_what_a_model_wrote_is_rated_without_the_critiques_of_the_data(criticised, rater, rated):
    data = criticised(count=2)
    with BadServer(["none"]) as server:
        artefact = rated([rater(server)], data, narratives=load_tables(data.path).narratives)
    assert "critique" not in pl.read_parquet(artefact.path / "ratings.parquet")["stage"].to_list()
    assert "critiques" not in artefact.manifest["inputs"]
