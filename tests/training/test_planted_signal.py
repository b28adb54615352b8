"""The signal planted in the synthetic world is found by the encoders that carry it, and by no other; analyses say so."""

import json

import pytest

from regen.analysis.adapter_sample import open_adapter
from regen.analysis.adapter_weights import cf_shares
from regen.pipeline import diagnose, train_and_evaluate

pytestmark = pytest.mark.slow  # trains seven small cells to the end
WORLD = [
    "source.users=3000",
    "source.narrated_users=600",
    "source.items=800",
    "source.needs=4",
    "source.purchases=3",
    "cf.model.factors=32",
    "cf.model.iterations=10",
    "feature=user_profile",
    "lm.width=64",
    "tuning.lr=0.003",
    "adapter.lr=0.003",
    "training.batch_size=8",
    "trainer.max_epochs=6",
    "trainer.val_check_interval=1.0",
    "callbacks.early_stopping.patience=100",
    "evaluation.generation.max_new_tokens=16",
]
CHANCE = {"need": 1 / 4, "trait": 1 / 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a cell in the world; gives its folder."""

    from regen.config.objects import compose

    folder = tmp_path_factory.mktemp("planted")
    base = ["adapter=linear", "lm=tiny", "tuning=full", "trainer.enable_progress_bar=false", *WORLD]
    base += [f"paths.data_dir={folder}/data", f"paths.runs_dir={folder}/runs"]

    def of(*overrides):
        return train_and_evaluate(compose([*base, *overrides]))[0]

    return of


@pytest.fixture(scope="module")
def runs(trained):
    """The folders of four encoders on the same world."""
    return {encoder: trained(f"encoder={encoder}") for encoder in ("both", "cf", "content", "noise")}


@pytest.fixture(scope="module")
def recovered(runs):
    """Need and trait recovery of each encoder."""
    found = {}
    for encoder, run in runs.items():
        scores = json.loads((run / "scores.json").read_text())["user_profile"]
        found[encoder] = {name: scores[f"{name}_recovery"]["model"]["value"] for name in CHANCE}
    return found


@pytest.mark.parametrize("encoder", ["both", "cf"])
def test_co_purchases_tell_the_need(recovered, encoder):
    assert recovered[encoder]["need"] > CHANCE["need"] + 0.4


@pytest.mark.parametrize("encoder", ["both", "content"])
def test_texts_tell_the_traits(recovered, encoder):
    assert recovered[encoder]["trait"] > CHANCE["trait"] + 0.4


def test_cf_tells_no_traits_and_content_no_need(recovered):
    assert recovered["cf"]["trait"] < CHANCE["trait"] + 0.15
    assert recovered["content"]["need"] < CHANCE["need"] + 0.15


def test_noise_tells_neither(recovered):
    assert recovered["noise"]["need"] < CHANCE["need"] + 0.15
    assert recovered["noise"]["trait"] < CHANCE["trait"] + 0.15


@pytest.fixture(scope="module")
def swapped(runs):
    """The swap test of each encoder: values by position and measure."""
    found = {}
    for encoder in ("both", "cf", "content"):
        diagnose(runs[encoder])
        rows = json.loads((runs[encoder] / "diagnosis.json").read_text())["swap"]["summary"]
        found[encoder] = {(row["position"], row["measure"]): row["value"] for row in rows}
    return found


@pytest.mark.parametrize("encoder", ["both", "content"])
def test_traits_follow_the_final_item_and_no_other_where_content_enters(swapped, encoder):
    named = swapped[encoder]
    assert named["final", "trait_new_after"] > named["final", "trait_new_before"] + 0.4
    assert named["final", "trait_old_after"] < CHANCE["trait"] + 0.15
    assert named["other", "trait_old_after"] > named["other", "trait_old_before"] - 0.15


def test_traits_do_not_follow_where_cf_enters_alone(swapped):
    for position in ("final", "other"):
        assert abs(swapped["cf"][position, "trait_new_after"] - swapped["cf"][position, "trait_new_before"]) < 0.1


@pytest.mark.parametrize("position", ["final", "other"])
def test_the_need_moves_with_any_item_where_cf_enters_and_not_where_content_enters_alone(swapped, position):
    lost = {name: of[position, "need_old_before"] - of[position, "need_old_after"] for name, of in swapped.items()}
    assert min(lost["cf"], lost["both"]) > 0.15, lost
    assert abs(lost["content"]) < 0.1, lost
    for name in ("cf", "both"):
        assert swapped[name][position, "need_new_after"] > swapped[name][position, "need_new_before"] + 0.1


def test_norm_shares_and_attribution_tell_which_part_the_narratives_need(trained):
    """The same world and inputs twice; narratives name the need alone, then traits alone."""
    shares = {}
    for name in ("Need", "Trait"):
        sample = open_adapter(trained("encoder=both", f"source._target_=planted_worlds.{name}Source"))
        shares[name] = {measure: float(share.nanmedian()) for measure, share in cf_shares(sample).items()}
    for measure in ("norms", "norms, parts centred", "attribution"):
        assert shares["Need"][measure] > shares["Trait"][measure] + 0.2, shares
    assert shares["Need"]["norms, parts centred"] > 0.5 > shares["Trait"]["norms, parts centred"], shares
