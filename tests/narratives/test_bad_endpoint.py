"""An endpoint that misbehaves: no answer lost, none asked twice, counts as the script says, whatever is killed when."""

import os
import pickle
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from narratives.bad_server import FAULTS, FINAL, GOOD, BadServer
from narratives.runs import command, outcomes, recorded

from regen.narratives import runner
from regen.narratives.endpoint import SHOWN, Endpoint, Sampling
from regen.narratives.narrate import narrate


def written_by(narrator, data, tmp_path, **options):
    return narrate(narrator, prepared=data, max_history=50, users=None, root=tmp_path / "data", **options)


def check_everything(server, artefact, ledger, users):
    """Counts equal the script's, and every text is the one that was written for its user."""
    requests = set(server.asked)
    refused = {request for request in requests if server.fault_of(request) in FINAL}
    assert len(requests) == 2 * users
    assert outcomes(ledger)["answered"] == 2 * users - len(refused)
    assert recorded(ledger) == requests - refused
    failures = pl.read_parquet(artefact.path / "failures.parquet")
    assert len(failures) == len(refused) == artefact.manifest["counts"]["failures"]
    assert failures["reason"].str.starts_with("refused: I cannot").all()
    narratives = pl.read_parquet(artefact.path / "narratives.parquet")
    expected = sum(5 if prompt == "reasons" else 1 for prompt in ("reasons", "endorsement") for _ in range(users))
    expected -= sum(5 if prompt == "reasons" else 1 for prompt in failures["prompt"])
    assert len(narratives) == expected
    assert (narratives["text"].str.extract(r"tag-(\w+)") == narratives["user_id"]).all()
    assert narratives.select("narrator", "model").unique().rows() == [("openai", "scripted-1")]


@pytest.mark.slow  # waits between attempts, as each fault alone does
def test_every_fault_in_one_run(narrator, prepared, tmp_path):
    with BadServer(timeout=6.0) as server:
        artefact = written_by(narrator(server, timeout=4.0), prepared(100), tmp_path)
        assert {server.fault_of(request) for request in server.asked} == set(FAULTS)
        check_everything(server, artefact, tmp_path / "ledger.sqlite", 100)
        assert Counter(server.sent).most_common(1)[0][1] == 1, "a request with a good answer was asked again"
        counts = outcomes(tmp_path / "ledger.sqlite")
        assert counts["invalid"] + counts["refused"] == sum(server.useless.values())
        assert 8 < server.most_under_way <= 32


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.slow  # waits out each fault; all in one run are below
def test_each_fault_alone(fault, narrator, prepared, tmp_path):
    with BadServer([fault], timeout=3.0, slow=0.05) as server:
        if fault in FINAL:
            with pytest.raises(ValueError, match="All 8 requests failed:\n.*refused: I cannot"):
                written_by(narrator(server, timeout=1.5), prepared(4), tmp_path)
            return
        artefact = written_by(narrator(server, timeout=1.5), prepared(4), tmp_path)
        check_everything(server, artefact, tmp_path / "ledger.sqlite", 4)
        again = 0 if fault in GOOD else 8
        assert len(server.asked) == 8 + again


def test_the_same_request_for_several_users_is_asked_once(narrator, prepared, tmp_path):
    with BadServer(["slow"]) as server:
        artefact = written_by(narrator(server), prepared(30, review="Nice."), tmp_path)
        assert Counter(server.asked).most_common(1)[0][1] == 1
        assert len(pl.read_parquet(artefact.path / "narratives.parquet")) == 30 * 6


def test_what_is_answered_is_not_asked_again_when_built_by_force(narrator, prepared, tmp_path):
    with BadServer(["none", "refusal"]) as server:
        data = prepared(6)
        first = written_by(narrator(server), data, tmp_path)
        asked = len(server.asked)
        refused = first.manifest["counts"]["failures"]
        again = written_by(narrator(server), data, tmp_path)
        assert (again.path, len(server.asked)) == (first.path, asked)
        server.faults = ["none"]
        whole = written_by(narrator(server), data, tmp_path, force=True)
        assert len(server.asked) == asked + refused
        assert whole.manifest["counts"]["failures"] == 0


