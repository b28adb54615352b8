"""The wheel, in a virtual environment of its own and an empty folder: configs, prompts and pages come with it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

import pytest
from small import SMALL

REPOSITORY = Path(__file__).parent.parent

pytestmark = pytest.mark.slow  # builds a wheel and runs six commands that load torch
WORLD = [*SMALL, "trainer.max_steps=1"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment's `regen` script. It sees the libraries of this environment, but not this clone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools leaves a build folder behind, whose old files enter the next wheel
    source.mkdir()
    for name in ("regen", "conf"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder / "dist"), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = (folder / "dist").glob("regen-*.whl")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, timeout=300)
    python = folder / "env/bin/python"
    install = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    (packages,) = (folder / "env/lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "env/bin/regen"


def test_the_commands_work_outside_a_clone(installed, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def regen(*arguments):
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run([str(installed), *arguments], check=False, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    python = str(installed.with_name("python"))
    where = subprocess.run(
        [python, "-c", "import regen; print(regen.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed.parents[1])
    assert "prepare" in regen("--help")
    assert "source: amazon2018" in regen("train", "--help")
    assert "interactions" in regen("prepare", *[option for option in SMALL if option.startswith("source")])
    regen("train", "-m", "encoder=cf,content,both", *WORLD)
    assert "Similarity" in regen("evaluate", "runs=outputs/runs", "evaluation.resamples=100")
    (run,) = (tmp_path / "outputs/runs").glob("purchase_reason-both-*")
    regen("export", f"run={run.relative_to(tmp_path)}", "out=model")
    regen("serve", "checkpoint=model", "dry_run=true")
    demo = subprocess.Popen(
        [str(installed), "demo", "port=0"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        address = next(line.split()[1] for line in demo.stdout if line.startswith("Open "))
        assert b"<html" in urllib.request.urlopen(address, timeout=60).read()
    finally:
        demo.terminate()
        demo.wait(60)
        demo.stdout.close()
