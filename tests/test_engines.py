"""Shards on an engine, cores shared by a grid's jobs, launchers that compose."""

import json
import os
import sys

import polars as pl
import pytest
from hydra import compose, initialize_config_dir

from regen.config.registration import register
from regen.config.schema import CONF
from regen.generation import shards as generate_shards
from regen.generation.shards import generate_in_shards
from regen.pipeline import load_folder
from regen.runtime import threads
from regen.runtime.shards import LocalEngine, RayEngine
from regen.runtime.threads import share_cores, threads_per_job


@pytest.mark.parametrize(
    ("launcher", "cores", "threads"),
    [
        ({"n_jobs": 2}, 8, 4),
        ({"n_jobs": 3}, 8, 2),
        ({"n_jobs": 16}, 8, 1),
        ({"n_jobs": -1}, 8, 1),
        ({"n_jobs": -7}, 8, 4),
        ({"n_jobs": 1}, 8, 8),
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, 8, None),
    ],
)
def test_jobs_of_a_grid_share_the_cores(launcher, cores, threads):
    assert threads_per_job(launcher, cores=cores) == threads


def test_a_job_keeps_to_its_share(monkeypatch):
    import torch

    before = torch.get_num_threads()
    for name in threads.VARIABLES:
        monkeypatch.setenv(name, "9")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    try:
        share_cores({"n_jobs": 2})
        assert torch.get_num_threads() == 3
        assert {os.environ[name] for name in threads.VARIABLES} == {"3"}
        share_cores({})
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("launcher", ["joblib", "ray", "ray_cluster", "submitit_local", "submitit_slurm"])
def test_launchers_compose(launcher):
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    assert "aunch" in cfg.hydra.launcher._target_


def test_a_local_engine_works_on_one_shard_after_the_other():
    seen = []
    records = LocalEngine().map(lambda shard: seen.append(shard) or shard * 2, [1, 2, 3], name="double")
    assert next(records) == 2
    assert seen == [1]
    assert list(records) == [4, 6]


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    engine = RayEngine(interactions=1, narratives=1, requests=1, asking=1, address=None, cpus=1, gpus=0)
    with pytest.raises(ModuleNotFoundError, match=r"engine=ray needs Ray. Run: pip install 'regen\[cluster\]'"):
        list(engine.map(str, [1], name="nothing"))
    assert list(engine.map(str, [], name="nothing")) == []


def test_generation_in_shards_is_that_of_the_whole_and_keeps_what_is_done(small_config, monkeypatch):
    from regen.pipeline import train_and_evaluate

    folder, _ = train_and_evaluate(small_config("encoder=cf", "trainer.max_steps=2"))
    whole = pl.read_ndjson(folder / "predictions.jsonl")
    settings = json.loads((folder / "evaluation.json").read_text())["settings"]
    options = {"generation": settings["generation"], "batch_size": settings["batch_size"], "seed": 0, "recipe": "r"}
    options["precision"] = None
    options |= {"examples": len(whole), "size": 5, "engine": LocalEngine()}
    (folder / "generated" / "of another recipe").mkdir(parents=True)
    generate, shards = generate_shards.generate_narratives, []

    def dies_in_the_third(model, dataset, **rest):
        shards.append(len(dataset))
        if len(shards) == 3:
            raise KeyboardInterrupt
        return generate(model, dataset, **rest)

    monkeypatch.setattr(generate_shards, "generate_narratives", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        generate_in_shards(folder, load_folder, **options)
    assert [path.name for path in (folder / "generated").iterdir()] == ["r"]
    assert generate_in_shards(folder, load_folder, **options).equals(whole.select(list(whole.columns)))
    assert sum(shards) == len(whole) + shards[2]  # only the shard that died was done again
    assert not (folder / "generated").exists()