def test_retry_after_holds_back_every_request(narrator, prepared, tmp_path):
    with BadServer(["429 with Retry-After"]) as server:
        start = time.monotonic()
        written_by(narrator(server, concurrency=2), prepared(4), tmp_path)
        assert time.monotonic() - start >= 4 * 0.05


def test_stops_before_max_cost_is_passed_and_goes_on_with_more(narrator, prepared, tmp_path):
    with BadServer(["none"]) as server:
        data = prepared(20)  # 40 answers at 0.002 dollars
        with pytest.raises(ValueError, match=r"max_cost=0.05 dollars would be exceeded: \$0.0\d+ were spent"):
            written_by(narrator(server, max_cost=0.05), data, tmp_path)
        asked = len(server.asked)
        assert 0.03 <= 0.002 * asked <= 0.05
        with pytest.raises(ValueError, match="max_cost=0.05"):
            written_by(narrator(server, max_cost=0.05), data, tmp_path)
        assert 0.002 * len(server.asked) <= 0.05, "what the first run paid counts in the second"
        artefact = written_by(narrator(server, max_cost=1.0), data, tmp_path)
        assert len(server.asked) == 40
        assert artefact.manifest["counts"]["failures"] == 0


def test_a_dead_endpoint_ends_the_run_early(narrator, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "DEAD", 5)
    with BadServer(["500"]) as server:
        dead = narrator(server, concurrency=2, max_attempts=1)
        with pytest.raises(
            ValueError, match="answers no request: 5 requests failed in a row, the last with 500: broken"
        ):
            written_by(dead, prepared(40), tmp_path)
        assert len(server.asked) <= 5 + 2


def stopped_for_money(server, narrator, data, tmp_path):
    """Leaves a ledger with some answers; gives how many."""
    with pytest.raises(ValueError, match="max_cost"):
        written_by(narrator(server, max_cost=0.03), data, tmp_path)
    assert server.sent
    return len(server.sent)


def test_a_dead_endpoint_ends_a_resumed_run_too(narrator, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "DEAD", 5)
    data = prepared(40)
    with BadServer(["none"]) as server:
        answered = stopped_for_money(server, narrator, data, tmp_path)
        server.faults, server.statuses = ["none"], {"tag-": (500, "broken")}
        with pytest.raises(ValueError, match="answers no request: 5 requests failed in a row"):
            written_by(narrator(server, concurrency=2, max_attempts=1), data, tmp_path)
        assert len(server.asked) <= answered + 5 + 2


@pytest.mark.parametrize("status", [400, 403])
def test_a_resumed_run_that_is_only_refused_ends_early(status, narrator, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "DEAD", 5)
    data = prepared(40)
    with BadServer(["none"]) as server:
        answered = stopped_for_money(server, narrator, data, tmp_path)
        server.statuses = {"tag-": (status, "not for you")}
        with pytest.raises(ValueError, match=f"5 requests failed in a row, the last with {status}: not for you"):
            written_by(narrator(server, concurrency=1), data, tmp_path)
        assert len(server.asked) == answered + 5
    assert not list((tmp_path / "data").glob("narrated-*"))


def test_no_credit_left_ends_the_run_and_builds_nothing(narrator, prepared, tmp_path):
    with BadServer(["none"], statuses={"tag-u0005": (402, "no credit left")}) as server:
        with pytest.raises(ValueError, match="refuses every request: 402: no credit left"):
            written_by(narrator(server, concurrency=1), prepared(40), tmp_path)
        assert len(server.asked) == 11  # two of each user before, and the one that was refused
    assert not list((tmp_path / "data").glob("narrated-*"))


def test_a_flagged_request_is_that_requests_fault(narrator, prepared, tmp_path):
    with BadServer(["none"], statuses={"tag-u0002": (403, "your input was flagged")}) as server:
        artefact = written_by(narrator(server, concurrency=1), prepared(6), tmp_path)
    failures = pl.read_parquet(artefact.path / "failures.parquet")
    assert failures["user_id"].unique().to_list() == ["u0002"]
    assert failures["reason"].to_list() == ["403: your input was flagged"] * 2
    assert artefact.manifest["counts"]["requests.answered"] == 10


def test_a_key_that_may_do_nothing_ends_the_run_early(narrator, prepared, tmp_path):
    with BadServer(["none"], statuses={"tag-": (403, "no access")}) as server:
        with pytest.raises(ValueError, match="answers no request: 8 requests failed in a row, the last with 403"):
            written_by(narrator(server, concurrency=1), prepared(40), tmp_path)
        assert len(server.asked) == runner.FORBIDDEN


