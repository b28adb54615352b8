"""Builds requests to a language model from prompt templates, a history and the schema of the answer."""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml
from pydantic import BaseModel

from regen.narratives.histories import Purchase, UserHistory, history_text
from regen.storage.fingerprints import fingerprint

FOLDER = Path(__file__).parent / "prompts"
VERSION = 1  # increase it when the same template gives another request
# Some endpoints refuse these parts of a schema; answers are checked here.
_LEFT_OUT = ("title", "description", "default", "minLength", "maxLength")
_USER = "\n=== user ===\n"


@dataclass(frozen=True)
class HistoryLimits:
    """Maximum length of the history in a request.

    Attributes:
        text_characters: Maximum length of a title, description or review; longer ones are truncated.
        characters: Maximum length of the whole history; the oldest purchases that do not fit are dropped.
    """

    text_characters: int
    characters: int

    def __post_init__(self) -> None:
        if min(self.text_characters, self.characters) < 1:
            raise ValueError(
                f"text_characters={self.text_characters} and history_characters={self.characters} must be 1 or more."
            )


@dataclass(frozen=True)
class Request:
    """One question to an endpoint.

    Attributes:
        user_id: The user.
        prompt: Name of the prompt.
        draw: Number of this answer among several independent answers to the same question.
        messages: Chat messages.
        answer: Schema of the answer.
        unnamed: Title that the answer must not name, if any.
    """

    user_id: str
    prompt: str
    draw: int
    messages: tuple[Mapping[str, str], ...]
    answer: type[BaseModel]
    unnamed: str | None = None

    def read(self, text: str) -> BaseModel:
        """Parses and checks an answer.

        Raises:
            ValidationError: If it does not fit the schema, or names what it must not.
        """
        context = None if self.unnamed is None else {"unnamed": self.unnamed}
        return self.answer.model_validate_json(text, context=context)

    def key(self, settings: Mapping[str, Any]) -> str:
        """SHA-256 of everything that determines the answer: endpoint, model, sampling, messages, schema and draw."""
        determining = {
            "settings": dict(settings),
            "messages": [dict(message) for message in self.messages],
            "schema": flat_schema(self.answer),
            "draw": self.draw,
        }
        text = json.dumps(determining, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def characters(self) -> int:
        """Length of all messages."""
        return sum(len(message["content"]) for message in self.messages)


@dataclass(frozen=True)
class Prompt:
    """A template file `prompts/<name>.md` and the schema of its answer.

    Attributes:
        name: Name of the file.
        answer: Pydantic model of the answer.
        examples: Whether to put the few-shot examples of `examples.yaml` before the question.
    """

    name: str
    answer: type[BaseModel]
    examples: bool = False

    @property
    def hash(self) -> str:
        """Twelve hex digits that identify the instructions, the examples and the schema of the answer."""
        parts = [_template(self.name), flat_schema(self.answer), VERSION]
        if self.examples:
            parts.append((FOLDER / "examples.yaml").read_text(encoding="utf-8"))
        return fingerprint({"parts": parts})

    def request(self, history: UserHistory, limits: HistoryLimits, *, draw: int = 0, **values: str) -> Request:
        """Builds the request about one user.

        Args:
            history: Replaces `$history` in the template.
            limits: Maximum length of the history.
            draw: Number of this answer among several independent ones.
            **values: Values of the template's other names. Escape untrusted texts with `fenced`.
        """
        system, _, user = _template(self.name).partition(_USER)
        text, _ = history_text(history, text_characters=limits.text_characters, characters=limits.characters)
        messages = [{"role": "system", "content": system}]
        if self.examples:
            messages += _example_turns(user, limits)
        messages.append({"role": "user", "content": Template(user).substitute(history=text, **values)})
        return Request(history.user_id, self.name, draw, tuple(messages), self.answer)


def flat_schema(answer: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of an answer without references, titles and lengths, which some endpoints refuse."""
    schema = answer.model_json_schema()
    definitions = schema.pop("$defs", {})
    return dict(_flat(schema, definitions))


def _flat(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_flat(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _flat(definitions[node["$ref"].rpartition("/")[2]], definitions)
    flat = {
        key: {name: _flat(below, definitions) for name, below in value.items()}
        if key == "properties"
        else _flat(value, definitions)
        for key, value in node.items()
        if key not in _LEFT_OUT
    }
    if flat.get("type") == "object":
        flat["additionalProperties"] = False
        flat["required"] = list(flat["properties"])
    return flat


@functools.cache
def _template(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8").strip()


@functools.cache
def _example_turns(user: str, limits: HistoryLimits) -> list[dict[str, str]]:
    turns = []
    for number, example in enumerate(yaml.safe_load((FOLDER / "examples.yaml").read_text(encoding="utf-8"))):
        empty = dict.fromkeys(Purchase.__dataclass_fields__)
        purchases = tuple(Purchase(**{**empty, "item_id": "", **fields}) for fields in example["purchases"])
        history = UserHistory(f"example {number}", purchases)
        text, _ = history_text(history, text_characters=limits.text_characters, characters=limits.characters)
        turns.append({"role": "user", "content": Template(user).substitute(history=text)})
        turns.append({"role": "assistant", "content": json.dumps(example["answer"], ensure_ascii=False)})
    return turns
