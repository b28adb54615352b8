"""The demo in a real browser, over reviews that hold markup: choose, write, swap; nothing runs but its own script."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import browser, served, watched_pages  # noqa: F401
from hostile import MARKUP, train_hostile
from small import quick_embeddings

from regen.serving.demo.app import build_app
from regen.serving.demo.serve import load_shown

pytestmark = pytest.mark.slow
WIDTHS = {"phone": 375, "desktop": 1280}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The demo of a grid over hostile data, served from this process."""
    root = tmp_path_factory.mktemp("demo")
    train_hostile(root, "cf", "content", "both")
    with quick_embeddings():  # as the grid was trained
        app = build_app(load_shown(root / "runs"), hosts=["127.0.0.1"])
        with served(app) as url:
            yield url


@pytest.fixture
def opened(browser, address, tmp_path):  # noqa: F811
    with watched_pages(browser, address) as (opening, _):

        def at(width, **options):
            page = opening(width, **options)
            page.locator("#purchases li").first.wait_for()
            return page

        yield at


def write(page):
    page.click("#write")
    page.locator("#status", has_text="Written").wait_for()


def narratives(page):
    """The text of each column by its model."""
    return {
        name: page.locator(f".narrative.{name} > .text").text_content()
        for name in ("cf", "content", "both", "reference")
    }


