"""Requests: a hash for every wording, a key for everything that determines an answer, and texts that are only texts."""

import json
import re
import shutil
from dataclasses import replace
from typing import Literal

import pytest
import yaml
from pydantic import BaseModel

from regen.config.objects import build_object
from regen.config.schema import CONF, Endpoint
from regen.narratives import answers, prompts
from regen.narratives.choices import endpoint_parts
from regen.narratives.histories import CLOSE, OPEN, Purchase, UserHistory
from regen.narratives.narrators import PROMPTS
from regen.narratives.prompts import HistoryLimits, Prompt, flat_schema
from regen.narratives.raters import ATTRIBUTES, LEVELS, prompt_of

ALL = [*PROMPTS.values(), *map(prompt_of, ATTRIBUTES)]
LIMITS = HistoryLimits(text_characters=2000, characters=100_000)


def history(user="u1", text="Fine."):
    empty = dict.fromkeys(Purchase.__dataclass_fields__)
    known = {"item_id": "i1", "title": "Steel ruler", "review_text": text}
    return UserHistory(user, (Purchase(**empty | known), Purchase(**empty | known | {"item_id": "i2"})))


def asked(prompt, of=None, **options):
    values = {"narratives": "{}"} if prompt.name.startswith("rate_") and prompt.name != "rate_user_richness" else {}
    return prompt.request(of or history(), LIMITS, **values | options)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the prompts that a test may change."""

    def forget():
        prompts._template.cache_clear()
        prompts._example_turns.cache_clear()

    shutil.copytree(prompts.FOLDER, tmp_path / "prompts")
    monkeypatch.setattr(prompts, "FOLDER", tmp_path / "prompts")
    forget()

    def changed(name, old, new):
        path = tmp_path / "prompts" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        forget()

    yield changed
    forget()


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("reasons.md", "You study", "You watch", {"reasons"}),
        ("reasons.md", "$history\n", "$history\n\n", {"reasons"}),
        ("endorsement.md", "three to five", "two", {"endorsement"}),
        ("critique.md", "25 words", "20 words", {"critique"}),
        ("rate_user_summary.md", "partly specific", "half specific", {"rate_user_summary"}),
        ("examples.yaml", "price: 14.5", "price: 15.5", {"reasons"}),
        ("examples.yaml", "The customer wanted", "They wanted", {"reasons"}),
        ("reasons.md", "You study", "\n\nYou study", set()),
    ],
)  # fmt: skip
def test_the_hash_of_a_prompt_changes_with_its_files_only(folder, file, old, new, changes):
    before = {prompt.name: prompt.hash for prompt in ALL}
    asked_before = {prompt.name: asked(prompt).messages for prompt in ALL}
    assert len(set(before.values())) == len(ALL)
    folder(file, old, new)
    assert {prompt.name for prompt in ALL if prompt.hash != before[prompt.name]} == changes
    assert {prompt.name for prompt in ALL if asked(prompt).messages != asked_before[prompt.name]} == changes


class Longer(answers.Endorsement):
    remark: answers.Text


def test_the_hash_of_a_prompt_changes_with_its_answer_and_version(monkeypatch):
    prompt = PROMPTS["endorsement"]
    renamed = type("Renamed", (answers.Endorsement,), {"__doc__": "Another description."})
    assert replace(prompt, answer=Longer).hash != prompt.hash == replace(prompt, answer=renamed).hash
    before = prompt.hash
    monkeypatch.setattr(prompts, "VERSION", prompts.VERSION + 1)
    assert prompt.hash != before


class Part(BaseModel):
    """Described."""

    title: str = "none"
    level: Literal["a", "b"] | None


class Whole(BaseModel):
    parts: list[Part]
    description: Part


def nodes(schema):
    yield schema
    for value in schema.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield from nodes(part)


@pytest.mark.parametrize("model", [*(prompt.answer for prompt in ALL), Whole], ids=lambda model: model.__name__)
def test_schemas_are_flat_and_strict(model):
    schema = flat_schema(model)
    assert list(schema["properties"]) == list(model.model_fields)
    assert not re.search(r'"\$(ref|defs|schema)"', json.dumps(schema))
    for node in nodes(schema):
        if node.get("type") == "object":
            assert node["additionalProperties"] is False
            assert node["required"] == list(node["properties"])
        if "type" in node or "anyOf" in node:
            assert not {"title", "description", "default"} & set(node)


def test_properties_that_are_called_title_or_description_stay():
    schema = flat_schema(Whole)
    assert schema["properties"]["description"] == schema["properties"]["parts"]["items"]
    assert schema["properties"]["description"]["properties"]["title"] == {"type": "string"}


@pytest.mark.parametrize("prompt", ALL, ids=lambda prompt: prompt.name)
def test_instructions_name_the_keys_of_the_answer_and_no_others(prompt):
    system = asked(prompt).messages[0]["content"]
    keys = set(re.findall(r'"([a-z]+_[a-z_]+|critique|veracity|grounding|clarity|foresight|personalization)"', system))
    assert keys - {"final_item"} == set(prompt.answer.model_fields)
    if prompt.name.startswith("rate_"):
        assert ", ".join(f'"{level}"' for level in LEVELS) in system


@pytest.mark.parametrize("prompt", ALL, ids=lambda prompt: prompt.name)
def test_the_question_comes_last_after_made_up_examples(prompt):
    request = asked(prompt)
    first, *examples, last = request.messages
    assert (first["role"], last["role"]) == ("system", "user")
    assert [turn["role"] for turn in examples] == ["user", "assistant"] * (3 if prompt.name == "reasons" else 0)
    assert "Steel ruler" in last["content"]
    assert list(asked(prompt, history("u2", "Other.")).messages[:-1]) == [first, *examples]
    around = re.sub(f"{OPEN}.*{CLOSE}", "", last["content"], flags=re.DOTALL)
    for question, answer in zip(examples[::2], examples[1::2], strict=True):
        assert "Steel ruler" not in question["content"]
        assert re.sub(f"{OPEN}.*{CLOSE}", "", question["content"], flags=re.DOTALL) == around
        assert list(json.loads(answer["content"])) == list(prompt.answer.model_fields)
        prompt.answer.model_validate_json(answer["content"])


@pytest.mark.parametrize("prompt", ALL, ids=lambda prompt: prompt.name)
def test_dollars_and_braces_are_only_texts(prompt):
    text = "$history ${narratives} $$ $ $nowhere {history} {0} {} %s %(history)s \\1"
    options = {} if "$narratives" not in prompts._template(prompt.name) else {"narratives": text}
    content = asked(prompt, history(text=text), **options).messages[-1]["content"]
    assert content.count("$history ${narratives} $$ $ $nowhere {history} {0} {} %s %(history)s") == 2 + len(options)
    assert content.count(OPEN) == 1


def key(changed=None, **of):
    options = yaml.safe_load((CONF / "endpoint.yaml").read_text())
    known = {"model": "m", "base_url": "http://127.0.0.1:1/v1", "ledger": "ledger.sqlite"}
    settings = build_object(Endpoint, options | known | (changed or {}))
    endpoint = endpoint_parts(settings, max_cost=None, where="narrator")["endpoint"]
    request = PROMPTS["endorsement"].request(history(), LIMITS)
    return replace(request, **of).key(endpoint.settings())


@pytest.mark.parametrize(
    "options",
    [
        {"model": "n"},
        {"base_url": "http://127.0.0.1:2/v1"},
        {"temperature": 0.6},
        {"top_p": 0.9},
        {"max_tokens": 1000},
        {"seed": 1},
        {"seed": None},
    ],
    ids=str,
)
def test_the_key_changes_with_what_determines_the_answer(options):
    assert key(options) != key()


@pytest.mark.parametrize(
    "of",
    [
        {"draw": 1},
        {"messages": ({"role": "user", "content": "x"},)},
        {"answer": Longer},
    ],
    ids=str,
)
def test_the_key_changes_with_the_question(of):
    assert key(**of) != key()
    assert re.fullmatch("[0-9a-f]{64}", key(**of))


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 1},
        {"timeout": 1},
        {"price": {"prompt": 1.0, "completion": 2.0}},
        {"requests_per_minute": 5.0, "tokens_per_minute": 5.0},
        {"max_attempts": 1},
        {"ledger": "elsewhere"},
        {"base_url": "http://127.0.0.1:1/v1/"},
    ],
    ids=str,
)
def test_the_key_does_not_change_with_how_it_is_asked(options):
    assert key(options) == key()


def test_the_key_does_not_change_with_the_user():
    assert key(user_id="someone else") == key()


def test_a_key_of_the_environment_is_in_no_setting(monkeypatch):
    before = key()
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-123")
    assert key() == before


def test_an_unknown_file_and_a_missing_value_are_errors():
    with pytest.raises(FileNotFoundError, match="nowhere.md"):
        Prompt("nowhere", answers.Endorsement).request(history(), LIMITS)
    with pytest.raises(KeyError, match="narratives"):
        prompt_of("user_summary").request(history(), LIMITS)
