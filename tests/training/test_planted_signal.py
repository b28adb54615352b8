"""The signal planted in the synthetic world is found by the encoders that carry it, and by no other."""

import json

import pytest

from regen.grid import train_and_evaluate

pytestmark = pytest.mark.slow  # trains five small cells to the end
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
    "training.epochs=6",
    "training.validations_per_epoch=1",
    "training.patience=100",
    "evaluation.generation.max_new_tokens=16",
]
CHANCE = {"need": 1 / 4, "trait": 1 / 8}


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
    """Need and trait recovery of each encoder on the same world."""
    from hydra import compose, initialize_config_dir

    from regen.config import CONF, register

    register()
    folder = tmp_path_factory.mktemp("planted")
    base = ["adapter=linear", "lm=tiny", "tuning=full", "trainer.enable_progress_bar=false", *WORLD]
    base += [f"paths.data_dir={folder}/data", f"paths.runs_dir={folder}/runs"]
    found = {}
    for encoder in ("both", "cf", "content", "noise"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*base, f"encoder={encoder}"])
        run, _ = train_and_evaluate(cfg)
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
