"""Decodes token ids into text while they are generated."""

from typing import Any


class TextPieces:
    """Decodes a growing narrative piece by piece. All pieces together are the text of all tokens.

    Pieces end before a space, because the text of a word may change until the word is complete.

    Args:
        tokenizer: The LM's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        """Adds a token and returns the text that is final by now; often empty."""
        self._ids.append(token)
        text = self._text()
        return self._give(text[: max(text.rfind(" "), text.rfind("\n"), 0)].rstrip())

    def end(self) -> str:
        """The rest of the text."""
        return self._give(self._text())

    def _text(self) -> str:
        return decoded(self._tokenizer, self._ids)

    def _give(self, text: str) -> str:
        if not text.startswith(self._given):  # the tokenizer changed earlier text: wait for more tokens
            return ""
        piece, self._given = text[len(self._given) :], text
        return piece


def decoded(tokenizer: Any, ids: list[int]) -> str:
    """The text of token ids, without special tokens and surrounding white space."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()
