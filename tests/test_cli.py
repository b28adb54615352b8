"""The command line: mistakes get a short message with the nearest right name, everything else its traceback."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from regen.config.errors import explain

REPOSITORY = Path(__file__).parent.parent

CONF = {
    "train": """
        defaults: [base_train, training, {encoder: both}, {lm: small}, _self_, {experiment: null}]
        seed: 0
        """,
    "plain": """
        defaults: [{encoder: both}, _self_]
        training: {adapter_lr: 0.1}
        lm: {lora: {rank: 4}}
        """,
    "stage": "defaults: [{lm: small}, _self_]",
    "training": "# @package training\nadapter_lr: 0.1",
    "encoder/both": "name: both",
    "encoder/cf": "name: cf",
    "encoder/content": "name: content",
    "lm/small": "lora: {rank: 4}",
    "lm/hub": "pretrained: ???",
    "lm/broken": "lora: {rnk: 4}",
    "experiment/controls": "# @package _global_\nseed: 1",
    "experiment/bad_key": "# @package _global_\ntrainng: {adapter_lr: 1}",
    "experiment/bad_deep_key": "# @package _global_\ntraining: {adaptr_lr: 1}",
    "experiment/bad_value": "# @package _global_\nseed: many",
    "experiment/bad_option": "# @package _global_\ndefaults: [{override /encoder: bth}]",
    "experiment/bad_group": "# @package _global_\ndefaults: [{override /encodr: cf}]",
    "experiment/bad_sweep": "# @package _global_\nhydra: {sweeper: {params: {encoder: 'cf,contnt'}}}",
    "experiment/bad_yaml": "# @package _global_\nseed: [1",
}

SCRIPT = """
import contextlib, io, json, os, sys, traceback
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig

from regen.config.command_line import run_hydra

Init = Enum("Init", {"random": "random", "ridge": "ridge"})

@dataclass
class Lora:
    rank: int = 8

@dataclass
class LM:
    lora: Lora = field(default_factory=Lora)
    pretrained: str = MISSING

@dataclass
class Training:
    adapter_lr: float = 0.0
    init: Init = Init.ridge
    progress: bool = True

@dataclass
class BaseTrain:
    encoder: Any = None
    training: Training = field(default_factory=Training)
    lm: LM = field(default_factory=LM)
    seed: int = 0
    behave: str = "well"

ConfigStore.instance().store(name="base_train", node=BaseTrain)

def task(cfg: DictConfig) -> float:
    print("JOB", cfg.encoder.name)
    behave = cfg.get("behave", "well")
    if behave == "refused":
        from regen.storage.artefacts import open_artefact
        open_artefact(Path("nowhere"))
    elif behave == "broken":
        int("not a number")
    elif behave == "interrupted":
        raise KeyboardInterrupt
    elif behave == "stopped_by_lightning":
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)
    elif behave == "reading":
        cfg.lm.pretrained.lower()
    return 1.0

def command(name, arguments):
    sys.argv = ["train.py", *arguments]
    run_hydra(task, config_name=name, config_dir=Path("conf"))

def outcome(name, arguments, full_error=False):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    os.environ.pop("HYDRA_FULL_ERROR", None)
    if full_error:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command(name, arguments)
        except SystemExit as stop:
            code = stop.code
        except Exception:  # as the interpreter would
            code = 1
            traceback.print_exc()
    return [code, out.getvalue(), err.getvalue()]

if __name__ == "__main__":
    if sys.argv[1] == "cases":
        print(json.dumps([outcome(*case) for case in json.load(sys.stdin)]))
    else:
        command(sys.argv[1], sys.argv[2:])
        assert "torch" not in sys.modules, "torch loaded before the task"
