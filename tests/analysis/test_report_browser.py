"""The page in a real browser: nothing runs but its own script, nothing is fetched, search and keyboard work."""

import os

import pytest
from browser import browser, watched_pages  # noqa: F401
from hostile import train_hostile

from regen.analysis.report import write_report

pytestmark = pytest.mark.slow
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page with all figures, over hostile data."""
    root = tmp_path_factory.mktemp("browser")
    train_hostile(root, "cf", "content", "both")
    return write_report(root / "runs", users=6, seed=1).as_uri()


@pytest.fixture
def opened(browser, address):  # noqa: F811
    with watched_pages(browser, address) as (opening, asked):
        yield opening
    assert set(asked) == {address}


def shown(page):
    return page.locator("article.person:visible").count()


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_the_page_fits_and_its_images_are_drawn(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown(page) == 6
    sizes = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(sizes) == 8
    assert all(sizes)
    if folder := os.environ.get("REGEN_SCREENSHOTS"):  # to be looked at
        height = page.evaluate("document.documentElement.scrollHeight")
        for number, top in enumerate(range(0, height, 2400)):
            page.set_viewport_size({"width": width, "height": 2400})
            page.evaluate(f"window.scrollTo(0, {top})")
            page.screenshot(path=f"{folder}/{width}-{number}.png")


def test_search_filters_users_by_any_of_their_texts_and_unfolds_what_it_found(opened):
    page = opened(1280)
    user = page.locator("article.person h4 .t").nth(2).text_content()
    number = user[1:].removesuffix("<b>")
    for text in (f"Review {number}.1", f"because  OF {number}.", user):
        page.fill("#search", text)
        assert shown(page) == 1
        assert page.locator("#found").text_content() == "1 of 6 users"
        assert page.locator("article.person:visible h4 .t").text_content() == user
    page.fill("#search", f"Review {number}.1")  # the oldest, which is folded
    assert page.locator("article.person:visible details[open]").count() >= 1
    assert page.get_by_text(f"Review {number}.1").last.is_visible()
    page.fill("#search", "nobody wrote this")
    assert shown(page) == 0
    page.fill("#search", "")
    assert shown(page) == 6
    assert page.locator("article.person details[open]").count() == 0


def test_the_keyboard_reaches_and_works_everything(opened):
    page = opened(1280)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#search")
    page.keyboard.type("both wrote")
    assert shown(page) == 6
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "every"
    folded = page.locator("article.person details").count()
    assert page.locator("article.person details[open]").count() == folded > 0
    page.keyboard.press("Enter")
    assert page.locator("article.person details[open]").count() == 0
    assert page.evaluate("[...document.querySelectorAll('.wide, pre')].every(part => part.tabIndex === 0)")


def test_markup_in_reviews_is_read_as_text(opened):
    page = opened(1280)
    page.click("#every")
    text = page.locator("#users").inner_text()
    assert "<script>window.hacked = true</script>" in text
    assert "onerror='window.hacked = true'>" in text
    assert page.locator("#users script, #users img, #users iframe, #users style, #users a").count() == 0


def test_the_policy_stops_what_escaping_might_miss(browser, address):  # noqa: F811
    page = browser.new_page()
    page.goto(address)
    page.evaluate(
        """() => {
            const script = document.createElement("script"); script.textContent = "window.hacked = 1";
            document.body.append(script);
            const image = document.createElement("img"); image.src = "http://127.0.0.1:9/pixel.png";
            image.setAttribute("onerror", "window.hacked = 2"); document.body.append(image);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    stopped = "fetch('http://127.0.0.1:9/').then(() => 'sent', error => String(error))"
    assert "Failed to fetch" in page.evaluate(stopped) or "Refused" in page.evaluate(stopped)
    page.close()


def test_it_prints_without_tools_and_within_the_paper(opened):
    page = opened(720)
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.locator("#tools").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
