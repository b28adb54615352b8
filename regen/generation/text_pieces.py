"""Token ids to text while they come in."""

from typing import Any


class TextPieces:
    """Gives the text of a growing narrative piece by piece; together the pieces are the text of all its tokens.

    A piece ends before a space, because what a tokenizer makes of a word may change until the word is complete.

    Args:
        tokenizer: The LM's.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        """The text that is certain after one more token; often empty."""
        self._ids.append(token)
        text = self._text()
        return self._give(text[: max(text.rfind(" "), text.rfind("\n"), 0)].rstrip())

    def end(self) -> str:
        """What was held back."""
        return self._give(self._text())

    def _text(self) -> str:
        return decoded(self._tokenizer, self._ids)

    def _give(self, text: str) -> str:
        if not text.startswith(self._given):  # the tokenizer took something back: wait until it agrees with itself
            return ""
        piece, self._given = text[len(self._given) :], text
        return piece


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """The text of a narrative's tokens, without special ones and surrounding space."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()
