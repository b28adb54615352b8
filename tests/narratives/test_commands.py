"""narrate, rate, release as commands: reviews as published become a data set with ratings; mistakes name their key."""

import gzip
import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import datasets
import polars as pl
import pytest
from narratives.bad_server import BadServer

from regen.config.schema import CONF
from regen.data.tables import DataError

USERS = 30
NOWHERE = "http://127.0.0.1:9/v1"  # nobody listens there
RATER = ["rater=[local]", "rater.local.concurrency=4"]
OPENAI = ["narrator=openai", "narrator.model=scripted"]


@pytest.fixture(scope="module")
def amazon(tmp_path_factory):
    """Both files of a vertical as published, as overrides of the config."""
    folder = tmp_path_factory.mktemp("amazon")
    reviews = [
        {
            "reviewerID": f"A{user:02}",
            "reviewerName": "Zacharias Reviewer",
            "asin": f"B{(user + at) % 9}",
            "unixReviewTime": 86_400 * (at + 1),
            "overall": float(1 + (user + at) % 5),
            "reviewText": f"Fine, tag-A{user:02}." if at else f"First, tag-A{user:02}.",
        }
        for user in range(USERS)
        for at in range(2)
    ]
    products = [{"asin": f"B{item}", "title": f"Gift box {item}", "category": ["Gifts", "Boxes"]} for item in range(9)]
    for name, rows in (("reviews", reviews), ("metadata", products)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.json.gz").write_bytes(gzip.compress(text.encode()))
    paths = [f"source.{name}={folder}/{name}.json.gz" for name in ("reviews", "metadata")]
    return ["source=amazon2018", "source.folder=null", *paths]


@pytest.fixture
def run(amazon, tmp_path, monkeypatch, capsys, logs_as_they_were):
    """Runs a command in this process."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def done(command, *overrides):
        known = [*amazon, f"paths.data_dir={tmp_path}/data", f"hydra.run.dir={tmp_path}/logs"]
        if command == "release":
            known.append(f"folder={tmp_path}/release")
        monkeypatch.setattr(sys, "argv", [f"regen {command}", *known, *overrides])
        code = 0
        try:
            importlib.import_module(f"regen.commands.{command}").run()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code or 0, out=out, err=err, last=out.strip().splitlines()[-1] if out else "")

    return done


@pytest.mark.slow  # four commands in a row
def test_published_reviews_become_a_release_with_ratings(run, tmp_path):
    narrated = run("narrate", "narrator=template")
    assert narrated.code == 0, narrated.err
    assert len(pl.read_parquet(f"{narrated.last}/narratives.parquet")) == 6 * USERS
    with BadServer(["none", "extra keys"]) as server:
        at = [*RATER, f"rater.local.base_url={server.url}", "draws=2"]
        rated = run("rate", *at)
        assert rated.code == 0, rated.err
        assert len(server.asked) == 2 * 4 * USERS + 20
        assert run("rate", *at).last == rated.last
        assert len(server.asked) == 2 * 4 * USERS + 20
    for shown in ("user_richness", "draws of local", "krippendorff", "local: 15 of 15", "0 of 20 control pairs"):
        assert shown in rated.out
    released = run("release", f"ratings={rated.last}", "split.validation=0.3")
    assert released.code == 0, released.err
    loaded = datasets.load_dataset(f"{tmp_path}/release", "ratings", cache_dir=f"{tmp_path}/cache")
    assert sum(map(len, loaded.values())) == 15 * USERS
    card = (tmp_path / "release" / "README.md").read_text()
    for said in (
        "Amazon Product Reviews, 2018",
        "gift_cards",
        "| local | user_richness | user_richness | 0 | 0 | 0 | 100 |",
    ):
        assert said in card
    again = run("release", f"ratings={rated.last}")
    assert again.code == 1
    assert f"{tmp_path}/release exists. Set folder to another one, or force=true" in again.err
    unsent = run("release", f"ratings={rated.last}", "split.validation=0.3", "force=true", "push_to=me/mine")
    assert unsent.code == 1
    assert "push_to=me/mine: the hub did not take it" in unsent.err
    assert f"The data set stays in {tmp_path}/release; give the command again with force=true." in unsent.err
    assert (tmp_path / "release" / "README.md").is_file()
    other = run("release", "narrator.max_history=1", f"ratings={rated.last}", "force=true")
    assert other.code == 1
    assert f"error: ratings={rated.last}: these rate the data" in other.err
    assert (tmp_path / "release" / "README.md").read_text() == card
    quiet = run("release", "split.validation=0.3", "force=true")
    assert quiet.code == 0, quiet.err
    assert not (tmp_path / "release" / "ratings").exists()


def test_a_language_model_narrates_through_the_command(run, tmp_path):
    with BadServer(["none", "truncated JSON"]) as server:
        at = [*OPENAI, f"narrator.base_url={server.url}", "narrator.concurrency=4", "narrator.users=6"]
        done = run("narrate", *at)
        assert done.code == 0, done.err
        assert len(server.sent) == 12
        again = run("narrate", *at, "force=true")
        assert (again.last, len(server.sent)) == (done.last, 12)
    narratives = pl.read_parquet(f"{done.last}/narratives.parquet")
    assert (narratives["text"].str.extract(r"tag-(\w+)") == narratives["user_id"]).all()
    assert narratives["user_id"].n_unique() == 6
    assert (tmp_path / "data" / "ledger.sqlite").exists()


@pytest.mark.parametrize(
    ("command", "overrides", "numbers"),
    [
        ("narrate", [*OPENAI, "narrator.base_url=URL"], {"requests": "60", "already answered": "0", "completion tokens at most": "61,440", "cost at most": "set price.prompt and price.completion"}),
        ("narrate", [*OPENAI, "narrator.base_url=URL", "narrator.users=2", "narrator.price.prompt=0", "narrator.price.completion=10", "narrator.max_tokens=1000"], {"requests": "4", "cost at most": "$0.0400"}),
        ("narrate", [*OPENAI, "narrator.shared_category=0.5", "narrator.base_url=URL"], {"requests": "69", "completion tokens at most": "70,656"}),
        ("rate", [*RATER, "rater.local.base_url=URL"], {"rater local": "", "requests": "1,220", "completion tokens at most": "312,320"}),
        ("rate", [*RATER, "rater.local.base_url=URL", "controls=0"], {"rater local": "", "requests": "1,200", "completion tokens at most": "307,200"}),
        ("rate", [*RATER, "rater.local.base_url=URL", "users=1", "draws=1", "rater.local.price={prompt: 0, completion: 1000}"], {"requests": "4", "cost at most": "$1.0240"}),
    ],
)  # fmt: skip
def test_a_dry_run_counts_and_asks_nothing(run, tmp_path, command, overrides, numbers):
    with BadServer(["none"]) as server:
        done = run(command, *(override.replace("URL", server.url) for override in overrides), "dry_run=true")
        assert done.code == 0, done.err
        assert server.bodies == []
    lines = {line[:26].strip(): line[26:].strip() for line in done.out.splitlines()}
    assert numbers.items() <= lines.items()
    assert not (tmp_path / "data" / "ledger.sqlite").exists()
    assert not list((tmp_path / "data").glob("rated-*"))


def test_rating_never_pays_for_narratives(run):
    with BadServer(["none"]) as server:
        at = [
            *RATER,
            f"rater.local.base_url={server.url}",
            *OPENAI,
            f"narrator.base_url={server.url}",
            "narrator.users=2",
        ]
        for more in ([], ["dry_run=true"]):
            done = run("rate", *at, *more)
            assert done.code == 1
            assert "none of the 4 requests for narratives is answered yet. Run regen narrate" in done.err
        assert server.bodies == []


def test_a_dry_run_knows_what_is_answered(run):
    with BadServer(["none"]) as server:
        at = [*OPENAI, f"narrator.base_url={server.url}", "narrator.concurrency=4"]
        assert run("narrate", *at, "narrator.users=3").code == 0
        done = run("narrate", *at, "narrator.users=5", "dry_run=true")
        assert len(server.asked) == 6
    lines = {line[:26].strip(): line[26:].strip() for line in done.out.splitlines()}
    assert (lines["requests"], lines["already answered"]) == ("10", "6")
    assert int(lines["completion tokens at most"].replace(",", "")) == 4 * 1024


AT = [*OPENAI, f"narrator.base_url={NOWHERE}"]
MISTAKES = [  # command, overrides, exit code, all of which the message must hold
    ("narrate", ["narrator=templte"], 2, ["'templte' is not an option of 'narrator'", "mean 'template'?"]),
    ("narrate", ["narrator.max_histroy=3"], 2, ["Did you mean 'narrator.max_history'?"]),
    ("narrate", ["narrator=openai"], 2, ["'narrator.model' has no value", "narrator.model="]),
    ("narrate", ["narrator=source"], 1, ["narrator=source writes no narratives. Choose template or openai"]),
    ("narrate", ["dry_run=true"], 1, ["dry_run=true: narrator=template asks no endpoint"]),
    ("narrate", ["narrator.shared_category=1.5"], 2, ["narrator.shared_category=1.5 has to be 0 to 1"]),
    ("narrate", ["narrator.users=0"], 2, ["narrator.users=0 has to be 1 to"]),
    ("narrate", OPENAI, 1, ["narrator: https://api.openai.com/v1 needs a key", "OPENAI_API_KEY"]),
    ("narrate", [*AT, "max_cost=1"], 1, ["narrator: max_cost=1.0 needs the endpoint's price", "price.prompt"]),
    ("narrate", [*AT, "narrator.price.prompt=1"], 1, ["narrator.price needs both prompt and completion"]),
    ("narrate", [*AT, "narrator.concurrency=0"], 2, ["narrator.concurrency=0 has to be 1 to"]),
    ("rate", ["draws=0"], 2, ["draws=0 has to be 1 to"]),
    ("rate", ["controls=2"], 2, ["controls=2", "0 to 1"]),
    ("rate", ["users=0"], 2, ["users=0 has to be 1 to"]),
    ("rate", ["rater=[lokal]"], 2, ["'rater'"]),
    ("rate", ["max_cost=1"], 1, ["rater.local: max_cost=1.0 needs the endpoint's price"]),
    ("rate", ["narrator=source"], 1, ["has no narratives to rate", "narrator=template or openai"]),
    ("release", ["ratings=nowhere"], 1, ["nowhere: no such artefact folder"]),
    ("release", ["narrator=source"], 1, ["has no narratives to release", "narrator=template or openai"]),
    ("release", ["licence=mit"], 2, ["Did you mean 'license'?"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "overrides", "code", "parts"),
    MISTAKES,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_in_short(run, tmp_path, command, overrides, code, parts):
    if command == "rate":
        overrides = ["rater=[local]", f"rater.local.base_url={NOWHERE}", *overrides]
    done = run(command, *overrides)
    assert done.code == code, done.err
    message = done.err[done.err.index("error: ") :]
    for part in parts:
        assert part in message
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 3, message
    left = {path.name.partition("-")[0] for path in (tmp_path / "data").glob("*-*")}
    assert left <= {"prepared", "narrated"}
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("address", ["https://me:pass-word@h/v1", "https://h/v1?api-key=pass-word"])
def test_credentials_in_an_address_reach_neither_disk_nor_screen(run, tmp_path, address):
    done = run("narrate", *OPENAI, f"narrator.base_url={address}")
    assert done.code == 2
    assert "narrator.base_url= has credentials or a query" in done.err
    assert "pass-word" not in done.out + done.err
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["narrate", "rate", "release"])
def test_help_says_what_to_type(command):
    line = [sys.executable, "-m", "regen", command, "--help"]
    done = subprocess.run(line, cwd=CONF.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"regen {command} " in done.stdout


@pytest.fixture
def data_module(amazon, small_config):
    """What a training run on these reviews would read."""
    from regen.pipeline import build_inputs, vectors_of
    from regen.training.assembly import build_data

    def of(lm, *overrides):
        cfg = small_config(*amazon, "vertical=gift_cards", "encoder=none", *overrides, without="source.")
        inputs = build_inputs(cfg)
        return build_data(cfg, inputs, vectors_of(cfg, inputs), lm)

    return of


@pytest.mark.slow  # loads torch and all that trains
def test_training_without_narratives_says_to_choose_a_narrator(data_module):
    with pytest.raises(
        DataError, match="no purchase_reason to train on. Choose what writes them: narrator=template or"
    ):
        data_module(None)


@pytest.mark.slow
def test_training_takes_what_a_narrator_wrote(data_module, tiny_lm):
    data = data_module(tiny_lm, "narrator=template")
    assert sum(map(len, data.splits.values())) == USERS
    texts = [tiny_lm.tokenizer.decode(text) for text in data.splits["train"].targets]
    assert all("gift box" in text for text in texts), texts
