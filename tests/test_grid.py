"""The commands as a user types them: a grid with a failing cell, a kill, several processes, evaluate.py."""

import csv
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from small import SMALL

from regen.commands.evaluate import evaluate_from_config
from regen.commands.grid import GridTable, _warn_of_idle_overrides
from regen.config.objects import typed
from regen.config.registration import register
from regen.config.schema import CONF
from regen.evaluation.cells import grid_cells
from regen.evaluation.comparison import compare

register()
REPOSITORY = Path(__file__).parent.parent


def small_world(narrated):
    """SMALL with another number of narrated users."""
    return [option.replace("narrated_users=80", f"narrated_users={narrated}") for option in SMALL]


def command(script, folder, *arguments, small=True, narrated=80, **environment):
    """Runs a script of the repository's top level in the given folder; what is given wins over the small world."""
    flags = [one for one in arguments if one.startswith("-")]  # Hydra wants them before every override
    overrides = [one for one in arguments if one not in flags]
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *flags, *(small_world(narrated) if small else []), *overrides],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def kill_when(job, folder, pattern):
    """Starts a job and kills it, with all its processes, once a file of that pattern is there."""
    log = folder / "killed.log"
    with log.open("w") as told:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(job, cwd=folder, env=environment, start_new_session=True, stdout=told, stderr=told)
    deadline = time.monotonic() + 300
    while not list(folder.glob(pattern)):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A multirun whose second half fails, because its split leaves nothing to test on."""
    folder = tmp_path_factory.mktemp("grid")
    done = command("train.py", folder, "-m", "encoder=cf", "split.test=0.2,0.0001", "trainer.max_steps=2")
    return folder, done


@pytest.mark.slow  # a grid in a process of its own
def test_a_failed_cell_is_shown_and_the_others_are_kept(grid):
    folder, done = grid
    assert done.returncode == 1, done.stderr
    table = next(folder.glob("outputs/grids/*/*/table.md")).read_text()
    assert "failed" in table
    assert "The test split has 0 users" in table
    assert "Traceback (most recent call last)" not in done.stderr
    (text,) = [path.read_text() for path in folder.glob("outputs/grids/*/*/*/traceback.txt")]
    assert "Traceback (most recent call last)" in text
    assert "ROUGE-Lsum" in table
    assert "1 of 2 cells failed" in done.stderr
    assert "ROUGE-Lsum" in done.stdout
    assert len(list(folder.glob("outputs/runs/*/scores.json"))) == 1


def test_a_wrong_value_in_one_cell_is_refused_before_the_first_one(tmp_path):
    done = command("train.py", tmp_path, "-m", "encoder=cf", "adapter.lr=0.01,-1")
    assert done.returncode == 2
    assert "error: adapter.lr=-1.0 has to be above 0 to 10 (peak learning rate). Cell:" in done.stderr
    assert not list(tmp_path.glob("outputs/runs/*"))


@pytest.mark.slow  # a process of its own that loads torch
def test_columns_that_were_not_swept_are_refused_before_the_first_cell(tmp_path):
    done = command("train.py", tmp_path, "-m", "encoder=cf", "adapter.lr=0.01,0.02", "compare.columns=tuning")
    assert done.returncode == 2
    assert "error: compare: columns=tuning: all runs have the same value. They differ in adapter.lr" in done.stderr
    assert not list(tmp_path.glob("outputs/runs/*"))


def test_every_cell_is_noted_before_the_first_one_starts(tmp_path):
    """So that a table that grows with its cells says of the others that they are missing."""
    stale = tmp_path / "7" / "cell.json"
    stale.parent.mkdir()
    stale.write_text("{}")
    task = ["experiment=table1", "seed=4", "feature=user_profile,purchase_reason"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [task[0], f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
        config.hydra.overrides.task = task
        GridTable().on_multirun_start(config, config_name="train")
    assert not stale.exists()
    cells = grid_cells(tmp_path)
    found = {(cell.encoder, cell.seed, cell.settings["feature"]) for cell in cells}
    features = ("user_profile", "purchase_reason")
    assert found == {(encoder, 4, feature) for encoder in ("cf", "content", "both") for feature in features}
    comparison = compare(cells, resamples=100)
    table = comparison.to_markdown()
    assert "| BLEU | missing | missing | missing | — | — |" in table
    assert "- user_profile, encoder=both, seed=4: missing: no examples.parquet in" in table
    assert len(comparison.problems) == 6


def test_a_sweep_that_hydra_refuses_plans_nothing(tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"hydra.sweep.dir={tmp_path}"], return_hydra_config=True)
        config.hydra.overrides.task = ["encoder=cf,contnt"]
        GridTable().on_multirun_start(config, config_name="train")
    assert list(tmp_path.iterdir()) == []


def test_slurm_is_refused_where_it_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    sweep = tmp_path / "sweep"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = ["hydra/launcher=submitit_slurm", f"hydra.sweep.dir={sweep}"]
        config = compose("train", options, return_hydra_config=True)
    with pytest.raises(SystemExit) as stop:
        GridTable().on_multirun_start(config, config_name="train")
    assert stop.value.code == 2
    assert (
        "error: hydra/launcher=submitit_slurm: this machine has no srun and no sbatch. Run" in capsys.readouterr().err
    )
    assert not sweep.exists()


def test_make_paper_runs_experiments_that_exist_each_with_a_report():
    done = subprocess.run(["make", "-n", "paper"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    experiments = re.findall(r"train.py -m experiment=(\w+) hydra.sweep.dir=outputs/paper/(\w+)", done.stdout)
    assert experiments == [(name, name) for name in ("table1", "controls", "adapters", "xrec")]
    assert re.findall(r"regen report runs=outputs/paper/(\w+)", done.stdout) == [name for name, _ in experiments]
    assert all((CONF / "experiment" / f"{name}.yaml").is_file() for name, _ in experiments)


@pytest.mark.slow  # a process of its own that loads torch
def test_evaluate_compares_existing_runs_and_writes_csv(grid):
    folder, _ = grid
    done = command("evaluate.py", folder, "runs=outputs/runs", "evaluation.resamples=100", small=False)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((folder / "outputs/runs/table.csv").read_text().splitlines()))
    assert {"bleu", "need_recovery"} <= {value for row in rows for value in row.values()}


@pytest.mark.slow  # a process of its own that loads torch
def test_evaluate_scores_a_run_again(grid):
    folder, _ = grid
    run = next(folder.glob("outputs/runs/*-cf-*/scores.json")).parent
    before = (run / "predictions.jsonl").read_text()
    arguments = [f"run={run}", "force=true", "evaluation.resamples=100", "evaluation.generation.max_new_tokens=6"]
    done = command("evaluate.py", folder, *arguments, small=False)
    assert done.returncode == 0, done.stderr
    assert "Need recovery" in done.stdout
    assert (run / "predictions.jsonl").read_text() == before


def test_evaluate_wants_one_thing(tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        none, two = typed(compose("evaluate", [])), typed(compose("evaluate", ["run=a", "runs=b"]))
        missing = typed(compose("evaluate", [f"runs={tmp_path}"]))
        against = typed(compose("evaluate", ["run=a", "against=b"]))
    with pytest.raises(ValueError, match="Give one of run=, runs= and predictions=, .*got none"):
        evaluate_from_config(none)
    with pytest.raises(ValueError, match="got run and runs"):
        evaluate_from_config(two)
    with pytest.raises(ValueError, match="against=b takes runs=FOLDER alone; got run"):
        evaluate_from_config(against)
    with pytest.raises(FileNotFoundError, match="neither the folder of a grid nor one that holds runs"):
        evaluate_from_config(missing)


def test_stages_run_alone(tmp_path):
    small = [option for option in SMALL if option.startswith(("source", "cf"))]
    done = subprocess.run(
        [sys.executable, "-m", "regen", "prepare", *[o for o in small if o.startswith("source")]],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/data/prepared-*/manifest.json"))) == 1


@pytest.mark.slow
def test_killed_in_the_middle_the_same_command_finishes_and_repeats_nothing(tmp_path):
    arguments = [
        "-m",
        *SMALL,
        "encoder=cf,noise",
        "trainer.max_epochs=30",
        "training.checkpoint_seconds=0",
        "callbacks.early_stopping.patience=999",
    ]
    grid = [sys.executable, str(REPOSITORY / "train.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kill_when(grid, tmp_path, "outputs/runs/*noise*/checkpoints/last.ckpt")  # the first cell is done by then
    (first,) = tmp_path.glob("outputs/runs/*-cf-*/model.safetensors")
    kept = {path: path.stat().st_mtime_ns for path in [first, *tmp_path.glob("outputs/data/*/manifest.json")]}
    again = subprocess.run(grid, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stderr + again.stdout
    assert "resuming" in again.stderr + again.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(tmp_path.glob("outputs/runs/*/scores.json"))) == 2
    assert list(tmp_path.glob("outputs/grids/*/*/table.md"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "tuning", "accumulated", "task"),
    [
        ("ddp", "full", 1, "narrate"),
        ("ddp", "full", 2, "narrate"),
        ("fsdp", "full", 1, "narrate"),
        ("fsdp", "lora", 1, "narrate"),
        ("fsdp", "full", 1, "converse"),
    ],
)
def test_two_processes_give_the_loss_of_one(tmp_path, trainer, tuning, accumulated, task):
    losses = {}  # 56 training narratives: batches of four that two processes can share to the last
    for name, options in (("one", []), ("two", [f"trainer={trainer}", "trainer.accelerator=cpu"])):
        folder = tmp_path / name
        folder.mkdir()
        learned = [f"task={task}", "encoder=cf", f"trainer.max_epochs={2 * accumulated}", f"tuning={tuning}"]
        learned.append(f"trainer.accumulate_grad_batches={accumulated}")
        done = command("train.py", folder, *learned, *options, narrated=78)
        assert done.returncode == 0, done.stderr
        (run,) = folder.glob(f"outputs/runs/*-{tuning}-*/run.json")
        (metrics,) = run.parent.glob("logs/*/metrics.csv")
        steps = [
            float(row["train_loss"])
            for row in csv.DictReader(metrics.read_text().splitlines())
            if row.get("train_loss")
        ]
        losses[name] = (json.loads(run.read_text())["val_loss"], steps)
    assert losses["one"][0] == pytest.approx(losses["two"][0], rel=1e-4)
    assert len(losses["one"][1]) >= 2
    assert losses["one"][1] == pytest.approx(losses["two"][1], rel=1e-3)


@pytest.mark.slow
def test_sharded_training_goes_on_where_it_was_killed(tmp_path):
    options = ["encoder=cf", "trainer.max_epochs=40", "trainer=fsdp", "trainer.accelerator=cpu", "tuning=lora"]
    options.append("training.checkpoint_seconds=1")
    losses = []
    for name in ("killed", "whole"):
        folder = tmp_path / name
        folder.mkdir()
        if name == "killed":
            job = [sys.executable, str(REPOSITORY / "train.py"), *small_world(78), *options]
            kill_when(job, folder, "outputs/runs/*/checkpoints/last.ckpt")
            assert not list(folder.glob("outputs/runs/*/model.safetensors"))
        done = command("train.py", folder, *options, narrated=78)
        assert done.returncode == 0, done.stderr
        assert ("resuming" in done.stdout + done.stderr) == (name == "killed")
        (run,) = folder.glob("outputs/runs/*/run.json")
        losses.append(json.loads(run.read_text())["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.slow  # two processes that load torch
def test_ranks_that_srun_starts_train_one_run(tmp_path):
    """`srun` sets no LOCAL_RANK: its ranks are told apart by its own variables, and one of them writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    job |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    options = ["encoder=cf", "trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1"]

    def rank(number):
        of_rank = {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}
        return command("train.py", tmp_path, *options, narrated=78, **job, **of_rank)

    with ThreadPoolExecutor(2) as pool:
        for done in pool.map(rank, range(2)):
            assert done.returncode == 0, done.stderr
    (weights,) = tmp_path.glob("outputs/runs/*/model.safetensors")
    assert (weights.parent / "scores.json").is_file()


