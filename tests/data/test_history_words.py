"""The baseline `encoder=text`: what of a history stands in the prompt, and what is left out first."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from regen.data.datamodule import NarrativeDataset, longest_narrative
from regen.data.histories import Example
from regen.data.history_words import HistoryWords
from regen.data.tables import INTERACTIONS, ITEMS, NARRATIVES, Tables
from regen.embeddings.fusion import WordsOnly


@pytest.fixture
def tables():
    items = [
        {"item_id": "a", "title": "Steel ruler", "category": "Rulers", "price": 4.5, "brand": "Ax"},
        {"item_id": "b", "title": "Pencil"},
    ]
    bought = [
        {
            "user_id": "u",
            "item_id": "a",
            "timestamp": 1,
            "rating": 5.0,
            "review_title": "Good",
            "review_text": "Straight.",
        },
        {"user_id": "u", "item_id": "b", "timestamp": 2, "rating": 2.0, "review_text": "It broke."},
        {"user_id": "u", "item_id": "a", "timestamp": 3},
    ]
    empty = pl.DataFrame(schema=NARRATIVES)
    return Tables(pl.DataFrame(items, schema=ITEMS), pl.DataFrame(bought, schema=INTERACTIONS), empty)


def example(withheld=(False, False, False)):
    return Example("u", "user_profile", None, "Draws.", np.arange(3), np.array(withheld))


def test_every_interaction_is_a_line_oldest_first(tables):
    assert HistoryWords(tables)(example()) == [
        "- Steel ruler, Rulers, Ax, 4.5 dollars. 5.0 stars. Good. Straight.\n",
        "- Pencil. 2.0 stars. It broke.\n",
        "- Steel ruler, Rulers, Ax, 4.5 dollars\n",
    ]


def test_a_withheld_review_is_not_told_nor_its_rating(tables):
    assert HistoryWords(tables)(example((False, True, True)))[1:] == [
        "- Pencil\n",
        "- Steel ruler, Rulers, Ax, 4.5 dollars\n",
    ]


@pytest.mark.parametrize("room", [1000, 60, 45, 22])
def test_the_newest_interactions_that_fit_stand_before_the_prompt(tables, tiny_lm, room):
    lines = HistoryWords(tables)(example())
    dataset = NarrativeDataset(
        [example()],
        WordsOnly(),
        tokenizer=tiny_lm.tokenizer,
        prompts={"user_profile": "Profile:"},
        window=tiny_lm.window,
        words=HistoryWords(tables),
        max_words=room,
    )
    sizes = [len(tiny_lm.tokenizer(line, add_special_tokens=False)["input_ids"]) for line in lines]
    told = next((count for count in (3, 2, 1) if sum(sizes[-count:]) <= room), 1)
    batch = dataset.collate([0])
    text = tiny_lm.tokenizer.decode(batch.prompt[0])
    assert text.endswith("profile :")
    assert ("straight" in text) == (told == 3)
    assert ("broke" in text) == (told >= 2)
    assert batch.fused.shape == (1, 0, 0)
    assert dataset.lengths == [1 + batch.prompt.shape[1] + batch.target.shape[1]]
    assert batch.prompt.shape[1] <= room + len(tiny_lm.tokenizer("Profile:")["input_ids"])


def test_of_one_line_that_is_too_long_the_beginning_is_told(tables, tiny_lm):
    dataset = NarrativeDataset(
        [example()],
        WordsOnly(),
        tokenizer=tiny_lm.tokenizer,
        prompts={"user_profile": "Profile:"},
        window=tiny_lm.window,
        words=HistoryWords(tables),
        max_words=3,
    )
    assert tiny_lm.tokenizer.decode(dataset.collate([0]).prompt[0]).startswith("- ")


def test_the_room_of_a_history_does_not_depend_on_the_reference(tables, tiny_lm):
    """A window that holds two lines beside the longest narrative: a short one leaves no more room than a long one."""
    short, long = (replace(example(), text=text) for text in ("Draws.", "Draws with a ruler every day. " * 4))

    def dataset(*examples):
        return NarrativeDataset(
            examples,
            WordsOnly(),
            tokenizer=tiny_lm.tokenizer,
            prompts={"user_profile": "Profile:"},
            window=75,
            words=HistoryWords(tables),
            max_words=1000,
            reserved=longest_narrative([long.text], tokenizer=tiny_lm.tokenizer, max_narrative_tokens=None),
        )

    both, alone = dataset(short, long), dataset(short)
    assert len(both.targets[0]) < len(both.targets[1]) - 10
    assert both.prompts[0].tolist() == both.prompts[1].tolist() == alone.prompts[0].tolist()
    assert max(both.lengths) <= 75
