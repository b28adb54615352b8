"""Every file of conf/ composes, every experiment trains a step; found by glob, so that none can be forgotten."""

import re

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from regen.config import CONF, register

GROUPED = sorted(CONF.glob("*/*.yaml"))
NEEDED = {
    "lm/hf": ["lm.pretrained=somewhere"],
    "content/hf": ["content.pretrained=somewhere"],
    "source/jsonl": ["source.folder=somewhere"],
}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def composed(name: str, overrides: list[str]):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides)


@pytest.mark.parametrize("path", GROUPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_option_composes_and_resolves(path):
    group, name = path.parent.name, path.stem
    cfg = composed("train", [f"{group}={name}", *NEEDED.get(f"{group}/{name}", [])])
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", ["train", "prepare", "encode", "evaluate"])
def test_every_root_composes(name):
    assert OmegaConf.to_container(composed(name, []), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_yaml_stays_small(path):
    text = path.read_text()
    assert text.count("\n") <= 60, "split it, or make it a delta"
    assert len(re.findall(r"_target_:", text)) <= 5


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_a_step(name, small_config):
    from regen.grid import train_and_evaluate

    raw = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    swept = raw.get("hydra", {}).get("sweeper", {}).get("params", {})
    last = [f"{key}={str(values).split(',')[-1].strip()}" for key, values in swept.items()]
    folder, _ = train_and_evaluate(small_config(f"experiment={name}", *last, "trainer.max_steps=1"))
    assert (folder / "model.safetensors").is_file()
    assert (folder / "scores.json").is_file()


@pytest.mark.parametrize("encoder", sorted(path.stem for path in (CONF / "encoder").glob("*.yaml")))
def test_every_encoder_trains_a_step_with_every_adapter(encoder, small_config):
    from regen.grid import train_and_evaluate

    adapter = {"both": "mlp", "content": "transformer"}.get(encoder, "linear")
    folder, _ = train_and_evaluate(small_config(f"encoder={encoder}", f"adapter={adapter}", "trainer.max_steps=1"))
    assert (folder / "scores.json").is_file()


@pytest.mark.parametrize("tuning", sorted(path.stem for path in (CONF / "tuning").glob("*.yaml")))
def test_every_tuning_trains_a_step(tuning, small_config):
    from regen.grid import train_and_evaluate

    folder, _ = train_and_evaluate(small_config(f"tuning={tuning}", "trainer.max_steps=1"))
    assert (folder / "model.safetensors").is_file()
