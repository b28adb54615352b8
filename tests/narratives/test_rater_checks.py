"""Useless raters are noticed: control pairs are asked like all else, and stay out of the ratings."""

import re

import polars as pl
import pytest
from narratives import bad_server
from narratives.bad_server import BadServer
from scipy.stats import binomtest

from regen.narratives.histories import Purchase, UserHistory
from regen.narratives.rater_checks import CONTROLS, rating_cautions, sign_test, told_apart
from regen.narratives.raters import LEVELS
from regen.narratives.subjects import Subject, controls_of

GOOD_ANSWER = bad_server.good_answer
USERS = 24
SOME = 0.05
REQUESTS = 2 * USERS  # the history and the profile of each user; one draw


@pytest.fixture
def profiles(with_narratives):
    """Shoppers whose profile holds the tag that their reviews hold."""
    names = [f"u{user:04}" for user in range(USERS)]
    return with_narratives(
        USERS, [{"user_id": name, "feature": "user_profile", "text": f"tag-{name} likes it."} for name in names]
    )


def by_text(parsed, request):
    """Levels that depend on the narrative alone."""
    text = parsed["messages"][-1]["content"].rpartition("<narratives>")[2]
    at = int(bad_server.request_hash({"messages": text})[:8], 16)
    return {key: LEVELS[(at + number) % 7] for number, key in enumerate(GOOD_ANSWER(parsed, request))}


def reads(parsed, request):
    """Veracity is high if the history has the tag of the narrative."""
    history, _, text = parsed["messages"][-1]["content"].rpartition("<narratives>")
    levels = by_text(parsed, request)
    if "veracity" in levels:
        [tag] = re.findall(r"tag-\w+", text)
        levels["veracity"] = "very high" if tag in history else "very low"
    return levels


def by_request(parsed, request):
    """Levels drawn anew for every request."""
    return {key: LEVELS[(int(request[8:16], 16) + at) % 7] for at, key in enumerate(GOOD_ANSWER(parsed, request))}


@pytest.fixture
def judged(profiles, rater, rated, monkeypatch):
    """Ratings and control pairs of the profiles by a rater that answers so, and the number of requests."""

    def made(answers, **options):
        monkeypatch.setattr(bad_server, "good_answer", answers)
        with BadServer(["none"]) as server:
            artefact = rated([rater(server)], profiles, **{"controls": SOME, **options})
            assert len(set(server.asked)) == len(server.asked)
        assert len(pl.read_parquet(artefact.path / "failures.parquet")) == 0
        tables = [pl.read_parquet(artefact.path / f"{name}.parquet") for name in ("ratings", "controls")]
        return *tables, len(server.asked)

    return made


def test_a_rater_that_reads_tells_the_control_pairs_apart(judged):
    ratings, controls, asked = judged(reads, draws=3)
    assert asked == 3 * REQUESTS + 20
    assert controls.schema == CONTROLS
    assert controls["user_id"].n_unique() == 20
    assert (controls["user_id"] != controls["shuffled_user_id"]).all()
    [row] = told_apart(controls).rows()
    assert row == ("a", 20, 20, 0, 0, 7.0, 1.0, 0.5**20)
    assert rating_cautions(ratings, controls) == []
    without, none, _ = judged(reads, draws=3, controls=0)
    assert without.equals(ratings), "controls are no ratings"
    assert none.is_empty()
    assert rating_cautions(without, none) == []


def test_a_constant_rater_is_useless_in_both_ways(judged):
    constant, blind = rating_cautions(*judged(GOOD_ANSWER)[:2])
    assert constant.startswith("a: 5 of 5 attributes have one score for all users, for instance 4 of 7 for ")
    assert "the limit is 50%" in constant
    assert "0 of 20 control pairs, and lower in 0 (sign test: p = 1, the limit is 0.05)" in blind
    for caution in (constant, blind):
        assert "Use a larger or another model (rater.NAME.model=)." in caution


@pytest.mark.parametrize("answers", [by_text, by_request])
def test_a_rater_whose_scores_do_not_follow_the_history_is_useless(judged, answers):
    ratings, controls, _ = judged(answers)
    [caution] = rating_cautions(ratings, controls)
    assert caution.startswith("a: veracity is higher for the genuine history than for another user's in ")
    [row] = told_apart(controls).rows(named=True)
    assert row["p"] > 0.05
    assert (row["equal"] == 20) == (answers is by_text)