def unnamed(page):
    """Controls on show that have no name."""
    return page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea")]
            .filter(one => one.checkVisibility())
            .filter(one => !one.ariaLabel && !one.textContent.trim() && !one.labels?.[0]?.textContent.trim())
            .map(one => one.id)"""
    )


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_choose_write_and_swap(opened, width, tmp_path):
    page = opened(width)
    page.click("#choose-user")
    page.fill("#query", "u22")
    page.locator("#found-count", has_text="1 user.").wait_for()
    page.locator("#found button").click()
    page.locator("#whose", has_text="User u22<b>, not met in training: 7 purchases").wait_for()
    assert narratives(page)["reference"] == f"Because of 22. {MARKUP[22 % len(MARKUP)]}"
    write(page)
    first = narratives(page)
    assert all(first.values())
    assert page.locator(".share .figure:visible").count() == 7
    assert page.locator(".share .figure").first.text_content().startswith("cf ")
    page.locator("#purchases .swap").last.click()
    page.fill("#query", "thing")
    page.locator("#found-count", has_text="12 items.").wait_for()
    chosen = page.locator("#found .title").nth(3).text_content()
    page.locator("#found button").nth(3).click()
    page.locator("#status", has_text="changed.").wait_for()
    assert page.locator("#purchases .title").last.text_content() == chosen
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"Swap {chosen}"
    assert page.locator(".narrative.reference .notes").text_content() == "For the history as it was."
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    page.click("#restore")
    page.locator("#status", has_text="changed.").wait_for()
    assert narratives(page) == first


def test_changed_words_are_marked(opened):
    page = opened(1280)
    found = page.evaluate(
        """async () => {
            const { changes } = await import("./changes.js");
            return changes("Wanted a red lamp to help with reading.", "Wanted a blue desk lamp to help.");
        }"""
    )
    assert [(" ".join(part["words"]), part["changed"]) for part in found] == [
        ("Wanted a", False),
        ("blue desk", True),
        ("lamp to", False),
        ("help.", True),
    ]


def test_a_history_of_ones_own(opened):
    page = opened(1280)
    page.click("#start-empty")
    for number, title in enumerate(("Thing 5", "Thing 2"), start=1):
        page.fill("#query", title)
        page.locator("#found .title", has_text=title).first.click()
        page.locator("#whose", has_text=f"Your own history: {number} purchase").wait_for()
        if number == 1:
            page.click("#add")
    page.locator("#purchases .review").first.click()
    page.fill("#rating", "4.5")
    page.fill("#review-text", "<b>Fine</b> \u202eright to left 🙂")
    page.click("#review-save")
    assert "<b>Fine</b>" in page.locator("#purchases .said").text_content()
    assert page.locator("#purchases .facts").first.text_content() == "rated 4.5"
    write(page)
    assert narratives(page)["reference"] == ""
    page.locator("#purchases .remove").first.click()
    page.locator("#status", has_text="changed.").wait_for()
    page.locator("#purchases .remove").first.click()
    assert page.locator("#write").is_disabled()
    assert set(narratives(page).values()) == {""}
    assert page.evaluate("document.activeElement.id") == "add"


def test_writing_can_be_stopped_and_begun_again(opened):
    page = opened(1280)
    page.route("**/api/narratives", lambda route: None)  # no answer comes, however fast the models are
    page.click("#write")
    page.locator("#write", has_text="Stop").click()
    assert page.locator("#write").text_content() == "Write narratives"
    page.unroute("**/api/narratives")
    write(page)
    assert all(narratives(page).values())


def test_the_keyboard_alone_does_it_all(opened):
    page = opened(1280)
    press = page.keyboard.press
    press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    press("Tab")
    press("Enter")
    page.locator("#found button").first.wait_for()
    assert page.evaluate("document.activeElement.id") == "query"
    press("ArrowDown")
    press("ArrowDown")
    chosen = page.locator("#found .title").nth(1).text_content()
    press("Enter")
    page.locator("#whose", has_text=chosen).wait_for()
    assert page.evaluate("document.activeElement.id") == "choose-user"
    page.focus("#write")
    press("Space")
    page.locator("#status", has_text="Written").wait_for()
    page.locator("#purchases .remove").first.focus()
    press("Enter")
    page.locator("#status", has_text="changed.").wait_for()
    assert page.evaluate("document.activeElement.className") == "quiet remove"
    page.locator("#purchases .swap").first.focus()
    press("Enter")
    press("Escape")
    assert page.evaluate("document.activeElement.className") == "quiet swap"


def test_a_screen_reader_finds_names_roles_and_news(opened):
    page = opened(1280)
    write(page)
    assert unnamed(page) == []
    labels = page.locator("#purchases .edits button").evaluate_all("buttons => buttons.map(one => one.ariaLabel)")
    assert len(set(labels)) == len(labels) == 3 * page.locator("#purchases li").count()
    for role, name in (
        ("region", "History"),
        ("region", "Narratives"),
        ("group", "What to write"),
        ("region", "purchase reason"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1
    levels = page.locator("h1, h2, h3, h4").evaluate_all(
        "all => all.filter(one => one.offsetParent).map(one => one.tagName)"
    )
    assert levels == ["H1", "H2", "H2", "H3", "H4", "H4", "H4", "H4"]
    texts = page.locator(".narrative > .text")
    assert (
        texts.evaluate_all("all => all.map(one => [one.ariaLive, one.ariaAtomic, one.ariaBusy])")
        == [["polite", "true", None]] * 4
    )
    page.click("#choose-user")
    assert page.get_by_role("dialog", name="Choose a user").count() == 1
    assert unnamed(page) == []


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_axe_finds_nothing_to_complain_of(opened, width):
    page = opened(width)
    for state in ("empty", "written", "choosing"):
        if state == "written":
            write(page)
        if state == "choosing":
            page.click("#choose-user")
        found = Axe().run(page)
        assert found.violations_count == 0, f"{state}: {found.generate_report()}"


def test_markup_in_reviews_is_read_as_text(opened):
    page = opened(1280)
    text = page.locator("main").text_content()
    assert "<script>" in text
    assert (
        page.locator("main script, main img, main iframe, main style, main svg, main a[href^=javascript]").count() == 0
    )


def test_text_is_legible_in_light_and_dark(opened):
    contrast = """() => {
        const channel = value => (value /= 255) <= .03928 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
        const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number); return .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b); };
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return [...document.querySelectorAll("h1, p.soft, h4 .name, button.quiet, .figure, .said, label")].map(one => {
            const ink = light(getComputedStyle(one).color);
            return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
        });
    }"""
    for scheme in ("light", "dark"):
        page = opened(1280, color_scheme=scheme)
        ratios = page.evaluate(contrast)
        assert len(ratios) > 20
        assert min(ratios) >= 4.5, scheme


def test_what_the_server_refuses_is_said_on_the_page(browser, address):  # noqa: F811
    page = browser.new_page()
    page.goto(address)
    page.locator("#purchases li").first.wait_for()
    page.route("**/api/narratives", lambda route: route.fulfill(status=422, json={"detail": "It cannot be read."}))
    page.click("#write")
    page.locator("#problem", has_text="It cannot be read.").wait_for()
    assert "It cannot be read." in page.locator("#problem").inner_text()
    page.unroute("**/api/narratives")
    page.route("**/api/users*", lambda route: route.abort())
    page.click("#choose-user")
    page.locator("#found-count", has_text="The server does not answer.").wait_for()
    assert "The server does not answer." in page.locator("#found-count").inner_text()
    page.close()
