"""The demo of a conversation: its service, and its page in a real browser."""

import asyncio
import json
import shutil

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import browser, served, watched_pages  # noqa: F401
from small import quick_embeddings

from regen.data.critiques import critique
from regen.serving.demo.conversation import suggested
from regen.serving.demo.serve import load_app

pytestmark = pytest.mark.slow  # a page in a browser, and the service behind it
WIDTHS = {"phone": 375, "desktop": 1280}


@pytest.fixture(scope="module")
def app(cells):
    with quick_embeddings():
        yield load_app(cells[1], "cpu", hosts=["127.0.0.1", "demo"])


@pytest.fixture
def ask(app):
    def asked(method, path, **options):
        async def send():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://demo") as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    return asked


def turn(ask, history, *turns):
    answer = ask("POST", "/api/converse", json={"history": history, "turns": list(turns)})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def test_three_turns(ask, talker):
    user = ask("GET", "/api/users", params={"limit": 1}).json()["found"][0]
    purchases = ask("GET", "/api/user", params={"user_id": user["user_id"]}).json()["histories"][0]["purchases"]
    history, turns, shown = [one["item_id"] for one in purchases[:-1]], [], set()
    for _ in range(3):
        first, *pieces, end = turn(ask, history, *turns)
        item = first["items"][0]
        assert item["item_id"] not in {*history, *shown}
        assert end == {"piece": None}
        assert "".join(one["piece"] for one in pieces)
        assert 1 <= len(first["suggested"]) <= 3
        shown.add(item["item_id"])
        turns.append({"item_id": item["item_id"], "critique": first["suggested"][0]})


BAD = {
    "an unknown item": ({"history": ["zz"]}, "no title, and item_id='zz' has none here"),
    "nothing bought": ({"history": []}, "body.history"),
    "a long critique": ({"history": ["i0000001"], "turns": [{"item_id": "i0000002", "critique": "x" * 501}]}, "at most 500"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_is_said(ask, kind):
    body, says = BAD[kind]
    answer = ask("POST", "/api/converse", json=body)
    assert answer.status_code == 422
    assert says in answer.json()["detail"]


def test_suggested_critiques_are_those_of_training_and_differ():
    first = {"item_id": "a", "title": "Blue pen", "brand": "X", "category": "Pens", "price": 9.0}
    others = [{**first, "item_id": "b", "price": 1.0}, {**first, "item_id": "c", "brand": "Y"}]
    found = suggested([first, *others, {**first, "item_id": "d", "price": 2.0}])
    assert set(found) <= {critique(first, one) for one in others}
    assert len(found) == 2
    assert suggested([first]) == []


def test_a_run_that_only_recommends_is_refused(cells, tmp_path):
    folder = shutil.copytree(cells[0], tmp_path / "run")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("name: converse", "name: recommend"))
    with pytest.raises(ValueError, match="a run of task=recommend, which writes nothing about what it recommends"):
        load_app(folder, "cpu", hosts=["demo"])


@pytest.fixture(scope="module")
def address(app):
    with served(app) as url:
        yield url


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_conversation_of_three_turns(browser, address, width, scheme, tmp_path):  # noqa: F811
    with watched_pages(browser, address) as (opening, _):
        page = opening(width, color_scheme=scheme)
        page.locator("#say:visible").wait_for()
        first = page.locator("#turns h3").first.text_content()
        page.locator("#suggested button").first.click()  # a tap
        page.locator("#turns > li:nth-child(2)").wait_for()
        page.locator("#say:visible").wait_for()
        assert page.locator("#turns .said").first.text_content().startswith("You: ")
        page.fill("#critique", "Show me <b>something</b> red.")
        page.keyboard.press("Enter")  # no mouse
        page.locator("#turns > li:nth-child(3)").wait_for()
        page.locator("#say:visible").wait_for()
        titles = page.locator("#turns h3").all_text_contents()
        assert len(titles) == 3
        assert titles[0] == first
        assert "<b>something</b>" in page.locator("#turns .said").last.text_content()
        assert page.locator("#turns .text").last.text_content()
        assert page.evaluate("document.activeElement.id") == "critique"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)
        page.click("#choose-user")
        page.fill("#query", "u0")
        page.locator("#found button").nth(1).click()
        page.locator("#turns > li:nth-child(2)").wait_for(state="detached")  # it starts again
        page.locator("#turns > li").first.wait_for()
        page.locator("#say:visible").wait_for()
        assert page.locator("#turns > li").count() == 1
