"""Every experiment, encoder and tuning trains a step; found by glob, so that none can be forgotten."""

import json

import pytest
import yaml

from regen.config.schema import CONF

pytestmark = [  # that MiniLM runs is shown by test_grid.py; each trains a cell
    pytest.mark.usefixtures("no_sentence_encoder"),
    pytest.mark.slow,
]
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


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_trains_a_step(name, small_config, shared, tmp_path):
    from regen.pipeline import train_and_evaluate

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
    from regen.pipeline import train_and_evaluate

    adapter = {"both": "mlp", "content": "transformer"}.get(encoder, "linear")
    folder, _ = train_and_evaluate(
        small_config(f"encoder={encoder}", f"adapter={adapter}", "trainer.max_steps=1", shared)
    )
    assert (folder / "scores.json").is_file()


@pytest.mark.parametrize("tuning", sorted(path.stem for path in (CONF / "tuning").glob("*.yaml")))
def test_every_tuning_trains_a_step(tuning, small_config, shared):
    from regen.pipeline import train_and_evaluate

    folder, _ = train_and_evaluate(small_config(f"tuning={tuning}", "trainer.max_steps=1", shared))
    assert (folder / "model.safetensors").is_file()
