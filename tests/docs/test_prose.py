"""Sentences of README and docs are short."""

import re

import pytest
from docs.pages import FENCE, PAGES

MOST_WORDS = 35


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_sentence_has_more_than_35_words(page):
    long = [sentence for sentence in sentences(page.read_text()) if len(sentence.split()) > MOST_WORDS]
    assert not long, "\n".join(long)


def sentences(text):
    """Sentences outside code and tables; a heading, a list item or a paragraph ends one, too."""
    text = FENCE.sub("\n\n", text)
    text = re.sub(r"`[^`]*`", "code", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    lines = ["" if re.match(r"\s*(\||:::|!\[|options:)", line) else line for line in text.splitlines()]
    text = "\n".join(f"\n{line}" if re.match(r"\s*(- |\d+\. |#)", line) else line for line in lines)
    text = re.sub(r"^(#.*)$", r"\1\n", text, flags=re.MULTILINE)
    return [
        " ".join(one.split())
        for paragraph in re.split(r"\n\s*\n", text)
        for one in re.split(r"(?<=[.!?])[*_\")]*\s+", paragraph.strip())
        if one
    ]


def test_what_a_sentence_is():
    page = "# Head\nOne two. Three\nfour: five\n\n- six\n- `a b`\n\n```bash\nx\n```\n| a | b |\n"
    assert sentences(page) == ["# Head", "One two.", "Three four: five", "- six", "- code"]
