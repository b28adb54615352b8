"""README and docs, and what is fenced in them."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
NOTES = ("log.md",)  # a diary, in the words of its days
PAGES = [REPOSITORY / "README.md", *(page for page in sorted(REPOSITORY.glob("docs/*.md")) if page.name not in NOTES)]
FENCE = re.compile(r"^```(?P<language>\S*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The code of a page's blocks of one language."""
    return [found["code"] for found in FENCE.finditer(page.read_text()) if found["language"] == language]