@pytest.mark.parametrize("fault", ["no usage", "usage without counts", "usage of zero"])
def test_an_answer_without_counts_costs_the_most_it_can(fault, narrator, prepared, tmp_path):
    with BadServer([fault]) as server:  # an answer costs at most 0.005 dollars, and its prompt some thousandths
        with pytest.raises(
            ValueError, match=r"max_cost=0.02 .* answers came without `usage` and count with their maximum"
        ):
            written_by(narrator(server, max_cost=0.02), prepared(25), tmp_path)
        assert 1 <= len(server.asked) <= 3


def test_what_a_time_out_may_have_cost_is_not_forgotten(narrator, prepared, tmp_path):
    data = prepared(4)
    with BadServer(["time-out"], timeout=0.6) as server:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"max_cost=0.02 dollars would be exceeded"):
                written_by(narrator(server, timeout=0.2, concurrency=1, max_cost=0.02), data, tmp_path)
        assert len(server.asked) <= 3
    assert outcomes(tmp_path / "ledger.sqlite").keys() == {"lost"}


def test_an_endpoint_that_is_not_there_costs_nothing_and_is_named(narrator, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "DEAD", 3)
    with BadServer(["none"]) as server:
        gone = narrator(server, concurrency=1, max_attempts=1, max_cost=0.02)
    with pytest.raises(ValueError, match=f"the last with {server.url} cannot be reached"):
        written_by(gone, prepared(9), tmp_path)
    assert not outcomes(tmp_path / "ledger.sqlite")


def test_a_fault_of_ours_loses_no_answer_under_way(narrator, prepared, tmp_path, monkeypatch):
    real = Endpoint._reply

    def reply(self, completion):
        if "tag-u0001" in completion.choices[0].message.content:
            raise MemoryError("no room")
        return real(self, completion)

    monkeypatch.setattr(Endpoint, "_reply", reply)
    with BadServer(["slow"]) as server:
        with pytest.raises(MemoryError, match="no room"):
            written_by(narrator(server, concurrency=16), prepared(8), tmp_path)
        lost = sum("tag-u0001" in body for body in server.bodies)
        assert 1 <= lost <= 2
        assert outcomes(tmp_path / "ledger.sqlite")["answered"] == len(server.asked) - lost


def test_waits_grow_where_the_endpoint_says_retry_after_0(narrator, prepared, tmp_path, monkeypatch):
    with BadServer(["429 with Retry-After 0"]) as server:
        patient = narrator(server, concurrency=1)
        waits = []
        monkeypatch.setattr(runner, "BACKOFF", lambda state: waits.append(state.attempt_number) or 0.0)
        written_by(patient, prepared(2), tmp_path)
    assert waits == [1] * 4


@pytest.mark.slow  # waits for the rate
def test_rate_limit_spreads_requests(narrator, prepared, tmp_path):
    with BadServer(["none"]) as server:
        start = time.monotonic()
        written_by(narrator(server, requests_per_minute=1200), prepared(75), tmp_path)  # 100 at once, then 20 a second
        assert time.monotonic() - start > 2.0
        assert len(server.asked) == 150


def test_falls_back_where_the_endpoint_refuses_schemas(narrator, prepared, tmp_path):
    with BadServer(["none"], refuse_schema=True) as server:
        artefact = written_by(narrator(server, concurrency=1), prepared(3), tmp_path)
        check_everything(server, artefact, tmp_path / "ledger.sqlite", 3)
        assert sum('"json_schema"' in body for body in server.bodies) == 1


def test_no_request_under_way_is_lost_when_schemas_are_refused(narrator, prepared, tmp_path):
    with BadServer(["none"], refuse_schema=True) as server:
        artefact = written_by(narrator(server, concurrency=32), prepared(20), tmp_path)
    assert artefact.manifest["counts"]["requests.answered"] == 40
    assert 1 < sum('"json_schema"' in body for body in server.bodies) <= 32