@pytest.mark.slow  # asks everything four times
def test_an_interrupted_run_asks_no_control_twice(profiles, rater, rated, monkeypatch):
    """An answer costs 0.002 dollars; the money of the first run ends among the controls, which come last."""
    monkeypatch.setattr(bad_server, "good_answer", reads)
    with BadServer(["none"]) as server:
        with pytest.raises(ValueError, match="max_cost=0.12 dollars would be exceeded"):
            rated([rater(server, concurrency=1)], profiles, controls=SOME, max_cost=0.12)
        assert REQUESTS < len(server.asked) < REQUESTS + 20
        artefact = rated([rater(server)], profiles, controls=SOME, max_cost=1)
        assert len(set(server.asked)) == len(server.asked) == REQUESTS + 20
        rated([rater(server)], profiles, controls=SOME, force=True)
        rated([rater(server)], profiles, controls=0)
        assert len(server.asked) == REQUESTS + 20
    assert artefact.manifest["counts"]["control_pairs"] == 20
    assert artefact.manifest["counts"]["ratings"] == 5 * USERS


def test_a_control_that_fails_is_listed_as_one(profiles, rater, rated):
    with BadServer(["none", "refusal"]) as server:
        artefact = rated([rater(server)], profiles, controls=SOME)
    failures = pl.read_parquet(artefact.path / "failures.parquet")
    controls = pl.read_parquet(artefact.path / "controls.parquet")
    failed = failures.filter(pl.col("prompt") == "rate_user_summary control")["user_id"]
    assert 0 < len(controls) < 20 - len(failed) < 20
    assert not set(controls["user_id"]) & set(failures.filter(pl.col("prompt") != "rate_user_richness")["user_id"])


def people(count, items=50):
    """Users who bought two of so many items, with a reason about the first one and a profile."""
    empty = dict.fromkeys(Purchase.__dataclass_fields__)
    return [
        Subject(
            UserHistory(
                f"u{user}",
                tuple(
                    Purchase(**empty | {"item_id": f"i{(user + at) % items}", "title": f"Thing {(user + at) % items}"})
                    for at in range(2)
                ),
            ),
            {"purchase_reason": "Why.", "user_profile": "Who."},
            {"purchase_reason": f"i{user % items}"},
        )
        for user in range(count)
    ]


@pytest.mark.parametrize(
    ("users", "share", "count"),
    [(1, 1.0, 0), (2, 0.05, 2), (30, 0.05, 20), (30, 0.0, 0), (1000, 0.05, 50), (1000, 1.0, 100)],
)
def test_so_many_users_have_a_control(users, share, count):
    controls = controls_of(people(users), share)
    assert len(controls) == len({control.subject.history.user_id for control in controls}) == count


def test_a_control_is_the_same_text_with_the_history_of_someone_who_bought_nothing_of_it(rater):
    controls = controls_of(people(1000), 0.05)
    assert {control.stage for control in controls} == {"purchase_reason", "user_summary"}
    for control in controls:
        mine, theirs = (
            {purchase.item_id for purchase in subject.history.purchases} for subject in (control.subject, control.other)
        )
        assert not mine & theirs
    more = controls_of(people(1100), 0.05)
    assert len({repr(control) for control in controls} & {repr(control) for control in more}) > 30
    with BadServer(["none"]) as server:
        genuine, shuffled = controls[0].requests(rater(server).request_limits)
    assert genuine.user_id == shuffled.user_id
    assert (shuffled.prompt, shuffled.draw) == (f"{genuine.prompt} control", 0)
    ours, others = (request.messages[-1]["content"].partition("<narratives>") for request in (genuine, shuffled))
    assert ours[0] != others[0]
    assert ours[2] == others[2]
    assert genuine.messages[0] == shuffled.messages[0]


def test_where_all_bought_the_same_any_other_history_is_taken():
    assert len(controls_of(people(5, items=2), 0.05)) == 5


@pytest.mark.parametrize(("higher", "lower"), [(0, 0), (5, 0), (0, 5), (15, 5), (14, 6), (60, 40)])
def test_the_sign_test_is_that_of_scipy(higher, lower):
    wanted = binomtest(higher, higher + lower, alternative="greater").pvalue if higher + lower else 1.0
    assert sign_test(higher, lower) == pytest.approx(wanted)


def test_four_pairs_are_too_few_to_judge_a_rater():
    row = {"user_id": "u", "stage": "user_summary", "shuffled_user_id": "v", "rater": "a", "genuine": 7, "shuffled": 1}
    no_ratings = pl.DataFrame(schema={"rater": str, "stage": str, "attribute": str, "score": pl.Int8})
    [caution] = rating_cautions(no_ratings, pl.DataFrame([row] * 4, schema=CONTROLS))
    assert caution.startswith("a: 4 control pairs cannot show")
    assert "5 is the least. Rate more users." in caution
    assert rating_cautions(no_ratings, pl.DataFrame([row] * 5, schema=CONTROLS)) == []