@pytest.mark.slow  # processes that load torch
def test_sharded_validation_ends_where_the_last_batch_has_fewer_rows_than_there_are_processes(tmp_path):
    losses, validated = [], 0
    for trainer in ("cpu", "fsdp"):
        folder = tmp_path / trainer
        folder.mkdir()
        options = [f"trainer={trainer}", "trainer.accelerator=cpu", "encoder=cf", "trainer.max_epochs=1"]
        done = command("train.py", folder, *options, f"evaluation.batch_size={max(1, validated - 1)}", narrated=78)
        assert done.returncode == 0, done.stderr
        counted = re.search(r"(\d+) validation", done.stdout + done.stderr)
        assert counted is not None
        validated = int(counted[1])
        (run,) = folder.glob("outputs/runs/*/run.json")
        losses.append(json.loads(run.read_text())["val_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow  # a process of its own that loads torch
def test_a_sweep_over_several_processes_is_refused(tmp_path):
    done = command("train.py", tmp_path, "-m", "encoder=cf", "trainer=ddp")
    assert done.returncode != 0
    assert "Sweep single-device jobs" in done.stderr


@pytest.mark.parametrize(("encoder", "warned"), [("cf", True), ("content", False), ("item_text", False)])
def test_content_has_an_effect_where_a_part_reads_its_settings(encoder, warned, small_config, caplog):
    _warn_of_idle_overrides(small_config(f"encoder={encoder}"), ["content=sentence_t5"])
    assert ("content has no effect" in caplog.text) == warned


@pytest.mark.slow  # a process of its own that loads torch
def test_an_option_without_effect_is_warned_of(tmp_path):
    done = command("train.py", tmp_path, "encoder=noise", "cf=bpr", "cf.model.factors=16", "trainer.max_steps=1")
    assert done.returncode == 0, done.stderr
    assert "cf has no effect with this encoder=noise." in done.stdout + done.stderr
    assert "Similarity" in done.stdout  # a single run ends with its scores
    assert done.stdout.endswith("scores.json\n")


@pytest.mark.real_data
def test_predictions_of_another_system_score_as_published(tmp_path, real_data):
    path = real_data / "xrec_amazon" / "predictions.jsonl.gz"
    done = command("evaluate.py", tmp_path, f"predictions={path}", "evaluation.resamples=100", small=False)
    assert done.returncode == 0, done.stderr
    scores = json.loads(next(tmp_path.glob("outputs/predictions/*/scores.json")).read_text())["narrative"]
    assert round(scores["bleu"]["model"]["value"], 2) == 15.99
    assert round(scores["rougeLsum"]["model"]["value"], 2) == 33.46


@pytest.mark.slow
def test_a_search_prunes_goes_on_and_leaves_a_page(tmp_path):
    """Killed after its second trial it goes on to the number that was asked for; a pruned trial is not a finished run."""
    options = ["search=rates", "trials=9", "encoder=cf", "tuning=lora"]
    study = tmp_path / "outputs/search/rates/study.db"
    job = [sys.executable, str(REPOSITORY / "train.py"), "-m", *small_world(80), *options]
    kill_when(job, tmp_path, "outputs/runs/*/model.safetensors")
    done = command("train.py", tmp_path, "-m", *options)
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(study)) as connection:
        states = [state for (state,) in connection.execute("SELECT state FROM trials")]
    assert states.count("COMPLETE") == 9
    page = (tmp_path / "outputs/search/rates/search.html").read_text()
    assert "9 of" in page
    assert "Which setting mattered" in page
    assert "ended early, step" in page
    assert not list(tmp_path.glob("outputs/runs/*/scores.json")), "a search looked at the test users"
    early = page.count("ended early, step")
    assert len(list(tmp_path.glob("outputs/runs/*/model.safetensors"))) <= 9 - early
    again = command("train.py", tmp_path, "-m", *options)
    assert again.returncode == 0
    with closing(sqlite3.connect(study)) as connection:
        assert len(connection.execute("SELECT state FROM trials").fetchall()) == len(states)


@pytest.mark.slow  # processes that load torch
def test_a_search_goes_on_after_a_failed_trial_and_fails_a_killed_one(tmp_path):
    """With one of the two splits every trial fails, because it leaves nothing to test on."""
    study = tmp_path / "outputs/search/rates/study.db"
    options = ["search=rates", "encoder=cf", "tuning=lora", "split.test=choice(0.2, 0.0001)"]
    done = command("train.py", tmp_path, "-m", *options, "trials=4")
    assert done.returncode == 0, done.stderr
    assert "The test split has 0 users" in done.stdout + done.stderr
    with closing(sqlite3.connect(study)) as connection, connection:
        states = [state for (state,) in connection.execute("SELECT state FROM trials")]
        connection.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 0")  # as a kill leaves it
    assert len(states) == 4
    assert set(states) == {"COMPLETE", "FAIL"}
    again = command("train.py", tmp_path, "-m", *options, f"trials={states.count('COMPLETE') + 1}")
    assert again.returncode == 0, again.stderr
    with closing(sqlite3.connect(study)) as connection:
        states = [state for (state,) in connection.execute("SELECT state FROM trials ORDER BY number")]
    assert states[0] == "FAIL"
    assert "RUNNING" not in states


@pytest.mark.slow  # a process of its own that loads torch
def test_a_search_without_validation_says_so(tmp_path):
    """Not with Optuna's message for the failed trial, nor that 'rates' is no option of 'search'."""
    options = ["search=rates", "trials=1", "encoder=cf", "tuning=lora", "trainer.limit_val_batches=0"]
    done = command("train.py", tmp_path, "-m", *options)
    assert done.returncode != 0
    assert "val_loss is nan: the loss diverged, or the trial had no validation step." in done.stdout + done.stderr
    assert "error: every trial of the search failed; the lines above say why." in done.stderr
    assert "is not an option" not in done.stderr
