"""What the OpenAPI document promises holds for whatever schemathesis makes of it."""

import subprocess
import sys
from pathlib import Path

import pytest
from serving.services import service

from regen import pipeline


@pytest.mark.slow
def test_schemathesis_finds_nothing(exported, finished, tmp_path):
    data = pipeline.read_run(finished.folder).inputs.prepared.path.resolve()
    with service(tmp_path, exported, f"data={data}", REGEN_API_KEY="secret") as served:
        found = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"{served.url}/openapi.json",
                "--header=Authorization: Bearer secret",
                "--max-examples=40",
                "--request-timeout=60",
                "--seed=1",
                "--no-color",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=560,
            check=False,
        )
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    assert "Test cases:" in found.stdout  # it did send some
