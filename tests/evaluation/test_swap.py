"""The swap test: made-up models that read, recite or ignore, and a real one, whose swap with an equal item is nothing."""

from collections import Counter
from functools import partial

import numpy as np
import polars as pl
import pytest

from regen.data.datamodule import NarrativeDataset
from regen.data.histories import Example
from regen.embeddings.fusion import CFVectors
from regen.evaluation.controls import sampled
from regen.evaluation.swap import greedy_narrator, swap_summary, swap_test, with_interaction
from regen.models.adapter import LinearAdapter
from regen.models.soft_token_lm import SoftTokenLM

COLOURS = ["red", "blue", "green", "white", "black"]
NEEDS = ["study", "travel", "craft"]
USERS, HISTORY = 30, 4
ITEM_OF = np.random.default_rng(0).permutation(USERS * HISTORY)  # every row another item, coloured by its number


def colour(row):
    return COLOURS[ITEM_OF[row] % len(COLOURS)]


def need(user_id):
    return NEEDS[int(user_id[1:]) % len(NEEDS)]


def example(user, rows, feature="f", withheld=None):
    rows = np.array(rows, dtype=np.int64)
    text = f"a {colour(rows[-1])} pen for {need(user)}"
    return Example(user, feature, None, text, rows, np.zeros(len(rows), dtype=bool) if withheld is None else withheld)


EXAMPLES = [example(f"u{user}", range(user * HISTORY, (user + 1) * HISTORY)) for user in range(USERS)]
PLANTED = pl.DataFrame(
    [(one.user_id, "colour", colour(one.rows[-1]), [colour(one.rows[-1])]) for one in EXAMPLES]
    + [(one.user_id, "need", need(one.user_id), [need(one.user_id)]) for one in EXAMPLES],
    schema=["user_id", "label", "value", "forms"],
    orient="row",
)


