"""The demo: which runs it shows, whom it finds, what its service answers, and what it refuses."""

import asyncio
import json
import os
import socket
from contextlib import closing

import httpx
import pytest
import yaml

from regen.config.objects import plain
from regen.serving import NarrativeModel
from regen.serving.demo.app import PAGE, build_app
from regen.serving.demo.guard import BODY_BYTES
from regen.serving.demo.runs import features, newest_grid
from regen.serving.demo.serve import load_shown, serve

FEATURES = ["purchase_reason", "product_endorsement"]


@pytest.fixture(scope="session")
def shown(grid):
    return load_shown(grid)


@pytest.fixture(scope="session")
def app(shown):
    return build_app(shown, hosts=["demo"])


@pytest.fixture
def ask(app):
    """Sends one request to the service in this process."""

    def asked(method, path, *, host="demo", **options):
        async def send():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    return asked


@pytest.fixture
def history(ask):
    """What a test user bought, as the page sends it."""
    user = ask("GET", "/api/users", params={"limit": 1}).json()["found"][0]
    known = ask("GET", "/api/user", params={"user_id": user["user_id"]}).json()["histories"][0]
    sent = ("item_id", "rating", "review_title", "review")
    return [{name: purchase[name] for name in sent} for purchase in known["purchases"]]


@pytest.fixture
def run_folder(tmp_path, small_config):
    """Makes a folder that looks like a finished run's."""
    config = plain(small_config())
    made = []

    def make(encoder, *, finished=True, inputs=None, **changes):
        folder = tmp_path / "runs" / f"{encoder}-{len(made)}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump({**config, "encoder": {"name": encoder}, **changes}))
        (folder / "run.json").write_text(json.dumps({"inputs": {"prepared": "aaa", **(inputs or {})}}))
        if finished:
            (folder / "model.safetensors").touch()
            os.utime(folder / "model.safetensors", (len(made), len(made)))
        made.append(folder)
        return folder

    return make


def names(trios):
    return [{encoder: run.folder.name for encoder, run in trio.items()} for trio in trios]


def test_the_newest_complete_grid_is_shown_with_all_its_features(run_folder, tmp_path):
    for encoder in ("cf", "content", "both", "none"):
        run_folder(encoder)
    for encoder in ("both", "content", "cf"):
        run_folder(encoder, feature={"product_endorsement": {"prompt": "Say:", "withhold_final_review": True}})
    run_folder("cf", adapter={"name": "mlp"})
    run_folder("both", finished=False)
    trios = newest_grid(tmp_path / "runs")
    assert names(trios) == [
        {"cf": "cf-6", "content": "content-5", "both": "both-4"},
        {"cf": "cf-0", "content": "content-1", "both": "both-2"},
    ]
    assert [features(trio) for trio in trios] == [["product_endorsement"], ["purchase_reason"]]
    for encoder in ("content", "both"):
        run_folder(encoder, adapter={"name": "mlp"})
    assert names(newest_grid(tmp_path / "runs")) == [{"cf": "cf-7", "content": "content-9", "both": "both-10"}]


def test_what_is_missing_is_named_with_its_command(run_folder, tmp_path):
    run_folder("none")
    with pytest.raises(
        ValueError, match="no finished run with encoder=cf or content or both. Train all three: make grid"
    ):
        newest_grid(tmp_path / "runs")
    run_folder("cf", seed=3)
    run_folder("both", seed=3)
    with pytest.raises(
        ValueError, match="there is no content. Train what is missing: python train.py encoder=content .*seed=3"
    ):
        newest_grid(tmp_path / "runs")
    with pytest.raises(FileNotFoundError, match="neither the folder of a grid"):
        newest_grid(tmp_path / "nothing")


def test_runs_on_different_data_are_not_mixed(run_folder, tmp_path):
    run_folder("cf", inputs={"cf": "ccc"})
    run_folder("content")
    run_folder("both", inputs={"cf": "ddd"})
    with pytest.raises(ValueError, match="cf-0 was trained on cf data ccc, both-2 on ddd"):
        newest_grid(tmp_path / "runs")


def test_users_are_found_by_id_and_by_what_they_bought(shown):
    everyone, total = shown.users.search("", 100)
    assert total == len(everyone) == 40
    splits = [user["split"] for user in everyone]
    assert splits == sorted(splits, key=["test", "validation", "train"].index)
    first = everyone[0]
    assert shown.users.search(f" {first['user_id'].upper()} ", 5) == ([first], 1)
    found, total = shown.users.search(first["latest"].upper(), 1)
    assert len(found) == 1 <= total < 40
    assert shown.users.search("nobody bought this", 5) == ([], 0)


def test_a_user_opens_with_history_and_references(shown):
    user = shown.users.search("", 1)[0][0]
    opened = shown.users.open(user["user_id"])
    (history,) = opened["histories"]
    assert history["references"].keys() == set(FEATURES)
    assert [purchase["day"] for purchase in history["purchases"]] == sorted(p["day"] for p in history["purchases"])
    assert history["purchases"][-1]["title"] == user["latest"]
    assert len(history["purchases"]) == user["purchases"]


