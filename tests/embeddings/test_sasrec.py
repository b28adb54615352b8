"""SASRec trains in another environment: what goes there, what comes back, and what is said when it fails."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from cf_worlds import factors_of_two_circles, purchases

from regen.config.objects import compose, plain
from regen.embeddings.cf import normalized_factors
from regen.embeddings.sasrec import SASRec
from regen.storage import identity
from regen.training.preflight import check_cf

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = REPOSITORY / ".venv-baselines" / "bin" / "python"
SEQUENCES = [np.array([3, 0, 3]), np.array([1, 3])]
WRITES = """
import polars as pl
users = pl.read_parquet(given)
bought = users.explode("items").rename({"items": "item"})
last = bought.group_by("item").agg(pl.col("user_id").cast(pl.Float64).max())
last.select("item", vector=pl.concat_list(pl.lit(1.0), "user_id")).write_parquet(made)
print("SASRec: epoch 1 of 1")
"""


@pytest.fixture
def fake(tmp_path):
    """Makes a Python that answers that it has RecTools, and runs the given lines instead of the script."""

    def make(lines=WRITES):
        path = tmp_path / "python"
        path.write_text(
            f"#!{sys.executable}\nimport json, sys\nif sys.argv[2] == '-c': sys.exit()\n"
            f"given, made, settings = *sys.argv[3:5], json.loads(sys.argv[5])\n{lines}"
        )
        path.chmod(0o755)
        return SASRec(factors=2, dropout=0.1, epochs=1, seed=0, python=str(path))

    return make


def test_the_script_reads_sequences_and_writes_vectors_of_items(fake, tmp_path, capfd):
    lines = WRITES + f"open({str(tmp_path / 'told')!r}, 'w').write(json.dumps([users['items'].to_list(), settings]))\n"
    factors = fake(lines).fit_sequences(SEQUENCES, items=5)
    assert factors.tolist() == [[1, 0], [1, 1], [0, 0], [1, 1], [0, 0]]
    told, settings = json.loads((tmp_path / "told").read_text())
    assert told == [[3, 0, 3], [1, 3]]
    assert settings == {"factors": 2, "dropout": 0.1, "epochs": 1, "seed": 0}
    said = capfd.readouterr()
    assert "SASRec: epoch 1 of 1" in said.err  # progress is no output of the command
    assert said.out == ""


def test_its_vectors_are_scaled_and_items_it_has_not_met_are_zero(fake):
    rows = purchases(np.array([[1, 1, 0, 1], [1, 0, 0, 1]]))
    vectors = normalized_factors(fake(), rows, alpha=0.0, items=4)
    assert np.linalg.norm(vectors[[0, 1, 3]], axis=1).mean() == pytest.approx(1)
    assert not vectors[2].any()


def test_a_failed_training_says_why(fake):
    with pytest.raises(ValueError, match="training ended with code 1") as caught:
        fake("print('x' * 100, file=sys.stderr)\nraise MemoryError('no room')").fit_sequences(SEQUENCES, items=5)
    assert str(caught.value).endswith("MemoryError: no room")


def test_vectors_of_another_width_are_refused(fake):
    model = replace(fake(), factors=4)
    with pytest.raises(ValueError, match=r"SASRec gave CF factors of shape \(3, 2\). .* 3 items x 4 factors"):
        normalized_factors(model, purchases(np.ones((2, 3))), alpha=0.0, items=3)


def test_users_with_one_purchase_teach_it_nothing(fake):
    with pytest.raises(ValueError, match="no training user has two. Use cf=als"):
        fake().fit_sequences([np.array([1]), np.array([2])], items=5)


@pytest.mark.parametrize("python", ["no/such/python", sys.executable], ids=["missing", "without RecTools"])
def test_a_missing_environment_is_named_with_its_command(python):
    model = SASRec(factors=2, dropout=0.1, epochs=1, seed=0, python=python)
    with pytest.raises(ValueError, match=f"cf=sasrec: {python} is no Python with RecTools.* Run `make baselines-env`"):
        model.fit_sequences(SEQUENCES, items=5)


def test_the_command_encode_refuses_it_before_any_work():
    with pytest.raises(ValueError, match="Run `make baselines-env`"):
        check_cf(compose(["cf=sasrec", "cf.model.python=nowhere"], root="encode"))


def test_an_odd_width_is_refused():
    with pytest.raises(ValueError, match="cf.model.factors=3: SASRec has 2 attention heads"):
        SASRec(factors=3, dropout=0.1, epochs=1, seed=0, python="python")


def test_all_but_the_place_of_its_python_identifies_the_vectors(monkeypatch):
    def request(*overrides):
        config = compose(["cf=sasrec", *overrides])
        return identity.cf("data", plain(config.cf), identity.split(plain(config.split)))

    assert request() == request("cf.model.python=elsewhere")
    for setting in ("factors=64", "dropout=0.5", "epochs=1", "seed=1"):
        assert request() != request(f"cf.model.{setting}")
    before = request()
    monkeypatch.setattr(SASRec, "version", 2)
    assert request() != before


needs_environment = pytest.mark.skipif(not ENVIRONMENT.is_file(), reason=f"no {ENVIRONMENT}: make baselines-env")


@pytest.mark.slow
@needs_environment
def test_a_real_sasrec_finds_two_circles_of_buyers():
    factors_of_two_circles(SASRec(factors=8, dropout=0.1, epochs=300, seed=0, python=str(ENVIRONMENT)))


@pytest.mark.slow
@needs_environment
def test_make_baselines_ranks_items_and_trains_once(tmp_path):
    """In a world in which item n + 1 follows item n."""
    folder = tmp_path / "outputs" / "data" / "baselines-1"
    folder.mkdir(parents=True)
    rows = [
        (f"{split}{user}", split, [f"i{(user + at) % 12:02}" for at in range(6)])
        for split, users in (("train", 120), ("validation", 12), ("test", 12))
        for user in range(users)
    ]
    pl.DataFrame(rows, schema=["user_id", "split", "items"], orient="row").write_parquet(folder / "sequences.parquet")

    def train():
        command = [str(ENVIRONMENT), str(REPOSITORY / "benchmarks" / "sasrec.py")]
        environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    said = train()
    assert "setting 3 of 3" in said
    assert "best on validation users: {" in said
    out = tmp_path / "outputs" / "baselines" / "baselines-1" / "sasrec.jsonl"
    lists = {row["user_id"]: row["items"] for row in map(json.loads, out.read_text().splitlines())}
    truth = {user: items for user, split, items in rows if split == "test"}
    assert lists.keys() == truth.keys()
    assert np.mean([lists[user][0] == items[-1] for user, items in truth.items()]) > 0.8
    assert not any(set(lists[user]) & set(items[:-1]) for user, items in truth.items())
    assert "is newer than its data, so nothing is trained" in train()
