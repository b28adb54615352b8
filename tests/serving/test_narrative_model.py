"""An exported model writes what its run's evaluation wrote, and says what it could not place."""

import dataclasses

import numpy as np
import pytest
import torch
from serving.finished_runs import FinishedRun, trained

from regen import pipeline
from regen.serving import Interaction, NarrativeModel, RequestError

PENS = {"title": "Ballpoint pens, black", "rating": 5, "review": "They write smoothly.", "category": "Office - Pens"}
ENCODERS = [
    ["encoder=cf", "tuning=full"],
    ["encoder=content", "tuning=frozen", "adapter=transformer"],
    pytest.param(["encoder=none", "encoder.dim=16"], marks=pytest.mark.slow),
    pytest.param(["encoder=random", "encoder.dim=16"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("feature", ["purchase_reason", "product_endorsement"])
def test_a_test_user_gets_the_text_of_the_evaluation(finished, model, feature):
    histories, predictions = finished.of(feature)
    narratives = model.narrate(histories, feature=feature)
    assert [one.text for one in narratives] == predictions
    assert len(set(predictions)) >= 4, "the model hears its history, or the test would say nothing"
    assert str(model.narrate(histories[0], feature=feature)) == predictions[0]


def test_a_history_enters_as_in_training(finished, model):
    for at, example in enumerate(finished.examples):
        prepared = model.prepare(finished.histories[at], feature=example.feature)
        assert np.array_equal(prepared.fused, finished.data.history(at))
        assert prepared.prefix == finished.data.prefixes[at]
        assert prepared.prompt.tolist() == finished.data.prompts[at].tolist()


@pytest.mark.parametrize("options", ENCODERS, ids=lambda options: options[0])
def test_every_encoder_that_reads_histories_is_exported(session_config, tmp_path, options):
    run = FinishedRun(trained(session_config, *options))
    model = NarrativeModel.from_pretrained(NarrativeModel.from_run(run.folder).save_pretrained(tmp_path / "model"))
    assert model.spec.encoder == options[0].removeprefix("encoder=")
    assert [one.text for one in model.narrate(run.of("purchase_reason")[0])] == run.of("purchase_reason")[1]
    unseen = model.narrate([PENS])
    needs_items = model.spec.encoder in ("cf", "random")
    assert (unseen.confidence, unseen.unknown_items) == ((0.0, (PENS["title"],)) if needs_items else (1.0, ()))
    assert model.cf_shares([PENS]) is None


@pytest.mark.parametrize("encoder", ["noise", "text"])
def test_what_has_no_vectors_of_its_own_is_not_exported(session_config, encoder):
    more = ["encoder.dim=16"] if encoder == "noise" else []
    folder = pipeline.open_run(session_config(f"encoder={encoder}", *more)).folder
    (folder / "model.safetensors").touch()
    with pytest.raises(ValueError, match=f"encoder={encoder} cannot be exported or served.*Known: cf, content, both"):
        NarrativeModel.from_run(folder)


def test_a_run_that_is_not_finished_is_named(session_config):
    folder = pipeline.open_run(session_config("encoder=cf", "seed=7")).folder
    with pytest.raises(ValueError, match=rf"{folder}: not finished, there is no model\.safetensors in it"):
        NarrativeModel.from_run(folder)


def test_a_mapping_and_an_interaction_are_the_same_and_metadata_come_with_the_id(finished, model):
    history = finished.of("purchase_reason")[0][0]
    item = model.items.get(history[-1]["item_id"])
    whole = {"title": item.title, "category": item.category, "brand": item.brand, "price": item.price}
    spelled_out = [*history[:-1], {**history[-1], **whole, "description": item.description}]
    expected = model.prepare(history).fused
    assert torch.equal(model.prepare([Interaction(**one) for one in history]).fused, expected)
    assert torch.equal(model.prepare(spelled_out).fused, expected)
    other = [*history[:-1], {**history[-1], "title": "Something else"}]
    assert not torch.equal(model.prepare(other).fused, expected), "what the caller says of an item goes first"


def test_an_unseen_item_goes_through_its_texts_with_less_confidence(finished, model):
    known = next(one for history in finished.histories for one in history if model.prepare([one]).confidence == 1.0)
    prepared = model.prepare([known, PENS, {"item_id": "B-unheard-of", "title": "Ink"}, PENS])
    assert prepared.confidence == 0.25
    assert prepared.unknown_items == (PENS["title"], "B-unheard-of")
    cf, content = prepared.fused[:, : model.spec.cf_dim], prepared.fused[:, model.spec.cf_dim :]
    assert cf.any(dim=1).tolist() == [True, False, False, False]
    assert content.norm(dim=1).tolist() == pytest.approx([1, 1, 1, 1], abs=1e-3)
    narrative = model.narrate([known, PENS])
    assert (narrative.confidence, narrative.unknown_items) == (0.5, (PENS["title"],))


def test_a_withheld_review_and_its_copies_do_not_enter(model):
    def fused(feature, first, last):
        return model.prepare(
            [{"title": "Pens", "review": first}, {"title": "Pens", "review": last}], feature=feature
        ).fused

    copied = fused("product_endorsement", "Great!", "great")
    assert torch.equal(copied, fused("product_endorsement", "", ""))
    assert torch.equal(fused("product_endorsement", "Great!", "Awful.")[1], copied[1])
    assert not torch.equal(fused("product_endorsement", "Great!", "Awful.")[0], copied[0])
    assert not torch.equal(fused("purchase_reason", "Great!", "Awful.")[1], copied[1])


def test_of_a_long_history_the_latest_are_read(model):
    history = [{"title": f"Thing {number}"} for number in range(10_000)]
    history[0] = "never looked at"
    assert torch.equal(model.prepare(history).fused, model.prepare(history[-50:]).fused)
    assert model.narrate(history) == model.narrate(history[-50:])


def test_a_stream_is_the_same_text_in_pieces(finished, model):
    histories, predictions = finished.of("purchase_reason")
    for history, prediction in zip(histories[:4], predictions, strict=False):
        pieces = list(model.stream(history))
        assert "".join(pieces) == prediction
        assert len(pieces) == len(prediction.split())  # a piece per word


def test_sampling_repeats_by_its_seed_and_leaves_the_global_one(finished, model):
    histories = finished.of("purchase_reason")[0][:3]
    state = torch.get_rng_state()
    first, again, other = (model.narrate(histories, temperature=2.0, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    for seed in ("x", -1, True, 0.5, None):
        with pytest.raises(RequestError, match="seed=.*it has to be an integer of at least 0"):
            model.narrate(histories, temperature=2.0, seed=seed)
    for temperature in (0, -1.0, float("nan"), "a", True):
        with pytest.raises(RequestError, match="temperature=.*above 0"):
            model.narrate(histories, temperature=temperature)


def test_cf_has_a_share_in_each_interaction_and_none_in_an_unseen_one(finished, model):
    history = finished.of("purchase_reason")[0][0]
    shares = model.cf_shares([*history, PENS])
    assert len(shares) == len(history) + 1
    assert all(0 <= share <= 1 for share in shares)
    assert any(shares)
    assert shares[-1] == 0


def test_what_the_service_and_the_page_read(finished, model):
    assert model.features == ("purchase_reason", "product_endorsement")
    assert model.data_fingerprint == pipeline.read_run(finished.folder).inputs.prepared.fingerprint
    assert model.decoding.max_new_tokens == 6
    assert model.decoding.stop_ids == {model.decoding.tokenizer.eos_token_id}
    prepared = model.prepare_all([[PENS], [PENS, PENS]])
    assert [model.decoding.limit(one) for one in prepared] == [6, 6]
    batch = model.decoding.collate(prepared)
    assert batch.fused.shape == (2, 2, model.spec.dim)
    assert batch.history_mask.tolist() == [[False, True], [True, True]]


BAD = [
    ([], "the history is empty"),
    ([[]], r"histories\[0\]: the history is empty"),
    ([[PENS], [{}]], r"histories\[1\]: history\[0\]: no title, and no item_id"),
    ("pens", "a history is a list of interactions, not 'pens'"),
    (None, "a history is a list of interactions, not None"),
    ({"title": "Pens"}, "a history is a list of interactions, not {'title"),
    (["pens"], r"history\[0\]: a mapping like .* is needed, not 'pens' \(str\)"),
    ([PENS, 7], r"history\[1\]: a mapping like .* is needed, not 7 \(int\)"),
    ([{"titel": "Pens"}], r"history\[0\]: there is no 'titel'\. Did you mean 'title'\?"),
    ([{"item_id": "B-unheard-of"}], r"history\[0\]: no title, and item_id='B-unheard-of' has none here"),
    ([{"title": " \x00 "}], r"history\[0\]: no title"),
    ([{"title": 3}], r"history\[0\].title=3 \(int\) is no text"),
    ([{**PENS, "rating": "5"}], r"history\[0\].rating='5' \(str\) is no number"),
    ([{**PENS, "rating": True}], r"history\[0\].rating=True \(bool\) is no number"),
    ([{**PENS, "price": float("nan")}], r"history\[0\].price=nan is not within"),
    ([{**PENS, "price": 10**400}], r"history\[0\].price=10+ is not within"),
]


@pytest.mark.parametrize(("history", "message"), BAD, ids=lambda value: repr(value)[:40])
def test_a_history_that_cannot_be_read_is_named(model, history, message):
    with pytest.raises(RequestError, match=f"^{message}"):
        model.narrate(history)


HUGE = 10**5000  # Python refuses to write it
UNWRITABLE = {"rating": [{**PENS, "rating": HUGE}], "text": [{"title": HUGE}], "name": [{HUGE: "Pens"}], "list": HUGE}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_number_too_large_to_write_is_named(model, name):
    with pytest.raises(RequestError, match="thousands of digits"):
        model.narrate(UNWRITABLE[name])


@pytest.mark.parametrize("name", ["temperature", "feature"])
def test_an_option_too_large_to_write_is_named(model, name):
    with pytest.raises(RequestError, match="thousands of digits"):
        model.narrate([PENS], **{name: HUGE})


def test_sampled_text_ends_at_the_window(model, monkeypatch):
    prepared = model.prepare_all([[PENS], [PENS] * 3, [PENS] * 2])
    decoding = dataclasses.replace(model.decoding, window=prepared[1].prefix + 2)
    written, generate = [], type(model.soft_token_lm).generate

    def watched(self, batch, config):
        ids = generate(self, batch, config)
        written.append(self.prefix(batch)[0].shape[1] + ids.shape[1])
        return ids

    monkeypatch.setattr(type(model.soft_token_lm), "generate", watched)
    assert len(decoding.texts(prepared, temperature=2.0, seed=0)) == 3
    assert max(written) <= decoding.window


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ("purchase_reasn", "Did you mean 'purchase_reason'?"),
        (["purchase_reason"], "Known: purchase_reason"),
        (None, ""),
    ],
)
def test_an_unknown_feature_is_named(model, feature, message):
    with pytest.raises(RequestError, match="this model does not write it") as raised:
        model.narrate([PENS], feature)
    assert message in str(raised.value)


ODD = [
    "x" * 1_000_000,
    "word " * 200_000,
    "bell \x07 null \x00 escape \x1b[31m",
    "עט כחול מצוין",
    "👩🏽‍🚀 pens ✍️",
    "half \ud83d of a pair",
    "<script>alert('x')</script>",
    "{{ 7 * 7 }} %s \\n {0}",
]


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text)[:24])
def test_odd_text_is_read(model, text):
    history = [{**PENS, "review": text}, {"title": text, "review": text}]
    prepared = model.prepare(history)
    assert prepared.fused.isfinite().all()
    assert model.narrate(history).text == "".join(model.stream(history))


def test_control_characters_are_space(model):
    spaced, controlled = ([{**PENS, "review": f"Fine{between}pens"}] for between in (" ", "\x00"))
    assert torch.equal(model.prepare(spaced).fused, model.prepare(controlled).fused)