"""

# config, arguments, all of which the message must hold
MISTAKES: list[tuple[str, list[str], list[str]]] = [
    ("train", ["encoder=cff"], ["'cff' is not an option of 'encoder'", "mean 'cf'?", "both, cf, content"]),
    ("train", ["encoderr=cf"], ["encoderr=cf", "Did you mean 'encoder'?", "both, cf, content"]),
    ("train", ["experiment=contrls"], ["'contrls'", "Did you mean 'controls'?", "bad_key"]),
    ("train", ["lm=5"], ["'5' is not an option of 'lm'", "broken, hub, small"]),
    ("train", ["lm.lora.rnk=8"], ["'lm.lora.rnk'", "Did you mean 'lm.lora.rank'?"]),
    ("train", ["lmm.lora.rank=8"], ["'lmm.lora.rank'", "Did you mean 'lm.lora.rank'?"]),
    ("train", ["adapter_lr=1"], ["Did you mean 'training.adapter_lr'?"]),
    ("train", ["rank=1"], ["Did you mean 'lm.lora.rank'?"]),
    ("train", ["~sed"], ["'sed'", "Did you mean 'seed'?"]),
    ("train", ["+training.adaptr_lr=1"], ["'training.adaptr_lr'", "Did you mean 'training.adapter_lr'?"]),
    ("train", ["+trainng.adapter_lr=1"], ["'trainng'", "Did you mean 'training'?"]),
    ("train", ["hydra.swep.dir=x"], ["Did you mean 'hydra.sweep.dir'"]),
    ("train", ["hydra/launchr=joblib"], ["Did you mean 'hydra/launcher'", "basic"]),
    ("train", ["xyzzy=1"], ["'xyzzy'", "--cfg job"]),
    ("plain", ["training.adaptr_lr=1"], ["Did you mean 'training.adapter_lr'?"]),
    ("plain", ["lm.lora.rnk=8"], ["Did you mean 'lm.lora.rank'?"]),
    ("plain", ["encoder=cff"], ["Did you mean 'cf'?"]),
    ("stage", ["encoder=cf"], ["'encoder' has no effect here", "stage.yaml"]),
    ("tran", [], ["'tran'", "conf"]),
    ("train", ["seed=abc"], ["seed=abc", "'seed' must be an integer, not 'abc'"]),
    ("train", ["seed=null"], ["'seed' cannot be null"]),
    ("train", ["training.adapter_lr=high"], ["'training.adapter_lr' must be a number, not 'high'"]),
    ("train", ["training.progress=maybe"], ["'training.progress' must be true or false, not 'maybe'"]),
    ("train", ["training.init=rige"], ["'rige' is not a value", "Did you mean 'ridge'?", "random, ridge"]),
    ("train", ["seed=[1"], ["cannot read the override 'seed=[1'"]),
    ("train", ["encoder=cf,content"], ["add -m"]),
    ("train", ["seed=${sed}"], ["'seed'", "'sed' not found", "Did you mean 'seed'?"]),
    ("train", ["lm=hub", "behave=reading"], ["'lm.pretrained' has no value", "lm.pretrained="]),
    ("train", ["lm=broken"], ["conf/lm/broken.yaml", "'lm.lora.rnk'", "Did you mean 'lm.lora.rank'?"]),
    ("train", ["experiment=bad_key"], ["conf/experiment/bad_key.yaml", "Did you mean 'training'?"]),
    ("train", ["experiment=bad_deep_key"], ["bad_deep_key.yaml", "Did you mean 'training.adapter_lr'?"]),
    ("train", ["experiment=bad_value"], ["bad_value.yaml", "'seed' must be an integer, not 'many'"]),
    ("train", ["experiment=bad_option"], ["bad_option.yaml", "Did you mean 'both'?", "both, cf, content"]),
    ("train", ["experiment=bad_group"], ["bad_group.yaml", "Did you mean 'encoder'?"]),
    ("train", ["experiment=bad_yaml"], ["not valid YAML", "bad_yaml.yaml", "line"]),
    ("train", ["-m", "experiment=bad_sweep"], ["bad_sweep.yaml", "Did you mean 'content'?"]),
    ("train", ["-m", "encoder=cf,contnt"], ["'contnt'", "Did you mean 'content'?"]),
    ("train", ["-m", "seed=1,abc"], ["'seed' must be an integer, not 'abc'"]),
    ("train", ["-m", "encoder=cf,content", "lm.lora.rnk=1"], ["Did you mean 'lm.lora.rank'?"]),
]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    for name, text in CONF.items():
        file = folder / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text).strip() + "\n")
    path = folder / "train.py"
    path.write_text(SCRIPT)
    return path


def run(script: Path, *arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, script.name, *arguments],
        cwd=script.parent,
        env={**inherited, "PYTHONPATH": str(REPOSITORY), **environment},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# arguments, HYDRA_FULL_ERROR, code, all of which the message must hold, and whether it has a traceback
ENDINGS: list[tuple[list[str], bool, int, list[str], bool]] = [
    (["behave=refused"], False, 1, ["nowhere: no such artefact folder", "HYDRA_FULL_ERROR=1"], False),
    (["behave=broken"], False, 1, ['int("not a number")'], True),
    (["behave=refused"], True, 1, ["nowhere: no such artefact folder"], True),
    (["encoder=cff"], True, 1, ["cff"], True),
    (["behave=interrupted"], False, 130, ["Interrupted. The same command continues where it stopped.\n"], False),
    (["behave=stopped_by_lightning"], False, 130, ["Interrupted. The same command continues"], False),
]


@pytest.fixture(scope="module")
def outcomes(script: Path) -> list[list[Any]]:
    """Code, output and message of every mistake, then of every ending, from one process."""
    cases = [*(case[:2] for case in MISTAKES), *(("train", *case[:2]) for case in ENDINGS)]
    done = run(script, "cases", stdin=json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("index", range(len(MISTAKES)), ids=lambda index: " ".join(MISTAKES[index][1]) or "no-config")
def test_mistake_is_named_with_the_nearest_right_one(index: int, outcomes: list[list[Any]]) -> None:
    code, output, message = outcomes[index]
    assert code == 2
    for part in MISTAKES[index][2]:
        assert part in message
    assert "Traceback" not in message
    assert len(message.splitlines()) <= 2, message
    if "behave=reading" not in MISTAKES[index][1]:
        assert "JOB" not in output, "a job started before the mistake was found"


def test_good_sweep_runs_every_job(script: Path) -> None:
    done = run(script, "train", "-m", "encoder=cf,content", "+lm={}", "hydra.verbose=false")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("JOB") == 2


def test_help_and_config_need_no_torch(script: Path) -> None:
    for flags in (["--help"], ["--cfg", "job"]):
        done = run(script, "train", *flags)
        assert "torch loaded" not in done.stderr
        assert done.returncode == 0
        assert "adapter_lr" in done.stdout


@pytest.mark.parametrize("index", range(len(ENDINGS)), ids=lambda index: " ".join(ENDINGS[index][0]))
def test_a_task_ends_with_a_code_and_what_its_reader_needs(index: int, outcomes: list[list[Any]]) -> None:
    code, _, message = outcomes[len(MISTAKES) + index]
    _, _, expected, parts, with_traceback = ENDINGS[index]
    assert code == expected
    for part in parts:
        assert part in message
    assert ("Traceback" in message) == with_traceback
    if expected == 130:
        assert message.strip().splitlines()[-1] == "Interrupted. The same command continues where it stopped."


@pytest.mark.slow  # starts two worker processes
def test_refusal_survives_a_worker_process(script: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = run(script, "train", "-m", "behave=refused", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2")
    assert done.returncode == 1
    assert "nowhere: no such artefact folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_a_sweeper_is_not_taken_for_a_wrong_option() -> None:
    """The option may come from a folder of the user's own, whose options `explain` does not know."""
    error = ValueError("No trials are completed yet.")
    arguments = ["-m", "--config-dir", "mine", "search=ridge"]
    assert explain(error, config_name="train", config_dir=REPOSITORY / "conf", arguments=arguments) == str(error)


def test_the_command_without_a_config_shows_its_help_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from regen.commands import llm_server

    monkeypatch.setattr(sys, "argv", ["llm_server", "--help"])
    llm_server.run()
    assert "[max_model_len=4096]" in capsys.readouterr().out
