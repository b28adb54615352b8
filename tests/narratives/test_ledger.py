"""The ledger: what was answered is there from the moment it came, once, whoever writes beside."""

import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from narratives import bad_server
from narratives.bad_server import BadServer
from narratives.pitches import endpoint_at, limits, pitches
from tenacity import wait_fixed

from regen.narratives import runner
from regen.narratives.ledger import Answer, Ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "folder" / "ledger.sqlite"


def test_an_answer_is_there_for_everyone_at_once_and_stays(path):
    with Ledger(path) as ledger, Ledger(path) as beside:
        assert ledger.answer("a") is None
        ledger.record("a", "answered", text="{}", model="m-1")
        found = beside.answer("a")
        assert found == Answer("{}", "m-1", found.created)
        assert abs((datetime.now(UTC) - datetime.fromisoformat(found.created)).total_seconds()) < 60
    with Ledger(path) as later:
        assert later.answer("a") == found
        assert later.answer("A") is None


@pytest.mark.parametrize("outcome", ["invalid", "refused"])
def test_answers_of_no_use_cost_but_do_not_answer(path, outcome):
    with Ledger(path) as ledger:
        for _ in range(3):
            ledger.record("a", outcome, text="I cannot", model="m", detail="why", dollars=0.25)
        ledger.record("b", outcome, text="I cannot", model="m", dollars=7.0)
        assert (ledger.answer("a"), ledger.dollars("a"), ledger.dollars("c")) == (None, 0.75, 0.0)
        ledger.record("a", "answered", text="yes", model="m", dollars=0.5)
        assert (ledger.answer("a").text, ledger.dollars("a")) == ("yes", 1.25)


def test_the_first_usable_answer_to_a_request_is_the_one_that_counts(path):
    with Ledger(path) as ledger:
        ledger.record("a", "answered", text="first", model="m")
        ledger.record("a", "answered", text="second", model="m", dollars=0.5)
        assert ledger.answer("a").text == "first"
        assert ledger.dollars("a") == 0.5


def test_what_two_processes_paid_for_one_request_is_kept_when_their_ledgers_are_joined(path, tmp_path):
    with Ledger(path) as ledger, Ledger(tmp_path / "other") as other:
        ledger.record("a", "answered", text="first", model="m", dollars=0.25)
        other.record("a", "answered", text="second", model="m", dollars=0.5)
        for _ in range(2):  # taking it in once more adds nothing
            ledger.take_in(tmp_path / "other")
            assert (ledger.answer("a").text, ledger.dollars("a")) == ("first", 0.75)


@pytest.mark.parametrize(
    "text", ["", "a\x00b", "'; DROP TABLE attempts; --", "naïve 本 😀\u2028", "x" * 10**6], ids=repr
)
def test_texts_come_back_as_they_were(path, text):
    with Ledger(path) as ledger:
        ledger.record(text, "answered", text=text, model=text[:100])
        assert (ledger.answer(text).text, ledger.answer(text).model) == (text, text[:100])


def test_several_may_write_at_once(path):
    def write(writer):
        with Ledger(path) as ledger:
            for number in range(25):
                ledger.record(f"{number}", "answered", text=f"{number}", model=f"{writer}")
                ledger.record(f"{number}", "invalid", text="", model=f"{writer}", dollars=1.0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with Ledger(path) as ledger:
        assert [ledger.answer(f"{number}").text for number in range(25)] == [f"{number}" for number in range(25)]
        assert {ledger.dollars(f"{number}") for number in range(25)} == {4.0}


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("not a database " * 100)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE attempts (name TEXT)")
    db.close()
    for path in (text, other, tmp_path):
        with pytest.raises(ValueError, match=f"{path}: not a ledger of regen .*set another path"):
            Ledger(path)
    assert text.read_text() == "not a database " * 100


@pytest.fixture
def ask(path, monkeypatch):
    """Asks for one endorsement per user; gives the report."""
    monkeypatch.setattr(runner, "BACKOFF", wait_fixed(0.05))

    def asked(server, questions, **changed):
        requests = pitches(questions)
        with Ledger(path) as ledger:
            return runner.ask_all(
                lambda: iter(requests),
                total=len(requests),
                endpoint=endpoint_at(server, max_tokens=10, seed=None),
                ledger=ledger,
                limits=limits(**changed),
                name="test",
            )

    return asked


def test_a_refusal_of_the_same_request_is_told_of_every_user_who_has_it(ask):
    with BadServer(["refusal"]) as server:
        report = ask(server, ["the same"] * 9)
        assert sorted(user for user, _, _ in report.failures) == [f"u{at}" for at in range(9)]
        assert (report.counts["failed"], report.counts["requests"]) == (9, 9)


def test_what_no_file_can_hold_is_replaced_in_an_answer(ask, path, monkeypatch):
    completion = bad_server.completion
    monkeypatch.setattr(
        bad_server, "completion", lambda text, refusal: completion(text.replace("of", "\ud800"), refusal)
    )
    with BadServer(["none"]) as server:
        report = ask(server, ["tag-a"])
        assert report.counts["answered"] == len(server.asked) == 1
    with sqlite3.connect(path) as db:
        ((text,),) = db.execute("SELECT text FROM attempts")
    db.close()
    assert "product_endorsement ? tag-a" in text


def test_costs_are_written_beside_what_they_were_for(ask, path):
    with BadServer(["none", "truncated JSON"]) as server:
        report = ask(server, [f"tag-{at}" for at in range(12)])
        useless = sum(server.useless.values())
        assert 0 < useless < 12
        assert report.counts == Counter(requests=12, answered=12, invalid=useless)
        assert report.dollars == pytest.approx(0.002 * (12 + useless))
        again = ask(server, [f"tag-{at}" for at in range(12)], max_cost=1.0)
        assert (again.counts, again.dollars) == (Counter(requests=12, reused=12), 0.0)
        assert again.dollars_before == pytest.approx(report.dollars)
    with sqlite3.connect(path) as db:
        rows = db.execute("SELECT outcome, COUNT(*), SUM(dollars), SUM(prompt_tokens) FROM attempts GROUP BY outcome")
        assert {name: (count, pytest.approx(dollars), tokens) for name, count, dollars, tokens in rows} == {
            "answered": (12, 0.024, 12_000),
            "invalid": (useless, 0.002 * useless, 1000 * useless),
        }
    db.close()
