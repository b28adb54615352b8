"""Every file of conf/ composes, every experiment trains a step; found by glob, so that none can be forgotten."""

import json
import re

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from regen.config import CONF, register

VERTICALS = sorted(CONF.glob("vertical/*.yaml"))
GROUPED = sorted(path for path in CONF.glob("*/*.yaml") if path not in VERTICALS)
ROOTS = sorted(path.stem for path in CONF.glob("*.yaml") if "/schema/root/" in path.read_text())
NEEDED = {
    "lm/hf": ["lm.pretrained=somewhere"],
    "content/hf": ["content.pretrained=somewhere"],
    "source/jsonl": ["source.folder=somewhere"],
    "narrator/openai": ["narrator.model=some"],
    "rater/openai": ["rater.openai.model=some"],
    "rate": ["rater.openai.model=some"],
    "side_by_side": ["a=one", "b=two", "rater.openai.model=some"],
}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def write_readers(folder):
    """A small made-up data set in XRec's layout."""
    folder.mkdir()
    users, items = range(60), range(30)
    rows = {
        "users": [{"uid": user, "user_summary": f"Likes book {user % 30}."} for user in users],
        "items": [{"iid": item, "title": f"Book {item}", "item_summary": "A book."} for item in items],
        "explanations": [{"uid": user, "iid": user % 30, "explanation": "Because."} for user in users],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    edges = [(user, (user * step) % 30) for user in users for step in (1, 2, 3)]
    edges = sorted(set(edges))
    (folder / "interactions.csv").write_text("user,item,split\n" + "".join(f"{u},{i},trn\n" for u, i in edges))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Artefacts that all cells of this file share, as cells of a grid do."""
    return f"paths.data_dir={tmp_path_factory.mktemp('artefacts')}"


def composed(name: str, overrides: list[str]):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides)


@pytest.mark.parametrize("path", GROUPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_option_composes_and_resolves(path):
    group, name = path.parent.name, path.stem
    root = "rate" if group == "rater" else "train"
    chosen = f"[{name}]" if group == "rater" else name
    cfg = composed(root, [f"{group}={chosen}", *NEEDED.get(f"{group}/{name}", [])])
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", ROOTS)
def test_every_root_composes(name):
    assert OmegaConf.to_container(composed(name, NEEDED.get(name, [])), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("path", VERTICALS, ids=lambda path: path.stem)
def test_every_vertical_names_itself_and_its_files(path):
    vertical = yaml.safe_load(path.read_text())
    assert vertical.keys() == {"name", "file"}
    assert vertical["name"] == path.stem
    assert vertical["file"].isascii()


def test_a_vertical_decides_which_files_are_read():
    source = composed("prepare", ["source=amazon2018", "vertical=video_games"]).source
    assert source.reviews.endswith("/Video_Games_5.json.gz")
    assert source.metadata.endswith("/meta_Video_Games.json.gz")


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_yaml_stays_small(path):
    text = path.read_text()
    assert text.count("\n") <= 60, "split it, or make it a delta"
    assert len(re.findall(r"_target_:", text)) <= 5


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_a_step(name, small_config, shared, tmp_path):
    from regen.grid import train_and_evaluate

    raw = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    swept = raw.get("hydra", {}).get("sweeper", {}).get("params", {})
    last = [f"{key}={str(values).split(',')[-1].strip()}" for key, values in swept.items()]
    options = [f"experiment={name}", *last, "trainer.max_steps=1", shared]
    if {"override /source": "xrec"} in raw.get("defaults", []):  # its own data are no part of the repository
        write_readers(tmp_path / "xrec")
        cfg = small_config(*options, f"source.folder={tmp_path}/xrec", without="source.")
    else:
        cfg = small_config(*options)
    folder, _ = train_and_evaluate(cfg)
    assert (folder / "model.safetensors").is_file()
    assert (folder / "scores.json").is_file()


@pytest.mark.parametrize("encoder", sorted(path.stem for path in (CONF / "encoder").glob("*.yaml")))
def test_every_encoder_trains_a_step_with_every_adapter(encoder, small_config, shared):
    from regen.grid import train_and_evaluate

    adapter = {"both": "mlp", "content": "transformer"}.get(encoder, "linear")
    folder, _ = train_and_evaluate(
        small_config(f"encoder={encoder}", f"adapter={adapter}", "trainer.max_steps=1", shared)
    )
    assert (folder / "scores.json").is_file()


@pytest.mark.parametrize("tuning", sorted(path.stem for path in (CONF / "tuning").glob("*.yaml")))
def test_every_tuning_trains_a_step(tuning, small_config, shared):
    from regen.grid import train_and_evaluate

    folder, _ = train_and_evaluate(small_config(f"tuning={tuning}", "trainer.max_steps=1", shared))
    assert (folder / "model.safetensors").is_file()