def embed(texts):
    counts = np.array([[0.1, *(text.count(word) for word in COLOURS + NEEDS)] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def reads_the_final_item(examples):
    return [f"a {colour(one.rows[-1])} pen for {need(one.user_id)}" for one in examples]


def recites(examples):
    """Knows its users by heart: right before any swap, and the same after it."""
    return [one.text for one in examples]


def ignores(examples):
    return ["a red pen for study"] * len(examples)


def reads_the_first_item(examples):
    return [f"a {colour(one.rows[0])} pen for {need(one.user_id)}" for one in examples]


def takes_the_need_from_the_final_item(examples):
    owner = {one.rows[-1]: one.user_id for one in EXAMPLES}
    return [f"a red pen for {need(owner[one.rows[-1]])}" for one in examples]


def swapped(narrate, examples=EXAMPLES, seed=0, **options):
    return swap_test(examples, narrate, item_of=ITEM_OF, embed=embed, planted=PLANTED, seed=seed, **options)


def summary(narrate):
    table = swap_summary(swapped(narrate), resamples=200)
    return {(row["position"], row["measure"]): row for row in table.to_dicts()}


def test_a_model_that_reads_the_final_item_follows_its_swap_and_no_other():
    found = summary(reads_the_final_item)
    value = {key: row["value"] for key, row in found.items()}
    assert value["final", "trait_new_after"] == value["other", "trait_old_after"] == 1
    assert value["final", "trait_old_after"] == value["other", "trait_new_after"] == 0
    assert value["final", "trait_new_before"] == 0
    assert value["final", "trait_old_before"] == 1
    assert value["final", "need_old_after"] == 1
    assert value["other", "changed"] == 0
    assert value["other", "similarity"] == pytest.approx(1)
    assert value["other", "moved"] == pytest.approx(0)
    assert found["final", "changed"]["low"] > 0.5
    assert found["final", "similarity"]["high"] < 0.9
    assert found["final", "moved"]["low"] > 0.2
    assert 0 < found["final", "trait_new_after"]["users"] < found["final", "changed"]["users"] == USERS


@pytest.mark.parametrize("narrate", [recites, ignores])
def test_a_model_that_does_not_read_does_not_follow(narrate):
    found = summary(narrate)
    for position in ("final", "other"):
        assert found[position, "changed"]["value"] == found[position, "changed"]["high"] == 0
        assert found[position, "similarity"]["value"] == pytest.approx(1)
        assert found[position, "moved"]["value"] == pytest.approx(0)
        after, before = (found[position, f"trait_new_{when}"] for when in ("after", "before"))
        assert after["value"] == before["value"] < 0.5
    assert found["final", "trait_old_after"]["value"] == (1 if narrate is recites else pytest.approx(0.2, abs=0.2))


def test_a_model_that_reads_the_wrong_place_does_not_follow_the_final_item():
    found = summary(reads_the_first_item)
    assert found["final", "changed"]["value"] == 0
    assert 0 < found["other", "changed"]["value"] < 0.6, "the first of three other places is hit in a third of swaps"


def test_a_need_taken_from_the_final_item_alone_is_seen():
    found = summary(takes_the_need_from_the_final_item)
    assert found["final", "need_new_after"]["value"] == 1
    assert found["final", "need_old_after"]["value"] == 0
    assert found["final", "need_old_before"]["value"] == 1


def test_labels_count_where_the_reference_names_one_and_the_swap_changes_it():
    rows = swapped(reads_the_final_item)
    value = dict(PLANTED.filter(pl.col("label") == "colour").select("user_id", "value").iter_rows())
    differs = [float(value[user] != value[other]) for user, other in rows.select("user_id", "other_user").iter_rows()]
    assert rows["trait_compared"].to_list() == differs
    silent = [Example(one.user_id, "f", None, "a pen", one.rows, one.withheld) for one in EXAMPLES]
    assert swapped(reads_the_final_item, silent)["trait_compared"].sum() == 0


def test_what_enters_is_the_final_interaction_of_a_user_with_another_item():
    seen = []
    rows = swapped(lambda examples: seen.append(list(examples)) or reads_the_final_item(examples))
    before, final, other = seen
    last_of = {one.user_id: one.rows[-1] for one in EXAMPLES}
    for position, narrated in (("final", final), ("other", other)):
        of_position = rows.filter(pl.col("position") == position)
        assert of_position.height == USERS
        for row in of_position.to_dicts():
            number = int(row["user_id"][1:])
            was, now = before[number].rows, narrated[number].rows
            place = HISTORY - 1 - row["place"]
            assert np.flatnonzero(was != now).tolist() == [place]
            assert (position == "final") == (row["place"] == 0)
            assert now[place] == last_of[row["other_user"]]
            assert row["other_user"] != row["user_id"]
    assert [one.rows.tolist() for one in before] == [one.rows.tolist() for one in EXAMPLES], "examples stay as they are"
    taken = rows.filter(pl.col("position") == "final")["other_user"]
    assert taken.n_unique() == USERS, "in a circle everyone gives once"


def test_same_seed_same_swaps_whatever_the_order_and_another_seed_others():
    several = [*EXAMPLES, *(example(one.user_id, one.rows[:2]) for one in EXAMPLES)]  # two narratives a user
    by = ["user_id", "position", "before", "after", "place", "other_user"]
    first, again, backwards, other = (
        swapped(reads_the_final_item, examples, seed).sort(by)
        for examples, seed in ((several, 0), (several, 0), (several[::-1], 0), (several, 1))
    )
    assert first.equals(again)
    assert first.equals(backwards)
    assert not first["other_user"].equals(other["other_user"])


def test_an_item_that_the_history_holds_does_not_enter():
    items = np.array([0, 1, 0, 2, 3, 1])  # u0 and u2 end with an item that the other one has as well
    examples = [example("u0", [0, 1]), example("u1", [2, 3]), example("u2", [4, 5])]
    rows = swap_test(examples, reads_the_final_item, item_of=items, embed=embed, seed=3)
    assert {tuple(row) for row in rows.select("user_id", "other_user").iter_rows()} >= {("u0", "u1"), ("u2", "u1")}
    assert ("u0", "u2") not in set(rows.select("user_id", "other_user").iter_rows())


def test_a_single_interaction_has_no_other_place():
    examples = [example(f"u{user}", [user]) for user in range(5)]
    rows = swap_test(examples, reads_the_final_item, item_of=ITEM_OF, embed=embed)
    assert Counter(rows["position"]) == {"final": 5}


def test_nothing_to_swap_is_named():
    with pytest.raises(ValueError, match="nothing can be swapped among 1 test narratives"):
        swap_test(EXAMPLES[:1], recites, item_of=ITEM_OF, embed=embed)


def test_features_do_not_mix():
    other = [example(one.user_id, one.rows[:2], feature="g") for one in EXAMPLES[:3]]
    rows = swapped(reads_the_final_item, [*EXAMPLES, *other])
    assert set(rows.filter(pl.col("feature") == "g")["other_user"]) == {"u0", "u1", "u2"}


def test_a_withheld_review_stays_withheld_at_the_end_alone():
    withheld = np.array([False, True, False, True])  # the second is a copy of the last one's review
    one = example("u0", [0, 1, 2, 3], withheld=withheld)
    assert with_interaction(one, 3, 9).withheld.tolist() == [False, True, False, True]
    assert with_interaction(one, 1, 9).withheld.tolist() == [False, False, False, True]
    assert with_interaction(one, 1, 9).rows.tolist() == [0, 9, 2, 3]
    assert (one.rows.tolist(), one.withheld.tolist()) == ([0, 1, 2, 3], withheld.tolist())


def narrator(tiny_lm, item_of, learned_positions=None):
    """A random model of random vectors, as loud as to be heard."""
    import torch

    torch.manual_seed(0)
    vectors = CFVectors(np.random.default_rng(0).normal(size=(max(item_of) + 1, 16)).astype(np.float32), item_of)
    dataset_of = partial(
        NarrativeDataset,
        vectors=vectors,
        tokenizer=tiny_lm.tokenizer,
        prompts={"f": "why:", "g": "what about it:"},
        window=tiny_lm.window,
    )
    model = SoftTokenLM(tiny_lm.model, LinearAdapter(16, tiny_lm.width), learned_positions=learned_positions).eval()
    generation = {"max_new_tokens": 3, "temperature": 0.7}
    return greedy_narrator(model, dataset_of, generation=generation, tokenizer=tiny_lm.tokenizer, batch_size=16)


VARIED = [example(one.user_id, one.rows[number % 3 :]) for number, one in enumerate(EXAMPLES[:16])]
"""Histories of several lengths, so that batches are padded."""


def test_a_swap_with_an_equal_item_changes_nothing(tiny_lm):
    examples = VARIED
    twins = USERS * HISTORY  # rows from here on are another user's interactions with the same items
    narrate = narrator(tiny_lm, np.concatenate([ITEM_OF, ITEM_OF]))
    before = narrate(examples)
    assert len(set(before)) > len(examples) / 2, "the model hears its history, or the test would say nothing"
    for place in (0, -1):
        places = [place % len(one.rows) for one in examples]
        equal = [with_interaction(one, at, int(one.rows[at]) + twins) for one, at in zip(examples, places, strict=True)]
        assert narrate(equal) == before
    assert narrate([with_interaction(one, len(one.rows) - 1, 5) for one in examples]) != before


def test_a_real_model_changes_with_its_history_and_without_one_does_not(tiny_lm):
    hears, deaf = (
        swap_test(VARIED, narrator(tiny_lm, ITEM_OF, positions), item_of=ITEM_OF, embed=embed_letters)
        for positions in (None, HISTORY)
    )
    assert hears.filter(pl.col("position") == "final")["changed"].mean() > 0.5
    assert deaf["changed"].sum() == 0
    assert deaf["similarity"].min() == pytest.approx(1)


def embed_letters(texts):
    counts = np.array([[1.0, *(text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz")] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_a_sample_is_drawn_by_seed_and_keeps_the_order():
    users = [one.user_id for one in EXAMPLES]
    part = [one.user_id for one in sampled(EXAMPLES, 10, np.random.default_rng(0))]
    assert len(part) == 10
    assert part == [user for user in users if user in part]
    assert part == [one.user_id for one in sampled(EXAMPLES, 10, np.random.default_rng(0))]
    assert part != [one.user_id for one in sampled(EXAMPLES, 10, np.random.default_rng(1))]
    assert sampled(EXAMPLES, USERS, np.random.default_rng(0)) == EXAMPLES