def test_a_wrong_key_ends_the_run_and_shows_nowhere(narrator, prepared, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TEST_KEY", "secret-key-123")
    with BadServer(["none"], key="another") as server:
        with pytest.raises(ValueError, match="refuses every request: 401: Wrong key Bearer \\*\\*\\*") as error:
            written_by(narrator(server), prepared(3), tmp_path)
        assert "secret-key" not in str(error.value) + caplog.text
    with BadServer(["none"], key="secret-key-123") as server:
        written_by(narrator(server), prepared(3), tmp_path)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"secret-key" not in path.read_bytes(), path


def test_no_part_of_a_key_is_kept_where_a_message_is_cut(narrator, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "secret-key-123")
    message = "x" * (SHOWN - 12) + "secret-key-123"
    with BadServer(["none"], statuses={"tag-u0000": (400, message)}) as server:
        artefact = written_by(narrator(server), prepared(2), tmp_path)
    reason = pl.read_parquet(artefact.path / "failures.parquet")["reason"][0]
    assert reason.startswith("400: xxx")
    assert "secret" not in reason


def test_a_pickled_endpoint_holds_no_key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", "secret-key-123")
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=5, seed=None)
    options = {"model": "m", "base_url": "https://h/v1", "api_key_env": "TEST_KEY", "timeout": 1.0}
    pickled = pickle.dumps(Endpoint(sampling=sampling, **options))
    assert b"secret-key" not in pickled
    monkeypatch.delenv("TEST_KEY")
    with pytest.raises(ValueError, match="https://h/v1 needs a key. Set the environment variable TEST_KEY"):
        pickle.loads(pickled)._key()


def test_keys_and_urls_that_cannot_be_used(monkeypatch):
    sampling = Sampling(temperature=0.0, top_p=1.0, max_tokens=5, seed=None)
    options = {"model": "m", "api_key_env": "TEST_KEY", "sampling": sampling, "timeout": 1.0}
    with pytest.raises(ValueError, match="api.example.com/v1 needs a key. Set the environment variable TEST_KEY"):
        Endpoint(base_url="https://api.example.com/v1", **options)
    with pytest.raises(ValueError, match="endpoint at h holds credentials"):
        Endpoint(base_url="https://me:word@h/v1", **options)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
    assert Endpoint(base_url=None, **options).base_url == "http://127.0.0.1:9/v1"


@pytest.mark.slow
def test_killed_five_times_at_500_users_with_every_fault(shoppers, tmp_path):
    chance = random.Random(0)
    ledger = tmp_path / "ledger.sqlite"
    with BadServer(timeout=3.0, slow=20.0, faults=[*FAULTS[:-1]] * 8 + ["slow"]) as server:
        run = command(server, shoppers(500), tmp_path)
        run = [option.replace("narrator.timeout=2", "narrator.timeout=25") for option in run]
        asked_before_kill = []
        for _ in range(5):
            process = subprocess.Popen(
                run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )
            begun = len(server.asked)
            while len(server.asked) == begun:  # until it is at work
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(chance.uniform(0.1, 2.5))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            time.sleep(0.3)
            asked_before_kill.append((len(server.asked), recorded(ledger)))
            assert not list((tmp_path / "artefacts").glob("narrated-*"))
        done = subprocess.run(run, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        for number, known in asked_before_kill:
            assert not known & set(server.asked[number:]), "a request whose answer was recorded was asked again"
        artefact = next((tmp_path / "artefacts").glob("narrated-*"))
        from regen.storage.artefacts import open_artefact

        check_everything(server, open_artefact(artefact), ledger, 500)
        repeated = sum(count - 1 for count in Counter(server.sent).values())
        assert repeated <= 5 * 16, "more was asked again than was under way when it was killed"


@pytest.mark.slow
def test_an_interrupt_waits_for_the_answers_under_way(shoppers, tmp_path):
    with BadServer(["slow"], slow=1.0) as server:
        run = command(server, shoppers(100), tmp_path)
        process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(server.asked) < 16:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130, errors
        assert "Interrupted. The same command continues" in errors
        assert recorded(tmp_path / "ledger.sqlite") == set(server.asked)


def test_a_file_that_is_no_ledger_is_refused(narrator, prepared, tmp_path):
    Path(tmp_path / "ledger.sqlite").write_text("not a database " * 100)
    with BadServer(["none"]) as server, pytest.raises(ValueError, match="ledger.sqlite: not a ledger of regen"):
        written_by(narrator(server), prepared(2), tmp_path)