def test_models_write_side_by_side_what_each_writes_alone(ask, shown, history):
    response = ask("POST", "/api/narratives", json={"feature": "product_endorsement", "history": history})
    assert response.status_code == 200
    events = [json.loads(line) for line in response.text.splitlines()]
    models = shown.models["product_endorsement"]
    assert events[0] == {"cf_shares": models["both"].cf_shares(history, feature="product_endorsement")}
    assert len(events[0]["cf_shares"]) == len(history)
    for name, model in models.items():
        assert isinstance(model, NarrativeModel)
        pieces = [event["piece"] for event in events if event.get("model") == name and "piece" in event]
        assert pieces.pop() is None
        assert "".join(pieces) == model.narrate(history, feature="product_endorsement").text
    order = [event["model"] for event in events if event.get("piece")]
    assert order[:3] == ["cf", "content", "both"], "they take turns"


def test_about_names_models_features_and_data(ask, shown):
    about = ask("GET", "/api/about").json()
    assert about["models"] == ["cf", "content", "both"]
    assert {feature["name"]: feature["withholds_review"] for feature in about["features"]} == {
        "purchase_reason": False,
        "product_endorsement": True,
    }
    assert about["data"] == shown.data
    assert about["history_limit"] == 50
    assert len(about["runs"]) == 3


def test_items_are_found_by_their_words(ask, history):
    found = ask("GET", "/api/items", params={"query": "stapler", "limit": 3}).json()
    assert found["total"] >= len(found["found"]) == 3
    assert all("stapler" in item["title"].lower() for item in found["found"])
    assert ask("GET", "/api/items", params={"query": "no such thing"}).json() == {"found": [], "total": 0}


BAD = {
    "unknown feature": ({"feature": "purchase_raeson"}, 404, "Did you mean 'purchase_reason'?"),
    "empty history": ({"history": []}, 422, "at least 1 item"),
    "ten thousand items": (
        {"history": [{"item_id": "i0000001"}] * 10_000},
        422,
        "at most 1000 items",
    ),
    "more than the models read": (
        {"history": [{"item_id": "i0000001"}] * 51},
        422,
        "51 items; the models read at most 50",
    ),
    "a large list of wrong things": ({"history": [0] * 100_000}, 422, "body.history.0: Input should be"),
    "unknown item": ({"history": [{"item_id": "nothing"}]}, 422, "nothing"),
    "another field": ({"history": [{"item_id": "i0000001", "embedding": [1.0]}]}, 422, "body.history.0.embedding"),
    "wrong type": ({"history": [{"item_id": 7}]}, 422, "body.history.0.item_id: Input should be a valid string."),
    "a megabyte of review": (
        {"history": [{"item_id": "i0000001", "review": "a" * 1_000_000}]},
        422,
        "20000 characters",
    ),
}


@pytest.mark.parametrize(("change", "status", "message"), BAD.values(), ids=BAD)
def test_a_bad_request_is_told_what_is_wrong(ask, history, change, status, message):
    response = ask("POST", "/api/narratives", json={"feature": "purchase_reason", "history": history, **change})
    assert response.status_code == status
    assert message in response.json()["detail"]


@pytest.mark.parametrize("body", ['{"feature": "purchase_re', "", '"text"', '{"feature": NaN}'])
def test_half_a_body_is_refused(ask, body):
    response = ask("POST", "/api/narratives", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("body")


def test_strange_text_is_narrated_like_any_other(ask, history):
    review = (
        "<script>alert(1)</script> \u202eright to left\u2066 \x00\x1b[31m \U0001f642 \u0645\u0631\u062d\u0628\u0627"
    )
    strange = [{**history[0], "review": review, "review_title": "\x07"}, *history[1:]]
    response = ask("POST", "/api/narratives", json={"feature": "purchase_reason", "history": strange})
    assert response.status_code == 200
    assert json.loads(response.text.splitlines()[-1])["piece"] is None


def test_long_bodies_and_those_of_unknown_length_are_not_read(ask):
    assert ask("POST", "/api/narratives", content=b" " * (BODY_BYTES + 1)).status_code == 413

    async def endless():
        yield b"{"

    assert ask("POST", "/api/narratives", content=endless()).status_code == 411


def test_unknown_users_and_queries_too_long(ask):
    response = ask("GET", "/api/user", params={"user_id": "nobody"})
    assert response.status_code == 404
    assert "user_id='nobody'" in response.json()["detail"]
    assert ask("GET", "/api/items", params={"query": "a" * 201}).status_code == 422
    assert ask("GET", "/api/users", params={"limit": 0}).status_code == 422


def test_the_page_runs_nothing_but_its_own_files(ask):
    page = ask("GET", "/")
    assert page.status_code == 200
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert ask("GET", "/page.js").headers["content-security-policy"] == page.headers["content-security-policy"]
    assert ask("GET", "/../app.py").status_code == 404
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, f"{path.name} names another address"
        assert "innerHTML" not in text, f"{path.name} could turn a review into markup"


def test_another_site_cannot_pose_as_the_page(ask):
    assert ask("GET", "/api/about", host="evil.example").status_code == 400


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "example.org", "::"])
def test_other_addresses_than_loopback_are_refused(tmp_path, host):
    with pytest.raises(ValueError, match=f"host={host}: .* ssh -L 7860:127.0.0.1:7860"):
        serve(tmp_path, host=host, port=7860, ready=print)


def test_a_port_in_use_is_named_before_models_are_loaded(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port={port} of 127.0.0.1: .* port={port + 1}"):
            serve(tmp_path, host="127.0.0.1", port=port, ready=print)
