"""What scraped fields hold: markup goes, what only looks like markup stays, and a scrap of a page is no title."""

import polars as pl
import pytest

from regen.data.cleaning import clean_text, clean_titles, join_categories, parse_prices, unreadable


def each(cases):
    return pytest.mark.parametrize(("raw", "cleaned"), cases)


@each(
    [
        ("plain", "plain"),
        (None, None),
        ("", None),
        (" \n ", None),
        ("  pad  ", "pad"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("one<br>two<br/>three<BR />", "one two three"),
        ("<p class='x'>one</p><p>two</p>", "one two"),
        ('<a href="http://x/?a=1">link</a> text', "link text"),
        ("<img src=x.png>", None),
        ("<script>var a = 1;</script>shown<style>p {}</style>", "shown"),
        ("Tom &amp; Jerry&#39;s", "Tom & Jerry's"),
        ("&amp;quot;twice&amp;quot;", '"twice"'),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("&nbsp;", None),
        ("AT&T", "AT&T"),
        ("a < b and c > d, I <3 it", "a < b and c > d, I <3 it"),
        ("width <b 6> 7", "width <b 6> 7"),
        ("a\x00b\x1fc\x7fd", "a b c d"),
        ("[[VIDEOID:mo2J9]]Good", "Good"),
        ("see [[ASIN:B001ABC Nice pen]] too", "see Nice pen too"),
        ("see [[ASIN:B001ABC]] too", "see too"),
        ("[[brackets]]", "[[brackets]]"),
    ]
)  # fmt: skip
def test_texts(raw, cleaned):
    assert clean_text(pl.Series([raw], dtype=pl.String)).to_list() == [cleaned]


def test_a_text_does_not_change_its_neighbours():
    texts = pl.Series(["two  spaces", "a<br>b", None, "x &lt; y", " "])
    assert clean_text(texts).to_list() == ["two  spaces", "a b", None, "x < y", None]


@each(
    [
        ("  Pen ", "Pen"),
        (None, None),
        (" ", None),
        ("&nbsp;", None),
        ("Pen\n &amp;\tInk", "Pen & Ink"),
        ("I <3 U", "I <3 U"),
        ("Function Junction", "Function Junction"),
        ("Variety = 3", "Variety = 3"),
        ("var aPageStart = (new Date()).getTime();", None),
        ("(function(f) {var _np=(window.P", None),
        ('<span class="a-size-medium">Pen</span>', None),
        ("Pen<br>Ink", None),
        ("<!-- begin -->", None),
        ("Pen <div", None),
        ("&amp;lt;div&gt;", None),
    ]
)  # fmt: skip
def test_titles(raw, cleaned):
    assert clean_titles(pl.Series([raw], dtype=pl.String)).to_list() == [cleaned]


@each(
    [
        ("$5.00", 5.0),
        ("5", 5.0),
        (" $ 7.5 ", 7.5),
        ("$1,234.56", 1234.56),
        ("$1,234,567", 1234567.0),
        ("$5.00 - $9.00", 5.0),
        ("$5-9", 5.0),
        ("$1,200.00 - $2,000.00", 1200.0),
        ("$0.00", 0.0),
        (None, None),
        ("", None),
        ("$", None),
        ("free", None),
        ("1,23", None),
        ("-5", None),
        ("1e5", None),
        ("NaN", None),
        ("inf", None),
        ("$12.34abc", None),
        ("$5.00 $6.00", None),
        (".a-box-inner{background-color:#fff}", None),
    ]
)  # fmt: skip
def test_prices(raw, cleaned):
    assert parse_prices(pl.Series([raw], dtype=pl.String)).to_list() == [cleaned]


@each(
    [
        (["Office", "Pens"], "Office - Pens"),
        (["Gift Cards", "Gift Cards"], "Gift Cards"),
        (["B", "A", "B"], "B - A"),
        (["Arts &amp; Crafts", None, " ", "Ink"], "Arts & Crafts - Ink"),
        (["<b>Scrap</b>", "Ink"], "Ink"),
        (["</span>"], None),
        ([], None),
        ([None], None),
        (None, None),
    ]
)  # fmt: skip
def test_categories(raw, cleaned):
    assert join_categories(pl.Series([raw], dtype=pl.List(pl.String))).to_list() == [cleaned]


def test_categories_stay_with_their_rows():
    paths = pl.Series([["A"], None, [], ["A", "B"], ["</i>"], ["C"]], dtype=pl.List(pl.String))
    assert join_categories(paths).to_list() == ["A", None, None, "A - B", None, "C"]


@pytest.mark.parametrize("clean", [clean_text, clean_titles, parse_prices])
def test_no_rows_and_no_values_are_fine(clean):
    assert clean(pl.Series([], dtype=pl.String)).to_list() == []
    assert clean(pl.Series([None, None], dtype=pl.String)).to_list() == [None, None]


@pytest.mark.parametrize(
    ("title", "plain"),
    [
        ("Desk Clock with Snooze Function (Black)", "Desk Clock with Snooze Function (Black)"),
        ("Multifunction (Laser) Printer", "Multifunction (Laser) Printer"),
        ("H<sub>2</sub>O Pen", "H2O Pen"),
        ("<b>Bold</b> Pen", "Bold Pen"),
        ("function () { return 1; }", None),
        ("function aPage(x) {", None),
    ],
)
def test_good_titles_stay_and_scripts_go(title, plain):
    assert clean_titles(pl.Series([title])).to_list() == [plain]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("dishwasher&microwave safe", "dishwasher&microwave safe"),
        ("pens&notebooks", "pens&notebooks"),
        ("guitar&amplifier", "guitar&amplifier"),
        ("pens &amp; ink", "pens & ink"),
        ("&amp;quot;Fine&amp;quot; &amp;amp; good", '"Fine" & good'),
        ("about &amp;lt; in R&amp;D", "about &lt; in R&D"),
        ("5&#176;, &#x2713;", "5°, ✓"),
    ],
)
def test_only_entities_with_a_semicolon_are_decoded(text, plain):
    assert clean_text(pl.Series([text])).to_list() == [plain]


@pytest.mark.parametrize(
    ("price", "dollars"),
    [("$.99", 0.99), ("Price: $5", 5.0), ("1.234,50", 1234.5), ("USD 7", 7.0), ("£5.00", None), ("12,5", None)],
)
def test_prices_are_read_or_known_to_be_unreadable(price, dollars):
    texts = pl.Series([price, " ", None])
    prices = parse_prices(texts)
    assert prices.to_list() == [dollars, None, None]
    assert unreadable(texts, prices).to_list() == [dollars is None, False, False]
