"""Requests asked in shards: the answers, costs and failures of asking them in one go, also after a kill."""

from dataclasses import dataclass

import pytest
from narratives.bad_server import BadServer
from narratives.pitches import SYSTEM, endpoint_at, limits, pitches
from tenacity import wait_fixed

from regen.narratives import ask_shards, runner
from regen.narratives.ledger import Ledger
from regen.runtime.shards import LocalEngine, RayEngine

FAULTS = ["none", "500", "truncated JSON", "refusal"]


@dataclass
class Here(RayEngine):
    """Ray's map without Ray: one shard after the other, in this process; dies before a shard if told to."""

    dies_before: int | None = None

    def map(self, work, shards, *, name, at_once=None):
        assert at_once == self.asking
        for at, shard in enumerate(shards):
            if at == self.dies_before:
                raise KeyboardInterrupt
            yield work(shard)


def engine(**options):
    return Here(
        **{
            "interactions": 1,
            "narratives": 1,
            "requests": 5,
            "asking": 2,
            "address": None,
            "cpus": 1,
            "gpus": 0,
            **options,
        }
    )


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Asks for one endorsement per question into a named ledger; gives the report and all answers."""
    monkeypatch.setattr(runner, "BACKOFF", wait_fixed(0.01))

    def asked(server, questions, where, name="ledger", max_tokens=100, **changed):
        endpoint = endpoint_at(server, max_tokens=max_tokens, seed=7)
        requests = pitches(questions)
        with Ledger(tmp_path / name) as ledger:
            report = ask_shards.ask(
                lambda: iter(requests),
                total=len(requests),
                endpoint=endpoint,
                ledger=ledger,
                limits=limits(**changed),
                name="test",
                engine=where,
            )
            found = [ledger.answer(request.key(endpoint.settings())) for request in requests]
            return report, [answer and answer.text for answer in found]

    return asked


def test_shards_give_what_one_run_gives(ask, tmp_path):
    questions = [f"tag-{at % 17}" for at in range(20)]
    with BadServer(FAULTS) as server:
        whole, expected = ask(server, questions, LocalEngine(), "whole")
        sent = len(server.asked)
    with BadServer(FAULTS) as server:
        report, found = ask(server, questions, engine())
        assert len(server.asked) == sent
    assert found == expected
    assert None in found
    assert len(set(found)) > 8
    assert report.counts == whole.counts
    assert sorted(report.failures) == sorted(whole.failures)
    assert report.dollars == pytest.approx(whole.dollars)
    assert list((tmp_path / "ledger.shards").iterdir()) == []


def test_what_was_answered_before_a_kill_is_not_asked_again(ask, monkeypatch, tmp_path):
    questions = [f"tag-{at}" for at in range(20)]
    with BadServer(["none"]) as server:
        with pytest.raises(KeyboardInterrupt):
            ask(server, questions, engine(dies_before=2))
        assert len(list((tmp_path / "ledger.shards").glob("*.requests"))) == 2
        assert len(server.asked) == 10
        with monkeypatch.context() as dying:  # after the third shard was asked, before its answers were taken in
            dying.setattr(ask_shards, "_take_in", lambda ledger, path: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                ask(server, questions, engine())
        assert len(server.asked) == 15
        report, found = ask(server, questions, engine())
        assert (report.counts["reused"], report.counts["answered"]) == (15, 5)
        assert len(server.asked) == len(set(server.asked)) == 20
        assert None not in found
    assert list((tmp_path / "ledger.shards").iterdir()) == []


def test_an_answer_of_no_use_counts_in_the_next_run(ask):
    with BadServer(["truncated JSON"]) as server:
        first, found = ask(server, ["tag-a"], engine(), max_attempts=1)
        assert (first.counts["invalid"], found) == (1, [None])
        ask(server, ["tag-a"], engine(), max_attempts=1)
        seeds = [body.split('"seed":')[1].split(",")[0].strip(" }") for body in server.bodies]
        assert seeds == ["7", "10007"]


def test_money_is_shared_among_shards_and_never_exceeded(ask):
    questions = [f"tag-{at} {'x' * 1000}" for at in range(20)]  # no shorter than the tokens that the server charges
    with BadServer(["none"]) as server:
        report, _ = ask(server, questions, engine(), max_cost=0.02)
        assert report.out_of_money
        assert 0 < report.dollars <= 0.02
        again, _ = ask(server, questions, engine(), max_cost=1.0)
        assert again.dollars_before == pytest.approx(report.dollars)
        assert again.dollars_in_all == pytest.approx(0.04)


def test_what_one_shard_does_not_spend_pays_for_another(ask):
    """At the dry run's estimate, a shard of one request has less than that request may cost."""
    questions = [f"tag-{at} {'x' * 4000}" for at in range(9)]  # two shards of four requests, and one of a single one
    estimate = sum((len(question) + len(SYSTEM["content"])) / 4 + 10 * 200 for question in questions) / 1e6
    with BadServer(["none"]) as server:  # charges for 1,000 tokens of prompt and 100 of answer
        report, found = ask(server, questions, engine(requests=4), max_cost=estimate, max_tokens=200)
    assert None not in found
    assert not report.out_of_money
    assert report.dollars <= estimate


def test_an_endpoint_that_refuses_all_is_told_of(ask):
    with BadServer(["none"], key="right") as server, pytest.raises(ValueError, match="refuses every request: 401"):
        ask(server, ["a", "b"], engine())


def test_rates_are_shared_among_the_shards_that_ask_at_once(ask, monkeypatch):
    seen = []
    real = ask_shards.ask_all
    monkeypatch.setattr(
        ask_shards, "ask_all", lambda *args, **options: seen.append(options["limits"]) or real(*args, **options)
    )
    with BadServer(["none"]) as server:
        ask(server, [f"tag-{at}" for at in range(11)], engine(), requests_per_minute=60_000.0)
    assert [limits.requests_per_minute for limits in seen] == [30_000.0] * 3
