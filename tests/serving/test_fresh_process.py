"""Trained, exported and narrated as a user does it: by command, then three lines in a process of its own."""

import json
import subprocess
import sys

import pytest
from serving.finished_runs import FinishedRun, trained

REAL = ["encoder=both", "tuning=lora", "adapter=mlp"]


@pytest.mark.slow
def test_three_lines_in_a_fresh_process(small_config, tmp_path):
    run = FinishedRun(trained(small_config, *REAL))
    made = subprocess.run(
        [sys.executable, "-m", "regen", "export", f"run={run.folder}", "out=model", "hydra.run.dir=logs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    histories, predictions = run.of("purchase_reason")
    (tmp_path / "history.json").write_text(json.dumps(histories[0]))
    three = [
        "from regen import NarrativeModel",
        "model = NarrativeModel.from_pretrained('model')",
        "print(model.narrate(__import__('json').load(open('history.json'))))",
    ]
    told = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(three)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[-1] == predictions[0]  # wandb may say above it that it is offline


def test_the_package_itself_loads_no_torch():
    code = "import sys, regen; assert 'torch' not in sys.modules; regen.nothing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "AttributeError: module 'regen' has no attribute 'nothing'" in done.stderr
