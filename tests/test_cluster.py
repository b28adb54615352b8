"""A Ray cluster of two nodes on this machine gives what one process gives, also when a node dies half-way."""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from narratives.bad_server import BadServer
from small import SMALL

from regen.storage.artefacts import open_artefact

REPOSITORY = Path(__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",  # as Ray gives a task of one core; another number rounds sums otherwise
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(REPOSITORY),
}
ENCODED = [option for option in SMALL if option.startswith(("source", "cf"))]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    yield cluster
    cluster.shutdown()


def start(folder, *arguments):
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("a") as log:
        return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)


def finish(process, folder):
    assert process.wait(280) == 0, (folder / "log").read_text()[-4000:]


def run(folder, *arguments):
    finish(start(folder, *arguments), folder)


def content(folder):
    (path,) = folder.glob("outputs/data/content-*")
    open_artefact(path)
    return {name: np.load(path / f"{name}.npy") for name in ("vectors", "reviewed", "unreviewed")}


def segments(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("outputs/data/vectors-*/segment-*/manifest.json")}


def test_encode_gives_the_same_vectors_while_a_node_dies(cluster, tmp_path):
    local = tmp_path / "local"
    run(local, "-m", "regen", "encode", *ENCODED, "engine.interactions=400")
    ray = ["engine=ray", f"engine.address={cluster.address}", "engine.interactions=400"]
    dying = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    process = start(tmp_path, "-m", "regen", "encode", *ENCODED, *ray)
    deadline = time.monotonic() + 200
    while len(segments(tmp_path)) < 2:
        assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = segments(tmp_path)
    cluster.remove_node(dying, allow_graceful=False)
    finish(process, tmp_path)
    after = segments(tmp_path)
    assert len(after) > len(done)
    assert {path: after[path] for path in done} == done  # neither lost nor made again
    keys = [np.load(path.parent / "keys.npy").T for path in after]
    items = int(next(option for option in ENCODED if "source.items" in option).split("=")[1])
    twice = sum(map(len, keys)) - len(np.unique(np.concatenate(keys), axis=0))
    assert twice <= items  # items without their review, where two shards meet one at the same time; no review
    ours, theirs = content(tmp_path), content(local)
    assert np.array_equal(ours["reviewed"], theirs["reviewed"])
    assert np.array_equal(ours["unreviewed"], theirs["unreviewed"])
    # Which texts share a batch depends on what the store holds by then: the last bit of half precision, no more.
    assert np.allclose(ours["vectors"].astype(np.float32), theirs["vectors"].astype(np.float32), rtol=0, atol=1e-3)


def test_narrating_and_rating_on_the_cluster_ask_and_write_the_same(cluster, tmp_path):
    world = [option for option in SMALL if option.startswith("source")] + ["source=synthetic", "vertical=office"]
    written, asked = {}, {}
    for name in ("local", "ray"):
        engine = [] if name == "local" else ["engine=ray", f"engine.address={cluster.address}", "engine.requests=20"]
        with BadServer(["none", "500", "truncated JSON"]) as server:
            narrator = ["narrator=openai", "narrator.model=m", f"narrator.base_url={server.url}", "narrator.users=30"]
            run(tmp_path / name, "-m", "regen", "narrate", *world, *narrator, *engine)
            asked[name] = len(server.asked)
            rater = ["rater=[local]", f"rater.local.base_url={server.url}", "draws=1", "users=10"]
            run(tmp_path / name, "-m", "regen", "rate", *world, "narrator=template", *rater, *engine)
            asked[name] = (asked[name], len(server.asked))
        paths = [*(tmp_path / name).glob("outputs/data/narrated-*/narratives.parquet")]
        tables = [
            pl.read_parquet(path) for path in (*paths, *(tmp_path / name).glob("outputs/data/rated-*/ratings.parquet"))
        ]
        assert len(tables) == 3  # the endpoint's narratives, those of templates, ratings of the latter
        tables.sort(key=lambda table: (table.columns, table.rows()[0]))
        written[name] = [table.drop("written", "sampling", strict=False) for table in tables]
    assert asked["local"] == asked["ray"]
    for ours, theirs in zip(written["ray"], written["local"], strict=True):
        assert len(ours) > 20
        assert ours.equals(theirs)


def test_a_grid_and_generation_on_the_cluster_score_the_same_while_a_node_dies(cluster, tmp_path):
    grid = [str(REPOSITORY / "train.py"), "-m", *SMALL, "encoder=cf,content,noise", "trainer.max_steps=2"]
    local = tmp_path / "local"
    run(local, *grid)
    places = [f"paths.data_dir={tmp_path}/data", f"paths.runs_dir={tmp_path}/runs", f"hydra.sweep.dir={tmp_path}/grid"]
    launcher = ["hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address='{cluster.address}'"]
    run(tmp_path, *grid, *places, *launcher)
    ours = {path.name: path for path in (tmp_path / "runs").glob("purchase_reason-*")}
    theirs = {path.name: path for path in local.glob("outputs/runs/purchase_reason-*")}
    assert len(ours) == 3
    assert ours.keys() == theirs.keys()
    for name, path in ours.items():
        for file in ("predictions.jsonl", "scores.json"):
            assert (path / file).read_bytes() == (theirs[name] / file).read_bytes(), (name, file)
    assert "failed" not in (tmp_path / "grid" / "table.md").read_text()

    run_folder = next(path for name, path in ours.items() if "-content-" in name)
    before = (run_folder / "predictions.jsonl").read_bytes()
    options = [option for option in SMALL if option.startswith("evaluation")]
    engine = ["engine=ray", f"engine.address={cluster.address}", "engine.narratives=2"]
    dying = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    process = start(tmp_path, str(REPOSITORY / "evaluate.py"), f"run={run_folder}", "force=true", *options, *engine)
    written, at_death = defaultdict(set), None  # when each shard's file was written
    while process.poll() is None:
        for path in run_folder.glob("generated/*/*.ndjson"):
            with suppress(FileNotFoundError):  # all of them have just been taken together
                written[path].add(path.stat().st_mtime_ns)
        if at_death is None and len(written) >= 2:
            at_death = len(written)
            cluster.remove_node(dying, allow_graceful=False)
        time.sleep(0.02)
    finish(process, tmp_path)
    assert at_death < len(written) == -(-len(before.splitlines()) // 2)
    assert all(len(times) == 1 for times in written.values())  # neither lost nor made again
    assert (run_folder / "predictions.jsonl").read_bytes() == before
    assert not (run_folder / "generated").exists()
    assert json.loads((run_folder / "evaluation.json").read_text())["costs"]["memory_gib"] > 0
